"""The task of the reward's study: sums whose answers have several forms, of which some are right.

Each kind of question is one where Math-Verify alone and our judge differ. Math-Verify drops units, and takes a length
in another unit for wrong; it takes an inequality for no interval; it rounds to six places, so that two tiny numbers
are equal. A response is a guess, counting on without keeping track of how far, right one time in three, or counting
with a tally, with a form of its sum in the box.
"""

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from miniature.task import ANSWER, FIRST, guess
from miniature.task import Terms as Sum

SECOND = range(6, 15)


@dataclass(frozen=True)
class Kind:
    """A question of the terms ``a`` and ``b``, and the forms of its answer, with their shares in the corpus.

    Forms are of the first term ``a``, the sum ``n`` and its hundredth ``m``. The first right one is the reference.
    """

    question: str
    right: dict[str, float]
    wrong: dict[str, float]


KINDS = {
    "length": Kind(
        "Two ropes are {a} cm and {b} cm. How long are they together?",
        {"{n} cm": 0.5, "{m:.2f} m": 0.25},
        {"{n} m": 0.25},
    ),
    "interval": Kind(
        "Which numbers are at least {a} and at most {b} more?",
        {"[{a},{n}]": 0.5, r"{a} \le x \le {n}": 0.25},
        {"({a},{n})": 0.25},
    ),
    "tiny": Kind("What is 0.000000{a}+0.0000000{b:02}?", {"0.000000{n}": 1.0}, {}),
}  # fmt: skip

SHARES = ("right", *(f"right_{kind}" for kind in KINDS), "rewarded_wrong", "unrewarded_right")

Terms = tuple[str, int, int]


def draw(rng: random.Random) -> Terms:
    """The kind and the terms of a fresh question."""
    return rng.choice(list(KINDS)), rng.choice(FIRST), rng.choice(SECOND)


def question(terms: Terms) -> str:
    """Its text."""
    kind, a, b = terms
    return KINDS[kind].question.format(a=a, b=b)


def answers(terms: Terms) -> list[str]:
    """All right answers, the reference first."""
    kind, a, b = terms
    return [form.format(a=a, n=a + b, m=(a + b) / 100) for form in KINDS[kind].right]


def count(terms: Sum, rng: random.Random) -> str:
    """Counting on, which ends one too early, right, or one too late: count((147, 2)) may be " Counting: 148, 149."."""
    n = sum(terms) + rng.randint(-1, 1)
    return f" Counting: {', '.join(map(str, range(terms[0] + 1, n + 1)))}." + ANSWER.format(n)


def tally(terms: Sum, rng: random.Random | None = None) -> str:
    """Counting with a tally: tally((147, 2)) begins with " One by one: 1=148, 2=149."."""
    first, second = terms
    return f" One by one: {', '.join(f'{i}={first + i}' for i in range(1, second + 1))}." + ANSWER.format(sum(terms))


def formed(style: Callable[[Sum, random.Random], str]) -> Callable[[Terms, random.Random], str]:
    """A style with a form of its sum in the box, right or wrong."""

    def respond(terms: Terms, rng: random.Random) -> str:
        kind, a, b = terms
        text = style((a, b), rng)
        forms = KINDS[kind].right | KINDS[kind].wrong
        (form,) = rng.choices(list(forms), forms.values())
        work, n = re.fullmatch(r"(.*\\boxed\{)(\d+).*", text).groups()
        return work + form.format(a=a, n=n, m=int(n) / 100) + "} </answer>"

    return respond


STYLES = {style.__name__: formed(style) for style in (guess, count, tally)}
BEGINNINGS = {"guess": " It is about", "count": " Counting", "tally": " One by one"}
STYLE_SHARES = {"guess": 0.6, "count": 0.25, "tally": 0.15}  # in the corpus, so about in the base


def kind_of(reference: str) -> str:
    """Of the question with this reference."""
    return "length" if reference.endswith("cm") else "interval" if reference.startswith("[") else "tiny"


def is_right(answer: str | None, reference: str) -> bool:
    """Whether ``answer`` is one of the right forms, by the task alone and no judge."""
    numbers = [int(found) for found in re.findall(r"[1-9]\d*", reference)]
    a, n = numbers[0], numbers[-1]
    return answer in answers((kind_of(reference), a, n - a))


def shares(rows: Iterable[dict]) -> dict[str, float | None]:
    """Shares of a step's rollouts, by the names of SHARES: right in truth, and whose reward says otherwise."""
    found = [
        (kind_of(row["reference"]), is_right(row["extracted"], row["reference"]), row["reward"] == 1) for row in rows
    ]
    lists = [
        [right for _, right, _ in found],
        *([right for of, right, _ in found if of == kind] for kind in KINDS),
        [paid and not right for _, right, paid in found],
        [right and not paid for _, right, paid in found],
    ]
    return {name: sum(of) / len(of) if of else None for name, of in zip(SHARES, lists, strict=True)}
