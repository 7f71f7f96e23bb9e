"""Rows for a warm start, which teaches a small model the ORZ format before reinforcement learning.

    python -m openrlhf_orz.cli.warm_start rows --data FILE --model DIR --output DIR    from worked solutions
    python -m openrlhf_orz.cli.warm_start bare --data FILE --output DIR                from answers alone

The CPU recipes call it; OpenRLHF's own SFT trainer does the training.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from openrlhf_orz.data.json_lines import write_records
from openrlhf_orz.data.rows import read_dataset
from openrlhf_orz.data.sft_rows import Worked, read_worked, sft_row, split_worked
from openrlhf_orz.data.sources import DataError, DataFlags
from openrlhf_orz.settings.redact import printable


def say(line: str) -> None:
    print(f"[warm start] {line}")


def write_rows(args: argparse.Namespace) -> None:
    """Write sft.jsonl for OpenRLHF's SFT trainer and rl.jsonl (question, answer) for ours; they share no question."""
    rows = read_worked(args.data, args.input_key, args.label_key, args.solution_key, args.split, say)
    from transformers import AutoTokenizer  # takes seconds

    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def count_tokens(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

    sft, rl = split_worked(rows, count_tokens, args.sft_rows, args.max_solution_tokens, args.max_tokens, args.seed)
    bare = [Worked(one.question, bare_solution(one.answer), one.answer) for one in sft if args.bare]
    args.output.mkdir(parents=True, exist_ok=True)
    write_records(args.output / "sft.jsonl", map(sft_row, [*sft, *bare]))
    write_records(args.output / "rl.jsonl", ({"question": one.question, "answer": one.answer} for one in rl))
    ways = ", worked out and bare" if args.bare else ""
    print(
        f"[warm start] of {len(rows)} rows {len(sft)} for the warm-up{ways}, {len(rl)} others for RL, in {args.output}"
    )


def bare_solution(answer: str) -> str:
    """What stands for a solution where there is only the answer."""
    return f"It is {answer}."


def write_bare(args: argparse.Namespace) -> None:
    """Write sft.jsonl from answers alone. It teaches the format, and the little that a bare answer can."""
    keys = args.input_key or "question", args.label_key or "answer"
    flags = DataFlags("--data", "--split", "--input_key", "--label_key")
    rows, bad = read_dataset(args.data, *keys, args.split, args.sft_rows, flags=flags)
    texts = [row for row in rows if isinstance(row.question, str) and isinstance(row.answer, str)]
    reasons = Counter(row.reason for row in bad) + Counter(no_text=len(rows) - len(texts))
    left = ", ".join(f"{why} {count}" for why, count in reasons.most_common())
    if not texts:
        raise DataError(f"--data {args.data}: no row has a question and an answer as text ({left or 'no rows'})")
    args.output.mkdir(parents=True, exist_ok=True)
    worked = [Worked(row.question, bare_solution(row.answer), row.answer) for row in texts]
    write_records(args.output / "sft.jsonl", map(sft_row, worked))
    print(
        f"[warm start] {len(worked)} rows for the warm-up in {args.output}" + (f"; left out: {left}" if left else "")
    )


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say where the worked solutions or answers are."""
    parser.add_argument("--data", required=True, help="worked solutions, e.g. GSM8K's training rows")
    parser.add_argument("--split", default="train")
    for key in ("input_key", "label_key", "solution_key"):
        parser.add_argument(f"--{key}", default=os.environ.get(key.upper()) or None, help="default: found")


def at_least_one(text: str) -> int:
    """The number that a flag gives, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of 1 or more")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m openrlhf_orz.cli.warm_start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    rows = commands.add_parser("rows", help="sft.jsonl and rl.jsonl from worked solutions")
    rows.set_defaults(write=write_rows)
    rows.add_argument("--model", required=True, help="the model whose tokenizer counts")
    rows.add_argument("--max_solution_tokens", type=int, default=50)
    rows.add_argument("--max_tokens", type=int, default=260, help="of prompt and response")
    rows.add_argument("--seed", type=int, default=0)
    rows.add_argument(
        "--bare",
        action="store_true",
        help="each row of the warm-up once more with its answer alone: the model learns to do both, and RL which pays",
    )
    bare = commands.add_parser("bare", help="sft.jsonl from answers alone")
    bare.set_defaults(write=write_bare)
    for command in (rows, bare):
        command.add_argument("--output", type=Path, required=True)
        command.add_argument("--sft_rows", type=at_least_one, default=640)
        add_data_flags(command)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        args.write(args)
    except (DataError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
