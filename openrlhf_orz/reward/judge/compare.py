"""The comparison itself: the rules are asked in turn, and the first that speaks decides.

The rules live in :mod:`scalars`, :mod:`relations` and :mod:`lists`; they call :func:`decide`
again for the parts of what they take apart. :mod:`judge` registers them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Decision = bool | None  # right, wrong, or for a later rule
Rule = Callable[[str, str], Decision]

RULES: list[Rule] = []  # filled by judge.py, in the order of mends.MENDS
IDENTICAL = 63  # the rule number of an answer that is its reference
_NOT_BETWEEN_DIGITS = re.compile(r"(?<!\d) | (?!\d)")


def decide(gold: str, answer: str) -> tuple[Decision, int]:
    """What the rules say of two tidied spans: the decision and the number of the rule (from 1, 0 for none)."""
    gold, answer = gold.strip(), answer.strip()
    if not answer or not gold:
        return False, 0
    if gold == answer or _NOT_BETWEEN_DIGITS.sub("", gold) == _NOT_BETWEEN_DIGITS.sub("", answer):
        return True, IDENTICAL
    for place, rule in enumerate(RULES, 1):
        decision = rule(gold, answer)
        if decision is not None:
            return decision, place
    return None, 0


def agree(gold: str, answer: str) -> bool:
    """Whether the rules call ``answer`` right; undecided counts as not."""
    return bool(decide(gold, answer)[0])
