"""The plan against measurement on CPU: FLOPs of the real model code, peak memory and seconds of real training steps.

    python benchmarks/plan.py [--sizes smollm2-135m] [--parts flops memory]      # 8 minutes; --sizes tiny: 3

FLOPs: torch's counter over one forward and backward of policy and critic, as models/ run them, on one pack. Memory:
``train_ppo_ray`` on random weights of the shape, packs filled to the budget; VmHWM of the two trainers' processes,
less that of a process with the same imports. Errors are predicted over measured, less 1. Seconds are of
the last step, predicted from the matrix-product rate measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import common

PROMPT, RESPONSE, GROUPS, SAMPLES = 108, 96, 5, 8  # ten sequences of 204 tokens fill a pack of 2048
STEPS = {"tiny": 2, "smollm2-135m": 1}


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=("tiny", "smollm2-135m"), default=["smollm2-135m"])
    parser.add_argument("--parts", nargs="+", choices=("flops", "memory"), default=["flops", "memory"])
    parser.add_argument("--tokens", type=int, default=512, help="of the pack whose FLOPs are counted")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default=common.cpu_dtype())
    return parser.parse_args(argv)


def counter():
    """torch's FLOP counter, and two that it lacks: attention on CPU (causal: half the square), in-place addmm."""
    import torch
    from torch.utils import flop_counter

    aten = torch.ops.aten

    def attention(q, k, v, *args, out_shape=None, **kwargs):
        return flop_counter.sdpa_flop_count(q, (*k[:1], q[1], *k[2:]), (*v[:1], q[1], *v[2:])) // 2

    def attention_backward(grad, q, k, v, *args, out_shape=None, **kwargs):
        return 2 * attention(q, k, v)  # useful: recomputed scores are not counted

    def addmm(total, a, b, out_shape=None, **kwargs):
        return flop_counter.mm_flop(a, b)

    return flop_counter.FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
            aten.addmm_: addmm,
        },
    )


def count_flops(size: str, role: str, options) -> dict:
    """One forward and backward over one pack of equal sequences: counted, and by the formula."""
    import gpu_train_step
    import torch

    step_options = gpu_train_step.parse(["--device", "cpu", "--dtype", options.dtype, "--sizes", size])
    step = gpu_train_step.Step(role, "ours", size, step_options)
    count = max(1, options.tokens // (PROMPT + RESPONSE))
    vocabulary = common.SHAPES[size][6]
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randint(1, vocabulary, (PROMPT + RESPONSE,), generator=generator), PROMPT) for _ in range(count)]
    # the head is used from the last prompt token to the last but one: it predicts all tokens of the responses
    targets = torch.randn(count * RESPONSE, generator=generator)
    with counter() as counted:
        step.run(rows, targets)
    by_operation = {str(k): v for k, v in counted.get_flop_counts()["Global"].items()}
    one = common.flops(size, [PROMPT + RESPONSE] * count, [RESPONSE] * count)
    head = one["head"] if role == "actor" else 2 * common.SHAPES[size][1] * (PROMPT + RESPONSE) * count
    # the first layer's input needs no gradient; the head's chunk is computed again in the backward
    useful = 3 * (one["body"] + head)
    again = one["head"] if role == "actor" else 0
    # RMSNorm's backward sums over tokens by a product, for its weight
    _, hidden, layers, *_ = common.SHAPES[size]
    again += 2 * hidden * (2 * layers + 1) * (PROMPT + RESPONSE) * count
    measured = sum(by_operation.values())
    attention = sum(v for k, v in by_operation.items() if "attention" in k)
    predicted_attention = 3 * count * 2 * common.SHAPES[size][2] * common.SHAPES[size][1] * (PROMPT + RESPONSE) ** 2
    return {
        "counted": measured, "counted_without_recomputed_logits_and_norms": measured - again, "formula": useful,
        "error": useful / (measured - again) - 1,
        "error_attention": predicted_attention / attention - 1 if attention else None, "by_operation": by_operation,
    }  # fmt: skip


def baseline_mib() -> float:
    """VmHWM of a process with a trainer's imports and an empty process group."""
    code = (
        "import ray, torch, torch.distributed as dist, tempfile;"
        "import openrlhf_orz.trainer.actor, openrlhf_orz.trainer.critic;"
        "dist.init_process_group('gloo', init_method='file://' + tempfile.mktemp(), rank=0, world_size=1);"
        "from pathlib import Path; import re;"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024)"
    )
    env = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": f"{common.ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=600)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout.splitlines()[-1])


