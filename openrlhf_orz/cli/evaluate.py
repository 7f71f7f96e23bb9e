"""Evaluate a model: ``python -m openrlhf_orz.cli.evaluate --model M --data a.jsonl b.jsonl --n 16 --out DIR``.

Generates with vLLM, with the training's template, stop strings and grader, and prints and writes, for each benchmark,
avg@n with a bootstrap interval, pass@k, maj@n, lengths and rates. The same command goes on after a kill.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path

from openrlhf_orz.evaluate.benchmarks import BENCHMARKS, HARNESS
from openrlhf_orz.evaluate.questions import EvaluationError, load_questions
from openrlhf_orz.runtime.files import write_json_lines
from openrlhf_orz.settings.derive import cpu_dtype, detect_device
from openrlhf_orz.settings.flags import STOP_STRINGS


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m openrlhf_orz.cli.evaluate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = ", ".join([*BENCHMARKS, *HARNESS])
    add = parser.add_argument
    add("--model", required=True, help="a directory with a model and its tokenizer, or a hub name")
    add("--data", nargs="+", default=[], metavar="[NAME=]FILE", help="questions with answers: JSONL, JSON or Parquet")
    add("--bench", nargs="+", default=[], metavar="NAME", help=f"named benchmarks from the hub: {names}")
    add("--out", required=True, type=Path, help="where responses.jsonl and results go; what is there is not redone")
    add("--n", type=int, default=16, help="samples of each question (default: 16, as in the paper)")
    add("--limit", type=int, help="only the first so many questions of each set")
    add("--seed", type=int, default=0, help="of sampling, of the order of options and of the bootstrap")
    add("--temperature", type=float, default=1.0, help="default: 1, as in training")
    add("--top_p", type=float, default=1.0)
    add(
        "--max_new_tokens", type=int, default=8192, help="tokens of a response (default: 8192, or what max_len leaves)"
    )
    add("--max_len", type=int, help="tokens of prompt and response (default: what the model can take)")
    add("--prompt_template", default="paper", help="paper, released, none, or a text with {{prompt}} (as in training)")
    add("--stop", nargs="*", default=list(STOP_STRINGS), help="stop strings, kept in the response (as in training)")
    add("--plain_math_verify", action="store_true", help="grade by Math-Verify alone, without our guards and rules")
    add("--grader_workers", type=int, help="grading processes (default: one a core)")
    add("--engines", type=int, default=1, help="vLLM engines, each in a process (and on GPUs) of its own")
    add("--tensor_parallel", type=int, default=1, help="GPUs of one engine")
    add("--batch_size", type=int, default=None, help="responses of an engine at a time (default: 256, on CPU 32)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto")
    add("--cpu_kvcache_mib", type=int, default=512, help="KV cache of each engine on CPU")
    add("--gpu_memory_utilization", type=float, default=0.9)
    add("--engine_args", type=json.loads, default={}, metavar="JSON", help="more arguments for vLLM's engine")
    add("--trust_remote_code", action="store_true", help="let the model's repository run its own code")
    add("--critic", metavar="PATH", help="a critic's checkpoint: adds its values of the first and last tokens")
    add("--harness_python", default=os.environ.get("ORZ_HARNESS_PYTHON"), metavar="PATH",
        help="the python of an environment with lighteval (or ORZ_HARNESS_PYTHON)")  # fmt: skip
    add("--allow_code_execution", action="store_true", help="LiveCodeBench: run programs that the model wrote")
    return parser


def fingerprint(model: str) -> dict[str, str] | None:
    """Sizes and the beginnings of a local model's weights, hashed; None of a hub name."""
    if not Path(model).is_dir():
        return None
    found = {}
    for file in sorted(Path(model).glob("*.safetensors")):
        with open(file, "rb") as weights:
            digest = hashlib.sha256(weights.read(4 * 2**20)).hexdigest()[:16]
        found[file.name] = f"{file.stat().st_size}-{digest}"
    return found


