"""Word problems with equations, as MAWPS has them, become questions with short worked solutions.

    python examples/smollm2/word_problems.py --mawps FILE ... --svamp FILE --output DIR

DIR/mawps.jsonl has question, answer and solution ("26 - 9 = 17."), DIR/svamp.jsonl question and answer.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from openrlhf_orz.data.json_lines import write_records
from openrlhf_orz.data.sources import DataError, records
from openrlhf_orz.settings.redact import printable

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_OPERATIONS = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "/": Fraction.__truediv__}
_DECIMALS = 2  # of a number that a solution may hold


def worked_solution(equation: str, numbers: list[str]) -> tuple[str, str]:
    """(solution, result) of an equation in prefix notation; number0, number1 ... stand for ``numbers``.

    Each operation is a sentence, in the order in which it is computed: "- + number0 number1 number2" gives
    "3 + 4 = 7. 7 - 2 = 5." Raises ValueError for what is no such equation, and for numbers of more than two decimals.
    """
    words, sentences = equation.split(), []

    def value() -> Fraction:
        if not words:
            raise ValueError(f"{equation!r} ends too early")
        word = words.pop(0)
        if word not in _OPERATIONS:
            place = word.removeprefix("number")
            return Fraction(numbers[int(place)] if place != word else word)
        left, right = value(), value()
        result = _OPERATIONS[word](left, right)
        sentences.append(f"{decimal(left)} {word} {decimal(right)} = {decimal(result)}.")
        return result

    try:
        result = value()
    except (IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{equation!r} of {numbers}: {error}") from None
    if words or not sentences:
        raise ValueError(f"{equation!r} is no operation, or has words left over: {words}")
    return " ".join(sentences), decimal(result)


def decimal(number: Fraction) -> str:
    """A number as it is written, such as 17 or 0.25. Raises ValueError if it takes more than two decimals."""
    scaled = number * 10**_DECIMALS
    if scaled.denominator != 1:
        raise ValueError(f"{number} has more than {_DECIMALS} decimals")
    whole = f"{float(number):.{_DECIMALS}f}"
    return whole.rstrip("0").rstrip(".")


def worked_row(row: dict) -> dict[str, str] | None:
    """question, answer and solution of a row of MAWPS; None where the equation does not give the answer.

    The row is as in the repository of SVAMP (Question with number0 ..., Numbers, Equation, Answer), or has its numbers
    filled in (prompt or question, equation, answer): then number0 is the first number of the text.
    """
    equation, answer = (row.get(key.capitalize()) or row[key] for key in ("equation", "answer"))
    try:
        if "Numbers" in row:
            numbers = [decimal(Fraction(number)) for number in str(row["Numbers"]).split()]
            question = re.sub(r"number(\d+)", lambda found: numbers[int(found[1])], row["Question"])
            question = re.sub(r" ([.,?!])", r"\1", question).strip()
        else:
            question = (row.get("prompt") or row["question"]).strip()
            numbers = _NUMBER.findall(question)
        solution, result = worked_solution(equation, numbers)
        right = abs(Fraction(result) - Fraction(str(answer).strip())) < Fraction(1, 100)
    except (ValueError, IndexError):
        return None
    return {"question": question, "answer": result, "solution": solution} if right else None


def plain_row(row: dict) -> dict[str, str]:
    """question and answer of a row of SVAMP, as its repository has it (Body, Question, Answer) or as JSON lines."""
    if "Body" in row:
        body = row["Body"].strip()
        text = f"{body}{'' if body.endswith(('.', '?', '!', ',')) else '.'} {row['Question'].strip()}"
        return {"question": text, "answer": decimal(Fraction(str(row["Answer"])))}
    return {"question": row.get("prompt") or row["question"], "answer": str(row["answer"])}


def read(files: Iterable[str]) -> list[dict]:
    """The rows of all files."""
    return [row for file in files for _, _, row in records(file, "train", None) if isinstance(row, dict)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python examples/smollm2/word_problems.py", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--mawps", nargs="+", required=True, help="MAWPS: CSV as in SVAMP's repository, or JSON lines")
    parser.add_argument("--svamp", nargs="+", required=True, help="SVAMP.json, or JSON lines")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        found = read(args.mawps)
        worked = {row["question"]: row for row in map(worked_row, found) if row}
        if not worked:
            raise DataError(f"--mawps {' '.join(args.mawps)}: no row has an equation that gives its answer")
        plain = [plain_row(row) for row in read(args.svamp)]
    except KeyError as error:
        print(f"error: a row has no {error}: give the files that --help names", file=sys.stderr)
        return 2
    except (DataError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    write_records(args.output / "mawps.jsonl", worked.values())
    write_records(args.output / "svamp.jsonl", plain)
    print(f"[study] MAWPS: {len(worked)} questions with solutions, of {len(found)} rows; SVAMP: {len(plain)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
