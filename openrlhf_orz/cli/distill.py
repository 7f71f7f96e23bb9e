"""Right answers of a reasoner as rows for SFT: ``python -m openrlhf_orz.cli.distill --responses F --output F``.

Takes responses.jsonl of ``openrlhf_orz.cli.evaluate``, keeps the responses that the grader found right, and writes
JSON lines with ``input`` and ``output`` for OpenRLHF's SFT trainer. examples/distill_reasoner.sh shows the whole way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from openrlhf_orz.data.json_lines import decoded_lines, write_records
from openrlhf_orz.data.sft_rows import select_responses
from openrlhf_orz.data.sources import DataError
from openrlhf_orz.settings.redact import printable


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m openrlhf_orz.cli.distill", description=__doc__)
    parser.add_argument("--responses", type=Path, required=True, nargs="+", help="responses.jsonl of evaluations")
    parser.add_argument("--output", type=Path, required=True, help="the rows, a .jsonl file")
    parser.add_argument("--per_question", type=int, help="at most so many responses to a question (default: all)")
    parser.add_argument("--max_tokens", type=int, help="leave out longer responses (tokens of the reasoner)")
    return parser


def _responses(paths: list[Path]) -> Iterator[dict]:
    """The rows of the files. Raises DataError, naming the line, for a line that is no JSON object."""
    for path in paths:
        for number, row in decoded_lines(path):
            if not isinstance(row, dict):
                raise DataError(
                    f"--responses: {path}:{number} is no JSON object: run the evaluation again, which mends a last"
                    " line that was cut, or remove it"
                )
            yield row


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        for name in ("per_question", "max_tokens"):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise DataError(f"--{name} is {getattr(args, name)}: it must be at least 1")
        if args.output.exists() and any(args.output.samefile(path) for path in args.responses if path.exists()):
            raise DataError("--output is one of --responses, which would be lost: name another file")
        kept, fates = select_responses(_responses(args.responses), args.per_question, args.max_tokens)
        told = ", ".join(f"{name} {count}" for name, count in fates.most_common())
        if not kept:
            raise DataError(
                f"--responses: no response can be kept ({told or 'the files are empty'}): take more samples (--n of"
                " the evaluation), another reasoner, or a larger --max_tokens"
            )
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_records(args.output, kept)
    except (DataError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    questions = len({row["input"] for row in kept})
    print(f"[distill] {len(kept)} responses to {questions} questions in {args.output}; of all: {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
