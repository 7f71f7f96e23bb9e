"""Rules for lists, tuples and sets of numbers, and for intervals."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from openrlhf_orz.reward.judge import ranges, shapes
from openrlhf_orz.reward.judge.brackets import split_top
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
    if left and right is None and left.bracket == "(":
        right = _as_tuple(answer)
    if right and left is None and right.bracket == "(":
        left = _as_tuple(gold)
    right = right or (shapes.chained(answer) if left else None)
    left = left or (shapes.chained(gold) if right else None)
    if left and right:
        return _same_items(left, right)
    if right:
        return _against_no_list(gold, answer, right)
    if left:
        if len(left.parts) == 1 and left.bracket == "{":
            return decide_by_rules(left.parts[0], answer)[0]
        sides, signs = shapes.relations(answer)
        if signs in (["="], ["\\in"]) and shapes.is_label(sides[0]) and shapes.items_of(sides[1]):
            return listing_rule(gold, sides[1])
        return False
    return None


def _unpacked(text: str) -> str:
    """``(m,n) = (1,2)`` as ``m = 1, n = 2``."""
    if not text.startswith("(") or "=" not in text:
        return text
    sides, signs = shapes.relations(text)
    names, given = (shapes.items_of(side) for side in (sides[0], sides[-1]))
    if signs != ["="] or not names or not given or len(names.parts) != len(given.parts):
        return text
    return ", ".join(map(" = ".join, zip(names.parts, given.parts)))


def _as_tuple(text: str) -> shapes.ItemList | None:
    """The elements of a column vector, or the coordinates of a named point."""
    point = shapes.point_of(text)
    return shapes.column(text) or (shapes.items_of(point) if point else None)


def _against_no_list(gold: str, answer: str, right: shapes.ItemList) -> Decision:
    """The answer's list against a reference that is none: one element, or an equation with a list."""
    if len(right.parts) == 1 and right.bracket == "{":
        return decide_by_rules(gold, right.parts[0])[0]
    named = _named(right.parts)
    if named and len(right.parts) == 1:
        return decide_by_rules(gold, named[0][1])[0]
    sides, signs = shapes.relations(gold)
    if signs in (["="], ["\\in"]) and shapes.is_label(sides[0], strict=True) and shapes.items_of(sides[1]):
        return listing_rule(sides[1], answer)
    return False


def _named(parts: tuple[str, ...]) -> list[tuple[str, str]] | None:
    """(name, value) of each part of `x=1, y=2`; a bare value takes the name before it (`x=1, 2`)."""
    named, last = [], None
    for part in parts:
        sides, signs = shapes.relations(part)
        if len(split_top(part, ",;")) > 1:
            return None
        if not signs and last is not None:
            named.append((last, part))
        elif signs and set(signs) == {"="} and shapes.is_label(sides[0]):
            last = sides[0]
            named.append((last, sides[-1]))
        else:
            return None
    return named


def _same_items(left: shapes.ItemList, right: shapes.ItemList) -> Decision:
    g_named, a_named = (_named(side.parts) if side.bracket == "" else None for side in (left, right))
    joints = {left.joint, right.joint}
    if len(joints) == 2 and "or" in joints:  # values are listed with either word, claims are not
        names = {shapes.label_key(name) for name, _ in [*(g_named or ()), *(a_named or ())]}
        claims = not names and (
            shapes.relations(left.parts[0])[1] or "" not in joints and not _DIGIT.search(left.parts[0])
        )
        if len(names) > 1 or claims:
            return False
    if g_named and a_named:
        pairs = [[(shapes.label_key(name), value) for name, value in named] for named in (g_named, a_named)]
        return match_unordered(pairs[0], pairs[1], lambda a, b: a[0] == b[0] and agree_by_rules(a[1], b[1]))
    if named := g_named or a_named:
        other = right if g_named else left
        labels, plain = [shapes.label_key(name) for name, _ in named], [value for _, value in named]
        if len(set(labels)) > 1 and set(labels) <= set("xyzw"):  # the order of a point is that of the alphabet
            plain = [value for _, value in sorted(zip(labels, plain), key=lambda pair: "xyzw".index(pair[0]))]
        g_plain, a_plain = (plain, other.parts) if g_named else (other.parts, plain)
        if len(set(labels)) == 1:
            return other.bracket in ("", "{") and match_unordered(g_plain, a_plain, agree_by_rules)
        return other.bracket != "{" and len(g_plain) == len(a_plain) and all(map(agree_by_rules, g_plain, a_plain))
    unordered = {"", "{"}
    if left.bracket not in unordered and right.bracket not in unordered:
        usual = {"(", "["}
        same_bracket = left.bracket == right.bracket or (
            len(left.parts) > 2 and {left.bracket, right.bracket} == usual
        )
        return (
            same_bracket and len(left.parts) == len(right.parts) and all(map(agree_by_rules, left.parts, right.parts))
        )
    if left.bracket in unordered and right.bracket in unordered:
        g_parts: Sequence[str] = left.parts
        a_parts: Sequence[str] = right.parts
        if "{" in (left.bracket, right.bracket) or len(a_parts) > len(g_parts):
            g_parts, a_parts = _distinct(g_parts), _distinct(a_parts)
        return match_unordered(g_parts, a_parts, agree_by_rules)
    return False


def _distinct(parts: Sequence[str]) -> list[str]:
    kept: list[str] = []
    for part in parts:
        if len(parts) > MAX_UNORDERED or not any(agree_by_rules(other, part) for other in kept):
            kept.append(part)
    return kept


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
