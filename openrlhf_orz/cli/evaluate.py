"""Evaluate a model: ``python -m openrlhf_orz.cli.evaluate --model M --data a.jsonl b.jsonl --n 16 --out DIR``.

Generates with vLLM, with the training's template, stop strings and grader, and prints and writes, for each benchmark,
avg@n with a bootstrap interval, pass@k, maj@n, lengths and rates. The same command goes on after a kill.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from openrlhf_orz.evaluate.questions import BENCHMARKS, HARNESS, EvaluationError
from openrlhf_orz.reward.verifiers import VERIFIERS
from openrlhf_orz.settings.redact import printable


def evaluate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m openrlhf_orz.cli.evaluate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = ", ".join([*BENCHMARKS, *HARNESS])
    add = parser.add_argument
    add("--model", required=True, help="a directory with a model and its tokenizer, or a hub name")
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="[NAME=]FILE",
        help="questions with answers: JSONL (.gz, too), JSON, CSV or Parquet",
    )
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
    add("--prompt_template", help="paper, released, none, chat (the tokenizer's template), or a text with {{prompt}};"
        " default: as MODEL's run was trained (config.json beside it), else paper")  # fmt: skip
    add("--stop", nargs="*", help="stop strings, kept in the response; default: as MODEL's run, else the paper's")
    add("--verifier", choices=sorted(VERIFIERS), help="grades rows that name none; default: as MODEL's run, else math")
    add("--plain_math_verify", action=argparse.BooleanOptionalAction,
        help="grade by Math-Verify behind the guards, without our rules; default: as MODEL's run")  # fmt: skip
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
    add(
        "--critic",
        metavar="PATH",
        help="a critic's checkpoint: adds its values of all response tokens, and how well they fit",
    )
    add("--harness_python", default=os.environ.get("ORZ_HARNESS_PYTHON"), metavar="PATH",
        help="the python of an environment with lighteval (or ORZ_HARNESS_PYTHON)")  # fmt: skip
    add("--allow_code_execution", action="store_true", help="LiveCodeBench: run programs that the model wrote")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Raise EvaluationError if flags contradict each other or name something that does not exist."""
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


def main(argv: list[str] | None = None) -> int:
    options = evaluate_parser().parse_args(argv)
    from openrlhf_orz.data.rows import DataError
    from openrlhf_orz.evaluate.run import evaluate_model
    from openrlhf_orz.runtime.private import vllm_files

    try:
        check_options(options)
        with vllm_files():
            content = evaluate_model(options)
    except (EvaluationError, DataError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; the responses so far are in {options.out}: the same command goes on", file=sys.stderr)
        return 130
    from openrlhf_orz.evaluate.results import results_table, write_results

    write_results(options.out, content)
    print(results_table(content["results"]))
    print(f"{content['seconds']} s; responses.jsonl, results.json and results.md are in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