def training_flags(model: Path, data: Path, run_dir: Path, options) -> list[str]:
    values = [
        "--actor.model_name_or_path", model, "--data.prompt_dataset", data, "--ckpt.output_dir", run_dir,
        "--orz.device", "cpu", "--orz.prompt_template", "none", "--orz.share_prefixes", "never", "--data.max_len",
        "256", "--rollout.max_new_tokens", RESPONSE, "--rollout.batch_size", GROUPS,
        "--rollout.n_samples_per_prompt", SAMPLES, "--orz.critic_updates", "2", "--orz.warmup_steps", "0",
        "--ds.param_dtype", options.dtype, "--orz.stop", "--orz.cpu_kvcache_mib", "256",
    ]  # fmt: skip
    return [str(value) for value in values]


def measure_memory(size: str, options, rate: float) -> dict:
    """One real run; what its trainers held at most, and what the plan says of the same flags."""
    from openrlhf_orz.cli.plan import plan_parser, plan_settings, settings_to_plan
    from openrlhf_orz.plan.memory import TRAINER_HOST

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = common.write_model(folder / "model", size)
        data = folder / "rows.jsonl"
        rows = [f"{i:04} plus 1 = ? ".ljust(PROMPT, ".") for i in range(GROUPS * STEPS[size])]
        lines = [json.dumps({"question": row, "answer": str(i + 1)}) for i, row in enumerate(rows)]
        data.write_text("\n".join(lines) + "\n")
        flags = training_flags(model, data, folder / "run", options)
        env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        env["PYTHONPATH"] = f"{common.ROOT}:{env.get('PYTHONPATH', '')}"
        command = [sys.executable, "-m", "openrlhf_orz.cli.train_ppo_ray", *flags]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1500)
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-3000:])
        last = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
        rates = ["--prompt_tokens", str(PROMPT), "--response_tokens", str(max(1.0, last["response_length"])),
                 "--peak_tflops", str(rate / 1e12), "--hardware", "cpu"]  # fmt: skip
        own, rest = plan_parser().parse_known_args([*rates, *flags])
        plan = plan_settings(own, *settings_to_plan(own, rest))
    base = baseline_mib()
    (training,) = [phase for phase in plan.memory.phases if phase.name.startswith("training")]
    result = {"baseline_mib": base, "response_length": last["response_length"], "samples": plan.batches.samples}
    for role, key in (("policy", "actor_memory_mib"), ("critic", "critic_memory_mib")):
        measured = last[key] - base
        predicted = sum(v for k, v in training.parts.items() if k.startswith(f"{role} ")) / 2**20
        parts = {k: v / 2**20 for k, v in training.parts.items() if k.startswith(f"{role} ") and v}
        result[role] = {
            "process_mib": last[key], "measured_mib": measured, "predicted_mib": predicted, "parts_mib": parts,
            "error": predicted / measured - 1,
            "error_of_process": (predicted + TRAINER_HOST / 2**20) / last[key] - 1,
        }  # fmt: skip
    experience = sum(plan.seconds.phases.get(name, 0) for name in ("values", "old log-probs", "reference model"))
    training_s = plan.seconds.phases["critic training"] + plan.seconds.phases["policy training"]
    predicted = {"generation": plan.seconds.phases["generation"], "experience": experience, "training": training_s}
    result["seconds"] = {
        name: {"measured": last[f"seconds_{name}"], "predicted": value, "error": value / last[f"seconds_{name}"] - 1}
        for name, value in predicted.items()
    }
    result["engine_memory_mib"] = last.get("engine_memory_mib")
    return result


def main(argv=None) -> dict:
    options = parse(argv)
    result = common.Result("_".join(["plan", *options.sizes]), options.dtype)
    found = {size: {} for size in options.sizes}
    for size in options.sizes:
        if "memory" in options.parts:
            rate = common.matmul_rate(2048, options.dtype, len(os.sched_getaffinity(0)))
            found[size]["memory"] = measure_memory(size, options, rate) | {"matmul_tflops": rate / 1e12}
            print(size, json.dumps(found[size]["memory"]), flush=True)
        if "flops" in options.parts:
            found[size]["flops"] = {role: count_flops(size, role, options) for role in ("actor", "critic")}
            print(size, {role: part["error"] for role, part in found[size]["flops"].items()}, flush=True)
    return result.finish(sizes=found, pack_tokens=2048, flops_tokens=options.tokens)


if __name__ == "__main__":
    main()
