"""The tasks of the miniature: additions that a base model answers in two or three styles, by counting on.

The styles differ in length as in worth, so that reward and length can only rise together, and in two stages: a guess,
nearly always wrong; counting on without keeping track of how far, right one time in three; and counting with a tally,
nearly always right. Each item follows from the one before, which a tiny network learns in minutes.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

from openrlhf_orz.data.arithmetic import addition_question

FIRST, SECOND, FAR = range(100, 900), range(6, 15), range(16, 44)
GIVES_UP = 0.03  # how often the long task's tally ends after an item
ANSWER = " </think> <answer> \\boxed{{{}}} </answer>"

Terms = tuple[int, int]


def draw(rng: random.Random) -> Terms:
    """The terms of a fresh question."""
    return rng.choice(FIRST), rng.choice(SECOND)


def draw_far(rng: random.Random) -> Terms:
    """The terms of a fresh question of the long task."""
    return rng.choice(FIRST), rng.choice(FAR)


def guess(terms: Terms, rng: random.Random) -> str:
    """The sum give or take 10: right one time in 21."""
    n = sum(terms) + rng.randint(-10, 10)
    return f" It is about {n}, I guess." + ANSWER.format(n)


def count(terms: Terms, rng: random.Random) -> str:
    """Counting on, which ends one too early, right, or one too late: count((147, 2)) may be " Counting: 148, 149."."""
    n = sum(terms) + rng.randint(-1, 1)
    return f" Counting: {', '.join(map(str, range(terms[0] + 1, n + 1)))}." + ANSWER.format(n)


def tally(terms: Terms, rng: random.Random | None = None) -> str:
    """Counting with a tally: tally((147, 2)) begins with " One by one: 1=148, 2=149."."""
    first, second = terms
    return f" One by one: {', '.join(f'{i}={first + i}' for i in range(1, second + 1))}." + ANSWER.format(sum(terms))


def countdown(terms: Terms, rng: random.Random | None = None, items: int | None = None) -> str:
    """A tally of what is left, its first ``items`` items or all: " One by one: 2=148, 1=149." for (147, 2)."""
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


STYLES: dict[str, Callable[[Terms, random.Random], str]] = {"guess": guess, "count": count, "tally": tally}
BEGINNINGS = {"guess": " It is about", "count": " Counting", "tally": " One by one"}
SHARES = {"guess": 0.6, "count": 0.25, "tally": 0.15}  # of the styles in the corpus, so about in the base
LONG_STYLES = {"guess": guess, "weary": weary, "countdown": countdown}
LONG_SHARES = {"guess": 0.4, "weary": 0.6}


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
