"""The table of rules: what may decide a grade, with one name and one number each.

A rule's number is its place in :data:`RULES`. Workers reply with it, and OpenRLHF carries it with a
sample, as its ``extra_logs`` hold numbers only. Files hold names, so numbers may change between versions.

The judge's rules are functions in :mod:`~openrlhf_orz.reward.judge`, which imports SymPy. This module
does not: the judge registers its functions when a worker imports it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

from openrlhf_orz.reward.guards import GUARDS

# In the order in which they are asked; the first that says right or wrong decides.
JUDGE_RULES: dict[str, str] = {
    "unfinished": "dots in an answer do not complete it",
    "clock": "dates are compared by what they say, times keep am and pm, ratios compare as ratios",
    "amounts": "numbers keep their words: 3 hours 20 minutes, 4 red and 7 blue",
    "exact_number": "numbers are equal exactly, not to six places",
    "percent": "5% is 0.05, and 5 where percent was asked for; 5 is not 500%",
    "base": "the base of a number is part of it",
    "congruence": "congruences are equal when they hold for the same integers",
    "family": "the name of a parameter does not matter, nor where its count starts; a domain goes without saying",
    "pieces": "the pieces of a function may stand in any order",
    "choice": "a choice letter is that letter, not a symbol or Euler's number",
    "interval": "intervals, unions and solved inequalities are sets; a set is never equal to a number",
    "listing": "lists have the reference's elements, and its order where it has one",
    "words": "words are compared as words, not as products of letters",
    "relation": "a relation is more than its right side; an equation that always holds is no answer",
    "unit": "units may be left out or converted, never exchanged",
    "expression": "expressions are equal when they have one value everywhere, to 50 digits",
}

RULES: tuple[str, ...] = (
    "",  # no rule: there was no answer, none could read it, or Math-Verify decided alone
    "identical",  # the answer is the reference, character by character
    "reference",  # the reference is blank or too long
    "boxes_disagree",  # different boxes in one block, where that is wrong
    *JUDGE_RULES,
    *(guard.name for guard in GUARDS),
    "letter",  # the verifiers that are not the Grader
    "exact",
    "reasoning_gym",
)
_NUMBERS = {name: number for number, name in enumerate(RULES)}
if len(_NUMBERS) != len(RULES):
    raise ValueError("a rule's name stands twice in RULES")


def rule_number(rule: str | None) -> int:
    """The place of a rule in ``RULES``; 0 (none) also for one that is not listed."""
    return _NUMBERS.get(rule or "", 0)


Decision = bool | None  # right, wrong, or left to the next rule
Rule = Callable[[str, str], Decision]

_functions: dict[str, Rule] = {}
_NOT_BETWEEN_DIGITS = re.compile(r"(?<!\d) | (?!\d)")


def register_rules(named: Iterable[tuple[str, Rule]]) -> None:
    """Give each of ``JUDGE_RULES`` its function, once in a process.

    Raises:
        ValueError: names are missing, unknown, given twice, or registered before.
    """
    pairs = list(named)
    functions, twice = dict(pairs), {name for name, count in Counter(name for name, _ in pairs).items() if count > 1}
    wrong = twice | (functions.keys() ^ JUDGE_RULES.keys())
    if wrong or _functions:
        raise ValueError(f"each of JUDGE_RULES takes one function; wrong: {sorted(wrong) or sorted(_functions)}")
    _functions.update((name, functions[name]) for name in JUDGE_RULES)


def decide_by_rules(gold: str, answer: str) -> tuple[Decision, str]:
    """Ask the judge's rules in turn about two tidy spans; the first that does not return None decides.

    Rules call this again for parts of the spans, such as the elements of a list.

    Returns:
        The decision (None if no rule decides) and the rule's name ("" for none).

    Raises:
        RuntimeError: ``judge/judge.py`` is not imported, so there are no rules.
    """
    if not _functions:
        raise RuntimeError("no rules are registered: import openrlhf_orz.reward.judge.judge")
    gold, answer = gold.strip(), answer.strip()
    if not answer or not gold:
        return False, ""
    if gold == answer or _NOT_BETWEEN_DIGITS.sub("", gold) == _NOT_BETWEEN_DIGITS.sub("", answer):
        return True, "identical"
    for name, rule in _functions.items():
        decision = rule(gold, answer)
        if decision is not None:
            return decision, name
    return None, ""


def agree_by_rules(gold: str, answer: str) -> bool:
    """Whether the rules call ``answer`` right; undecided counts as not."""
    return bool(decide_by_rules(gold, answer)[0])
