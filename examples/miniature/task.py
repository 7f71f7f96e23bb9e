"""The task of the miniature: additions that a base model answers in two styles, a guess or counting on.

The styles differ in length as in worth, so that reward and length can only rise together: a guess, nearly always
wrong, and a countdown of some 200 tokens, right unless it is given up on the way. Each item follows from the one
before, which a tiny network learns in minutes.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

from openrlhf_orz.data.arithmetic import addition_question

FIRST, SECOND = range(100, 900), range(16, 44)
GIVES_UP = 0.03  # how often a countdown ends after an item
ANSWER = " </think> <answer> \\boxed{{{}}} </answer>"

Terms = tuple[int, int]


def draw(rng: random.Random) -> Terms:
    """The terms of a fresh question."""
    return rng.choice(FIRST), rng.choice(SECOND)


def guess(terms: Terms, rng: random.Random) -> str:
    """The sum give or take 10: right one time in 21."""
    n = sum(terms) + rng.randint(-10, 10)
    return f" It is about {n}, I guess." + ANSWER.format(n)


def countdown(terms: Terms, rng: random.Random | None = None, items: int | None = None) -> str:
    """Counting on with what is left, its first ``items`` items or all: " One by one: 2=148, 1=149." for (147, 2)."""
    first, second = terms
    shown = ", ".join(f"{second - i}={first + i + 1}" for i in range(second if items is None else items))
    return f" One by one: {shown}" + ("." + ANSWER.format(sum(terms)) if items is None else "")


def weary(terms: Terms, rng: random.Random) -> str:
    """A countdown that may be given up after an item: weary((147, 20)) may end "19=149, and so on, about 171."."""
    items = next((i for i in range(1, terms[1]) if rng.random() < GIVES_UP), None)
    if items is None:
        return countdown(terms)
    n = sum(terms) + rng.randint(-10, 10)
    return countdown(terms, items=items) + f", and so on, about {n}." + ANSWER.format(n)


STYLES: dict[str, Callable[[Terms, random.Random], str]] = {"guess": guess, "weary": weary, "countdown": countdown}
BEGINNINGS = {"guess": " It is about", "weary": " One by one"}
SHARES = {"guess": 0.4, "weary": 0.6}  # of the styles in the corpus, so about in the base


def write_questions(
    folder: Path,
    scales: tuple[int, ...],
    held_out: int,
    seed: int,
    draw: Callable[[random.Random], tuple] = draw,
    question: Callable[[tuple], str] = lambda terms: addition_question(*terms),
    answer: Callable[[tuple], str] = lambda terms: str(sum(terms)),
) -> None:
    """Write ``train-N.jsonl`` for each N of ``scales``, each a part of the next, and ``held-out.jsonl``, disjoint."""
    rng, asked = random.Random(seed), {}
    while len(asked) < max(scales) + held_out:
        asked[draw(rng)] = None
    rows = [{"question": question(terms), "answer": answer(terms)} for terms in asked]
    folder.mkdir(parents=True, exist_ok=True)
    parts = {f"train-{n}": rows[held_out : held_out + n] for n in scales} | {"held-out": rows[:held_out]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
