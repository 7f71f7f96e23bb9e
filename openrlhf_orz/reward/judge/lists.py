"""Rules for lists, tuples and sets of numbers, and for intervals."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from openrlhf_orz.reward.judge import ranges, shapes, values
from openrlhf_orz.reward.judge.brackets import split_top
from openrlhf_orz.reward.rules import Decision, agree_by_rules, decide_by_rules

T = TypeVar("T")
MAX_UNORDERED = 64  # elements of a list that are matched in any order

_INTEGERS = r"(?:\\mathbb\{(?P<set>[ZN])\}|(?:\\text\{\s*)?(?:the\s+)?integers\s*\}?)"
_BODY = r"(?P<body>.*?)(?:\\text\{[\s,(]*(?:where|for|with|and)?\s*(?:any|all|some|every)?\s*\}|[\s,;(]|\|)+"
_CLAUSES = [
    re.compile(_BODY + rest, re.DOTALL)
    for rest in (
        rf"(?P<name>[a-zA-Z])\s*\\in\s*{_INTEGERS}\s*\)?$",
        r"(?P<name>[a-zA-Z])\s*\\text\{\s*(?:is\s+)?(?:an|any)\s+(?P<kind>positive\s+)?integer\s*\}\)?$",
        r"\\text\{[\s,(]*(?:where|for|with)?\s*(?:any|all|some|every|an)?\s*(?P<kind>positive\s+)?integers?\s*\}"
        r"\s*(?P<name>[a-zA-Z])\)?$",
    )
]


def _family(text: str) -> tuple[str, str, str] | None:
    """`2k\\pi, k \\in \\mathbb{Z}` as its body, the parameter and Z or N."""
    if text.startswith("\\{") and text.endswith("\\}"):
        text = text[2:-2].strip()
    for clause in _CLAUSES:
        match = clause.match(text)
        if match:
            group = match.groupdict()
            natural = group.get("set") == "N" or group.get("kind")
            return match["body"].strip(" ,;"), match["name"], "N" if natural else "Z"
    return None


def family_rule(gold: str, answer: str) -> Decision:
    """`2k\\pi, k \\in \\mathbb{Z}` is `2n\\pi` for integers n; over all integers it may start anywhere."""
    left, right = _family(gold), _family(answer)
    if left is None or right is None:
        return None
    if left[2] != right[2]:
        return False
    g_body, name, _ = left
    a_body = re.sub(rf"(?<![\\a-zA-Z]){right[1]}(?![a-zA-Z])", f" {name} ", right[0])
    if decide_by_rules(g_body, a_body)[0]:
        return True
    bodies = []
    for body in (g_body, a_body):
        sides, signs = shapes.relations(body)
        bodies.append(sides[-1] if signs == ["="] and shapes.is_label(sides[0]) else body)
    return left[2] == "Z" and values.same_progression(bodies[0], bodies[1], name)


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
    left, right = shapes.items_of(gold), shapes.items_of(answer)
    if left and right is None and left.bracket == "(":
        right = _as_tuple(answer)
    if right and left is None and right.bracket == "(":
        left = _as_tuple(gold)
    if right is None and (left or _named_tuple(gold)):
        right = shapes.chained(answer)
    if left is None and right:
        left = shapes.chained(gold)
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
    if _named_tuple(gold) and right.bracket == "" and named:
        return _against_named_tuple(sides, right)
    if signs in (["="], ["\\in"]) and shapes.is_label(sides[0], strict=True) and shapes.items_of(sides[1]):
        return listing_rule(sides[1], answer)
    return False


def _named_tuple(text: str) -> bool:
    """Whether ``text`` is such as ``(m,n) = (1,2)``."""
    if not text.startswith("(") or "=" not in text:
        return False
    sides, signs = shapes.relations(text)
    return signs == ["="] and all(map(shapes.items_of, sides))


def _against_named_tuple(sides: list[str], right: shapes.ItemList) -> bool:
    """`(x,y) = (1,2)` against `x=1, y=2`."""
    names, golds, answers = shapes.items_of(sides[0]), shapes.items_of(sides[1]), _named(right.parts)
    if not names or not golds or not answers:
        return False
    wanted = dict(zip(map(shapes.label_key, names.parts), golds.parts))
    given = {shapes.label_key(name): value for name, value in answers}
    return wanted.keys() == given.keys() and all(decide_by_rules(wanted[name], given[name])[0] for name in wanted)


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
    g_named = _named(left.parts) if left.bracket == "" else None
    a_named = _named(right.parts) if right.bracket == "" else None
    if g_named and a_named:
        pairs = [[(shapes.label_key(name), value) for name, value in named] for named in (g_named, a_named)]
        return _match(pairs[0], pairs[1], lambda a, b: a[0] == b[0] and agree_by_rules(a[1], b[1]))
    g_parts: Sequence[str]
    a_parts: Sequence[str]
    if named := g_named or a_named:
        one_name = len({shapes.label_key(name) for name, _ in named}) == 1
        plain = [value for _, value in named]
        g_parts, a_parts = (plain, right.parts) if g_named else (left.parts, plain)
        other = right if g_named else left
        if one_name:
            return other.bracket in ("", "{") and _match(g_parts, a_parts, agree_by_rules)
        return other.bracket != "{" and len(g_parts) == len(a_parts) and all(map(agree_by_rules, g_parts, a_parts))
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
        g_parts, a_parts = left.parts, right.parts
        if "{" in (left.bracket, right.bracket) or len(a_parts) > len(g_parts):
            g_parts, a_parts = _distinct(g_parts), _distinct(a_parts)
        return _match(g_parts, a_parts, agree_by_rules)
    return False


def _distinct(parts: Sequence[str]) -> list[str]:
    kept: list[str] = []
    for part in parts:
        if len(parts) > MAX_UNORDERED or not any(agree_by_rules(other, part) for other in kept):
            kept.append(part)
    return kept


def _match(gold: Sequence[T], answer: Sequence[T], same: Callable[[T, T], bool]) -> bool:
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
