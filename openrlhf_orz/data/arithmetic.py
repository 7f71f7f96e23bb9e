"""Additions as questions with answers, for runs that need no download.

python -m openrlhf_orz.data.arithmetic --rows N --digits LO HI --seed S --output F.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

from openrlhf_orz.data.json_lines import write_records


def addition_question(*terms: int) -> str:
    """The question for a sum: addition_question(37, 85) == "What is 37+85?"."""
    return f"What is {'+'.join(map(str, terms))}?"


def _range(digits: int) -> range:
    """All numbers of so many digits; 0 has one."""
    return range(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def generate_additions(n: int, digits: tuple[int, int] | int, seed: int, terms: int = 2) -> list[dict[str, str]]:
    """`n` distinct sums of `terms` numbers of `digits` digits (one number, or the lowest and highest), shuffled.

    Rows have question, answer and source. The same arguments give the same rows. Every combination of digit
    lengths gets an equal share, as far as it has so many sums; 1+2 and 2+1 are two sums.
    Raises ValueError, naming the flags below, for numbers out of range and when there are fewer sums than `n`.
    """
    low, high = (digits, digits) if isinstance(digits, int) else digits
    if not 1 <= low <= high:
        raise ValueError(f"--digits {low} {high}: give the lowest and highest number of digits, 1 or more")
    if n < 1 or terms < 2:
        raise ValueError(f"--rows {n}, --terms {terms}: give at least 1 row and 2 terms")
    shapes = list(itertools.product(map(_range, range(low, high + 1)), repeat=terms))
    # Smallest first: a small shape may have fewer sums than its share, and the larger ones make up for it.
    shapes.sort(key=_size)
    space = sum(map(_size, shapes))
    if n > space:
        raise ValueError(f"--rows {n}: --digits {low} {high} allow only {space} sums. Ask for fewer, or more digits")
    rng = random.Random(seed)
    sums: list[tuple[int, ...]] = []
    for i, shape in enumerate(shapes):
        share = (n - len(sums)) // (len(shapes) - i)
        sums += [_nth(shape, index) for index in _distinct(rng, _size(shape), min(share, _size(shape)))]
    rng.shuffle(sums)
    source = f"addition_{low}-{high}_digits" if low < high else f"addition_{low}_digits"
    return [{"question": addition_question(*sum_), "answer": str(sum(sum_)), "source": source} for sum_ in sums]


def _size(shape: Sequence[range]) -> int:
    size = 1
    for numbers in shape:
        size *= numbers.stop - numbers.start  # len() stops at 2**63
    return size


def _nth(shape: Sequence[range], index: int) -> tuple[int, ...]:
    """Number `index` of all tuples of `shape`."""
    terms = []
    for numbers in shape:
        index, offset = divmod(index, numbers.stop - numbers.start)
        terms.append(numbers.start + offset)
    return tuple(terms)


def _distinct(rng: random.Random, size: int, count: int) -> list[int]:
    if size <= 4 * count:
        return rng.sample(range(size), count)
    found: dict[int, None] = {}  # random.sample can't take ranges beyond 2**63
    while len(found) < count:
        found[rng.randrange(size)] = None
    return list(found)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the rows as JSON lines."""
    parser = argparse.ArgumentParser("python -m openrlhf_orz.data.arithmetic", description="Write additions as JSONL.")
    parser.add_argument("--rows", type=int, required=True, help="how many distinct questions")
    parser.add_argument("--digits", type=int, nargs=2, metavar=("LO", "HI"), required=True, help="digits of each term")
    parser.add_argument("--terms", type=int, default=2, help="terms of each sum (2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="file to write, keys question, answer, source")
    args = parser.parse_args(argv)
    try:
        rows = generate_additions(args.rows, tuple(args.digits), args.seed, args.terms)
    except ValueError as error:
        parser.error(str(error))
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_records(args.output, rows)
    except OSError as error:
        parser.error(f"--output {args.output}: {error.strerror}. Choose another file.")
    print(f"{len(rows)} additions in {args.output}")


if __name__ == "__main__":
    main()
