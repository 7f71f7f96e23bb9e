"""Curate questions with answers into training data: the paper's section 2.1.1 as a pipeline.

    python -m openrlhf_orz.cli.curate --config curate.yaml
    python -m openrlhf_orz.cli.curate --input pool.jsonl --output curated [--english-only]

docs/data.md describes the stages, the keys of the configuration and a real run. A run that was stopped goes on where
it was when it is started again with the same configuration.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from openrlhf_orz.data.curate.config import Config, PassRate, load_config
from openrlhf_orz.data.curate.pass_rate import Sampler
from openrlhf_orz.data.curate.pipeline import run_pipeline
from openrlhf_orz.data.sources import DataError
from openrlhf_orz.runtime.console import keep_terminal, output_to, say
from openrlhf_orz.runtime.private import vllm_files
from openrlhf_orz.settings.redact import printable


def configuration(argv: list[str] | None) -> tuple[argparse.ArgumentParser, Config]:
    """The parser, and the configuration that the arguments describe."""
    parser = argparse.ArgumentParser(
        "python -m openrlhf_orz.cli.curate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="YAML file, as docs/data.md describes it")
    parser.add_argument("--input", action="append", default=[], help="a file, folder or hub name; may be repeated")
    parser.add_argument("--entry", help="the ready source entry that the --input rows are in (math, orz, ...)")
    parser.add_argument("--output", help="folder for the results (the key `output`)")
    parser.add_argument("--english-only", action="store_true", help="keep English questions only (Fig. 12)")
    parser.add_argument(
        "--rollouts", action="append", default=[], help="a run's folder whose rollouts give pass rates"
    )
    parser.add_argument("--max-right", type=int, help="drop questions with more right answers than this")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key, such as seed=1")
    args = parser.parse_args(argv)
    values: dict[str, Any] = {}
    if args.output:
        values["output"] = args.output
    if args.english_only:
        values["language.keep"] = ["english"]
    if args.rollouts:
        values["pass_rate.rollouts"] = args.rollouts
    if args.max_right is not None:
        values["pass_rate.max_right"] = args.max_right
    if args.input:
        values["inputs"] = [{"path": path} | ({"entry": args.entry} if args.entry else {}) for path in args.input]
    elif args.entry:
        raise DataError(
            f"--entry {args.entry} is about --input: give one, or write `entry` into the inputs of --config."
        )
    return parser, load_config(args.config, args.set, values)


def main(argv: list[str] | None = None) -> int:
    try:
        _, config = configuration(argv)
        if config.pass_rate and config.pass_rate.model:
            keep_terminal()
        with vllm_files():
            run_pipeline(config, lambda line: print(line, flush=True), partial(_sampler, Path(config.output)))
    except DataError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    return 0


def _sampler(folder: Path, options: PassRate, questions: int) -> Sampler:
    """The model's answers; what vLLM prints goes to work/vllm.log, and how far it is to the terminal."""
    from openrlhf_orz.evaluate.pass_rates import pass_rate_sampler

    log = folder / "work" / "vllm.log"
    say(f"pass rates of {questions} questions: loading {options.model} (vLLM's own lines: {log})")
    with output_to(log):
        sample = pass_rate_sampler(options, questions, say)

    def quietly(*batch: list[str]) -> list[int]:
        with output_to(log):
            return sample(*batch)

    return quietly


if __name__ == "__main__":
    sys.exit(main())
