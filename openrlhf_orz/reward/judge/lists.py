"""Rules for several things: lists, tuples, sets, intervals, and numbers with their words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from openrlhf_orz.reward.judge import ranges, shapes
from openrlhf_orz.reward.judge.brackets import COMMA, split_top, spoken
from openrlhf_orz.reward.judge.quantity import DECIMAL, UNITS, fraction, number, singular, split_unit, unit_of
from openrlhf_orz.reward.rules import Decision, agree_by_rules, decide_by_rules

MAX_UNORDERED = 64  # elements of a list that are matched in any order


def interval_rule(gold: str, answer: str) -> Decision:
    """Intervals, unions and solved inequalities are sets; a set is never equal to a number."""
    left, right = ranges.parse_range(gold), ranges.parse_range(answer)
    if left and right:
        return ranges.same_range(left, right) if left.sure or right.sure else None
    if right and right.sure and not shapes.relations(gold)[1]:
        return False
    return False if left and left.sure else None  # not a set, or an inequality that is not solved


def listing_rule(gold: str, answer: str) -> Decision:
    """Lists have the reference's elements and order: (1,2) is not {1,2}; `3 or 4` is not 3."""
    gold, answer = _unpacked(gold), _unpacked(answer)
    left, right = shapes.items_of(gold), shapes.items_of(answer)
    if left is right is None and shapes.chained(gold):
        left, right = shapes.chained(gold), shapes.chained(answer)
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
        names, first = {name for name, _ in [*(g_named or ()), *(a_named or ())]}, left.parts[0]
        claims = shapes.relations(first)[1] or "" not in joints and not re.search(r"\d", first)
        if len(names) > 1 or claims and not names:
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
    alike = (left.bracket == right.bracket or usual) and len(left.parts) == len(right.parts)
    return alike and all(map(agree_by_rules, left.parts, right.parts))


def _without_names(named: list[tuple[str, str]], other: shapes.ItemList) -> tuple[shapes.ItemList, shapes.ItemList]:
    """The values of ``x = 1, y = 2`` in the order of their names, if they are those of a point, and what they meet."""
    names = {name for name, _ in named}
    several = len(names) > 1
    if several and names <= set("xyzw"):
        named = sorted(named, key=lambda pair: "xyzw".index(pair[0]))
    bracket = (other.bracket.strip("{") or "(") if several else ""
    plain = shapes.ItemList(tuple(value for _, value in named), bracket)
    return plain, other if other.bracket else other._replace(bracket=bracket)


def match_unordered(gold: Sequence[Any], answer: Sequence[Any], same: Callable[[Any, Any], bool]) -> bool:
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


_AMOUNT = re.compile(
    rf"\s*(?:(?P<number>-?(?:(?:\d+\s*)?\\frac\{{[^{{}}]*\}}\{{[^{{}}]*\}}|(?:\d+ +)?\d+\s*/\s*\d+|{DECIMAL}))"
    r"|(?P<word>[A-Za-z]+(?:['-][A-Za-z]{2,})*\.?|\\\$|\^\\circ)|(?P<gap>[,;:=&]|\\&))\s*"
)


class Amounts(NamedTuple):
    """Numbers with words (``3 hours 20 minutes``): all in order, and the size of each dimension if they pair."""

    words: tuple
    parts: dict[str, Fraction] | None = None


def amounts(text: str) -> Amounts | None:
    """``text`` (tidy) as two or more numbers with words, None if it has signs or is a plain list."""
    words: list[str | Fraction] = []
    flat, position = spoken(text), 0
    while position < len(flat):
        match = _AMOUNT.match(flat, position)
        if not match:
            return None
        position = match.end()
        if match["number"]:
            value = number(match["number"])
            if value is None:
                return None
            words.append(value)
        elif match["word"] and match["word"].lower() not in ("and", "quotient"):
            words.append({"r": "remainder", "rem": "remainder"}.get(match["word"].lower().strip("."), match["word"]))
    said = [word for word in words if isinstance(word, str)]
    if len(words) - len(said) < 2 or not any(
        len(word) > 2 or len(word) > 1 and singular(word) in UNITS for word in said
    ):
        return None
    if "\\text" not in text and any(len(word) < 3 and singular(word) not in UNITS and word != "of" for word in said):
        return None  # variables
    pairs: list[tuple[str, Fraction]] = []
    leading, label = isinstance(words[0], str), ""
    for word in words if leading else reversed(words):  # the label stands before each number, or behind it
        if isinstance(word, str):
            label = f"{label} {word}" if leading else f"{word} {label}"
        else:
            pairs.append((label, word))
            label = ""
    plain = tuple(singular(word) if isinstance(word, str) else word for word in words)
    sized = [(unit, n) for name, n in pairs if (unit := unit_of(name)) and unit.dimension]
    if label or len(sized) < len(pairs):
        return Amounts(plain)
    parts: dict[str, Fraction] = {}
    for unit, n in sized:
        parts[unit.dimension] = parts.get(unit.dimension, Fraction(0)) + unit.size * n
    if len({unit for unit, _ in sized}) < len(sized):
        return None if len(parts) == 1 else Amounts(plain)
    return Amounts(plain, parts)


def amounts_rule(gold: str, answer: str) -> Decision:
    """`3 hours 20 minutes` is 200 minutes; numbers keep their words, and words their order."""
    left, right = amounts(gold), amounts(answer)
    if left is None and right is None:
        return None
    if left and right:
        return left.parts == right.parts if left.parts and right.parts else left.words == right.words
    whole, other = (left, answer) if left else (right, gold)
    if whole and whole.parts and len(whole.parts) == 1:
        body, unit, _ = split_unit(other)
        if unit is None or unit.dimension not in whole.parts:
            return False
        size = fraction(whole.parts[unit.dimension] / unit.size)
        return agree_by_rules(size, body) if left else agree_by_rules(body, size)
    listed = shapes.items_of(other)
    if left and left.parts and listed:
        return [*map(number, listed.parts)] == [word for word in left.words if isinstance(word, Fraction)]
    return None if right and listed else False
