"""Rules for lists, tuples and sets of numbers, and for intervals."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from openrlhf_orz.reward.judge import ranges, shapes
from openrlhf_orz.reward.judge.brackets import COMMA, split_top
from openrlhf_orz.reward.rules import Decision, agree_by_rules, decide_by_rules

T = TypeVar("T")
_DIGIT = re.compile(r"\d")
MAX_UNORDERED = 64  # elements of a list that are matched in any order


def interval_rule(gold: str, answer: str) -> Decision:
    """Intervals, unions and solved inequalities are sets; a set is never equal to a number."""
    left, right = ranges.parse_range(gold), ranges.parse_range(answer)
    if left and right and (left.sure or right.sure):
        return ranges.same_range(left, right)
    if right and right.sure and not left:
        return False if not shapes.relations(gold)[1] else None
    if left and left.sure and not right:
        return False  # not a set, or an inequality that is not solved
    return None


def listing_rule(gold: str, answer: str) -> Decision:
    """Lists have the reference's elements and order: (1,2) is not {1,2}; `3 or 4` is not 3."""
    gold, answer = _unpacked(gold), _unpacked(answer)
    left, right = shapes.items_of(gold), shapes.items_of(answer)
    if left and right is None:
        right = _as_list(answer, left.bracket)
    if right and left is None:
        left = _as_list(gold, right.bracket)
    if left and right:
        return _same_items(left, right)
    only = left or right
    if only and len(only.parts) == 1 and only.bracket == "{":
        return decide_by_rules(only.parts[0] if left else gold, only.parts[0] if right else answer)[0]
    return False if only else None


def _unpacked(text: str) -> str:
    """``(m,n) = (1,2)`` as ``m = 1, n = 2``."""
    if not text.startswith("(") or "=" not in text:
        return text
    sides, signs = shapes.relations(text)
    names, given = (shapes.items_of(side) for side in (sides[0], sides[-1]))
    if signs != ["="] or not names or not given or len(names.parts) != len(given.parts):
        return text
    return ", ".join(map(" = ".join, zip(names.parts, given.parts)))


def _as_list(text: str, bracket: str) -> shapes.ItemList | None:
    """What a list with ``bracket`` may meet: a column vector or a named point, ``S = \\{1,2\\}``, ``m = n = 1``."""
    found = shapes.tuple_of(text) if bracket == "(" else None
    sides, signs = shapes.relations(text)
    if found is None and signs in (["="], ["\\in"]) and shapes.is_label(sides[0]):
        found = shapes.items_of(sides[1])
    return found or shapes.chained(text)


def _named(parts: tuple[str, ...]) -> list[tuple[str, str]] | None:
    """(name, value) of each part of `x=1, y=2`; None if one has no name."""
    named = []
    for part in parts:
        sides, signs = shapes.relations(part)
        if set(signs) != {"="} or not shapes.is_label(sides[0]) or len(split_top(part, COMMA)) > 1:
            return None
        named.append((shapes.label_key(sides[0]), sides[-1]))
    return named


def _same_items(left: shapes.ItemList, right: shapes.ItemList) -> Decision:
    g_named, a_named = (_named(side.parts) if side.bracket == "" else None for side in (left, right))
    joints = {left.joint, right.joint}
    if len(joints) == 2 and "or" in joints:  # values are listed with either word, claims are not
        names = {name for name, _ in [*(g_named or ()), *(a_named or ())]}
        claims = not names and (
            shapes.relations(left.parts[0])[1] or "" not in joints and not _DIGIT.search(left.parts[0])
        )
        if len(names) > 1 or claims:
            return False
    if g_named and a_named:
        return match_unordered(g_named, a_named, lambda a, b: a[0] == b[0] and agree_by_rules(a[1], b[1]))
    if g_named:
        left, right = _without_names(g_named, right)
    elif a_named:
        right, left = _without_names(a_named, left)
    if {left.bracket, right.bracket} <= {"", "{"}:
        return match_unordered(left.parts, right.parts, agree_by_rules)
    usual = {left.bracket, right.bracket} == {"(", "["} and len(left.parts) > 2
    same_length = len(left.parts) == len(right.parts)
    return (
        (left.bracket == right.bracket or usual) and same_length and all(map(agree_by_rules, left.parts, right.parts))
    )


def _without_names(named: list[tuple[str, str]], other: shapes.ItemList) -> tuple[shapes.ItemList, shapes.ItemList]:
    """The values of ``x = 1, y = 2`` in the order of their names, if they are those of a point, and what they meet."""
    names = {name for name, _ in named}
    several = len(names) > 1
    if several and names <= set("xyzw"):
        named = sorted(named, key=lambda pair: "xyzw".index(pair[0]))
    bracket = (other.bracket.strip("{") or "(") if several else ""
    plain = shapes.ItemList(tuple(value for _, value in named), bracket)
    return plain, other if other.bracket else replace(other, bracket=bracket)


def match_unordered(gold: Sequence[T], answer: Sequence[T], same: Callable[[T, T], bool]) -> bool:
    """Whether the answer's elements are the reference's in some order."""
    if len(gold) != len(answer) or len(gold) > MAX_UNORDERED:
        return False
    rest = list(answer)
    for wanted in gold:
        found = next((n for n, given in enumerate(rest) if same(wanted, given)), None)
        if found is None:
            return False
        del rest[found]
    return True