def check(options) -> None:
    """Raise EvaluationError on what cannot be."""
    if not options.data and not options.bench:
        raise EvaluationError("nothing to evaluate on: give --data FILE or --bench NAME")
    for name in ("n", "engines", "tensor_parallel", "max_new_tokens", "limit", "max_len", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise EvaluationError(f"--{name} is {value}: it must be at least 1")
    if options.temperature == 0 and options.n > 1:
        raise EvaluationError(f"--temperature 0 gives one response {options.n} times: use --n 1, or a temperature")
    if os.path.sep in options.model and not Path(options.model).exists() and options.model.count("/") != 1:
        raise EvaluationError(f"--model: there is no directory {options.model}")


def run(options) -> dict:
    """The whole evaluation; returns what is in results.json. Raises EvaluationError."""
    check(options)
    from openrlhf_orz.evaluate import harness

    harnessed = [bench for bench in options.bench if bench in HARNESS]
    if harnessed:
        harness.check(harnessed, options.harness_python, options.allow_code_execution)
    own = [bench for bench in options.bench if bench not in HARNESS]
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"model": options.model, "seed": options.seed, "results": {}}
    if options.data or own:
        content |= run_own(options, own)
    if harnessed:
        engine = {"dtype": options.dtype if options.dtype != "auto" else "bfloat16", "seed": options.seed}
        if options.tensor_parallel > 1:
            engine["tensor_parallel_size"] = options.tensor_parallel
        folder = options.out / "lighteval"
        content["results"] |= harness.run(
            options.harness_python, options.model, harnessed, folder, engine, options.limit
        )
    content["seconds"] = round(time.monotonic() - began, 1)
    return content


def run_own(options, benches: list[str]) -> dict:
    """Our part: questions, responses, numbers, and the critic's values."""
    from transformers import AutoTokenizer

    from openrlhf_orz.data.prompts import render
    from openrlhf_orz.evaluate.engine_process import EngineSettings
    from openrlhf_orz.evaluate.responses import Responses, check_settings
    from openrlhf_orz.evaluate.run import Graders, evaluate, numbers

    questions, sources = load_questions(options.data, benches, options.seed, options.limit)
    device = detect_device() if options.device == "auto" else options.device
    default = {"bf16": "bfloat16", "fp32": "float32"}[cpu_dtype()] if device == "cpu" else "bfloat16"
    settings = EngineSettings(
        model=options.model, temperature=options.temperature, top_p=options.top_p, stop=tuple(options.stop),
        max_new_tokens=options.max_new_tokens, max_len=options.max_len, device=device,
        dtype=default if options.dtype == "auto" else options.dtype,
        batch_size=options.batch_size or (32 if device == "cpu" else 256), tensor_parallel=options.tensor_parallel,
        cores=max(1, len(os.sched_getaffinity(0)) // options.engines), kvcache_mib=options.cpu_kvcache_mib,
        gpu_memory=options.gpu_memory_utilization, trust_remote_code=options.trust_remote_code,
        engine_args=options.engine_args,
    )  # fmt: skip
    identity = {key: getattr(settings, key) for key in
                ("model", "temperature", "top_p", "max_new_tokens", "max_len", "stop", "device", "dtype")}  # fmt: skip
    identity |= {"weights": fingerprint(options.model), "template": options.prompt_template, "seed": options.seed,
                 "plain_math_verify": options.plain_math_verify, "data": sources}  # fmt: skip
    check_settings(options.out, identity)
    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=options.trust_remote_code)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    responses = Responses(options.out / "responses.jsonl")
    graders = Graders({question.verifier for question in questions}, options.grader_workers, options.plain_math_verify)
    try:
        began = time.monotonic()
        evaluate(
            questions, responses, settings, n=options.n, seed=options.seed, engines=options.engines, encode=encode,
            render=lambda question: render(options.prompt_template, question.text), graders=graders,
        )  # fmt: skip
        content = {"n": options.n, "settings": identity, "generation_seconds": round(time.monotonic() - began, 1)}
        content["results"] = numbers(questions, responses, options.n, options.seed, graders)
    finally:
        responses.close()
        graders.close()
    if options.critic:
        add_values(options, questions, responses, content, encode, device)
    return content


def add_values(options, questions, responses, content: dict, encode, device: str) -> None:
    """The critic's values, into responses.jsonl (written anew, aside) and each benchmark's row."""
    import torch

    from openrlhf_orz.evaluate.critic import judge, load_critic

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    critic = load_critic(options.critic, device, dtype)
    for bench, result in content["results"].items():
        rows = [row for row in responses.done.values() if row["bench"] == bench]
        result |= judge(critic, rows, encode, device) | {"critic": options.critic}
    write_json_lines(responses.path, responses.done.values(), ensure_ascii=True)


def main(argv: list[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    from openrlhf_orz.data.rows import DataError

    try:
        content = run(options)
    except (EvaluationError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; the responses so far are in {options.out}: the same command goes on", file=sys.stderr)
        return 130
    from openrlhf_orz.evaluate.run import table, write_results

    write_results(options.out, content)
    print(table(content["results"]))
    print(f"{content['seconds']} s; responses.jsonl, results.json and results.md are in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
