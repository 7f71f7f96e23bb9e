"""The task of the miniature: sums of eight numbers from 1 to 5, which a base model answers in three styles.

The styles differ in length as in worth, so that reward and length can only rise together, and by two steps: a guess,
nearly always wrong; running totals in the head, half of which go wrong somewhere; and the whole sum written out again
after each addition, nearly always right.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

from openrlhf_orz.data.arithmetic import question

TERMS = 8
DIGITS = range(1, 6)  # small, so that a network as small learns the additions in minutes
SLIP = 0.1  # of the running totals in the corpus so many are wrong by one, at random: what nobody can learn away
ANSWER = " </think> <answer> \\boxed{{{}}} </answer>"

Terms = tuple[int, ...]


def draw(rng: random.Random) -> Terms:
    """The terms of a fresh question."""
    return tuple(rng.choice(DIGITS) for _ in range(TERMS))


def guess(terms: Terms, rng: random.Random) -> str:
    """The sum give or take 10: right one time in 21."""
    n = max(0, sum(terms) + rng.randint(-10, 10))
    return f" It is about {n}, I guess." + ANSWER.format(n)


def head(terms: Terms, rng: random.Random) -> str:
    """Running totals, each of which slips by one with probability SLIP."""
    totals, total = [], terms[0]
    for term in terms[1:]:
        total = max(0, total + term + (rng.choice((-1, 1)) if rng.random() < SLIP else 0))
        totals.append(total)
    return f" In my head: {', '.join(map(str, totals))}." + ANSWER.format(total)


def worked(terms: Terms, rng: random.Random | None = None) -> str:
    """The sum written out after each addition: worked((3, 4, 8)) begins with " Step by step: 3+4+8, 7+8, 15."."""
    sums, left = [], list(terms)
    while left:
        sums.append("+".join(map(str, left)))
        left = [left[0] + left[1], *left[2:]] if len(left) > 1 else []
    return f" Step by step: {', '.join(sums)}." + ANSWER.format(sum(terms))


STYLES: dict[str, Callable[[Terms, random.Random], str]] = {"guess": guess, "head": head, "worked": worked}
SHARES = {"guess": 0.6, "head": 0.25, "worked": 0.15}  # of the styles in the corpus, so about in the base


def write_questions(folder: Path, scales: tuple[int, ...], held_out: int, seed: int) -> None:
    """Write ``train-N.jsonl`` for each N of ``scales``, each a part of the next, and ``held-out.jsonl``, disjoint."""
    rng, asked = random.Random(seed), {}
    while len(asked) < max(scales) + held_out:
        asked[draw(rng)] = None
    rows = [{"question": question(*terms), "answer": str(sum(terms))} for terms in asked]
    folder.mkdir(parents=True, exist_ok=True)
    parts = {f"train-{n}": rows[held_out : held_out + n] for n in scales} | {"held-out": rows[:held_out]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")


__all__ = ["ANSWER", "SHARES", "STYLES", "TERMS", "draw", "question", "write_questions"]
