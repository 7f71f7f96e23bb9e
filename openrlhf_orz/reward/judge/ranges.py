"""Intervals, their unions, and inequalities in solved form, as sets of real numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sympy import Expr, oo

from openrlhf_orz.reward.judge import values
from openrlhf_orz.reward.judge.brackets import COMMA, encloses, split_top
from openrlhf_orz.reward.judge.shapes import relations

_UNION = re.compile(r"\\cup(?![a-zA-Z])|(?:\\text\{\s*)?\b(?:or|and)\b(?:\s*\})?|,|;")
_VARIABLE = re.compile(r"\s*-?\s*(?:\\?[a-zA-Z]|\\[a-z]+|[a-zA-Z]_\{?\w\}?|[fgh]\s*\(\s*[a-z]\s*\))\s*$")
_REALS = re.compile(
    r"\\mathbb\{R\}$|(?:\\text\{)?\s*(?:all|any|every)\s*\}?\s*(?:\\text\{)?\s*reals?(?:\s+numbers?)?(?:\s+[a-z])?\s*\}?$|R$",
    re.IGNORECASE,
)
_EXCEPT = re.compile(
    r"(?i)(?:\\text\{\s*)?(?:all\s+)?reals?(?:\s+numbers?)?\s*(?:except|other than|excluding)(?:\s+for)?\s*(?:\}\s*)?"
    r"(?:[a-z]\s*=\s*)?(-?[^{}]+?)\s*\}?$"
)
_BUILDER = re.compile(r"\\\{\s*(?P<var>\\?[a-zA-Z])\s*(?:\\in\s*\\mathbb\{R\}\s*)?[|:]\s*(?P<body>.*)\\\}$", re.DOTALL)
_MEMBER = re.compile(r"\\?[a-zA-Z]\s*\\(?:not)?in(?![a-zA-Z])")
_EMPTY = re.compile(
    r"(?i)\\emptyset\s*$|\\\{\s*\\\}$|(?:\\text\{)?\s*(?:no (?:real )?solutions?|(?:the )?empty set)\s*\}?$"
)
_DISTANCE = re.compile(r"\|\s*(\\?[a-zA-Z])\s*\|")
_MINUS = re.compile(r"\\setminus(?![a-zA-Z])|(?<=\}|\))\s*-\s*(?=\\\{)")
_FLIP = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq"}
# Where a number may stand for a relation to hold: before the bound, on it, behind it.
_PLACES = {"<": {-1}, ">": {1}, "\\leq": {-1, 0}, "\\geq": {0, 1}, "=": {0}, "\\neq": {-1, 1}}


@dataclass(frozen=True)
class Range:
    """A set of reals, which its ``bounds`` cut into pieces that belong to it or not.

    ``holds(side)`` says so for a number with ``side(bound)`` -1 before the bound, 0 on it, 1 behind it. ``variable``
    is that of a relation. ``sure`` is False for ``(a,b)`` and ``\\{a,b\\}``, which may be a pair and a list.
    """

    bounds: tuple[Expr, ...]
    holds: Callable[[Callable[[Expr], int]], bool]
    variable: str | None = None
    sure: bool = True


def _joined(parts: Sequence[Range], how: Callable[[Iterable[bool]], bool], sure: bool = True) -> Range:
    """The union (``any``) or the intersection (``all``) of sets about one variable."""
    bounds = tuple(bound for part in parts for bound in part.bounds)
    return Range(bounds, lambda side: how(part.holds(side) for part in parts), parts[0].variable, sure)


def _related(sign: str, bound: Expr) -> Range:
    """The numbers in the relation ``sign`` to ``bound``."""
    return Range((bound,), lambda side: side(bound) in _PLACES[sign])


def complement(inner: Range) -> Range:
    """The numbers that are not in ``inner``."""
    return Range(inner.bounds, lambda side: not inner.holds(side), inner.variable)


_ALL, _NONE = Range((), lambda side: True), Range((), lambda side: False)


def parse_range(text: str) -> Range | None:
    """``text`` (tidy) as a set of reals, None if it is not written as one."""
    text = _EXCEPT.sub(lambda m: f"\\mathbb{{R}} \\setminus \\{{{m[1]}\\}}", text.strip())
    builder = _BUILDER.match(text)
    if builder:
        inner = parse_range(builder["body"].strip())
        named = inner is not None and inner.variable == builder["var"]
        return replace(inner, variable=None, sure=True) if inner and named else None
    if _EMPTY.match(text):
        return _NONE
    pieces = [text] if _MEMBER.match(text) else [piece.strip() for piece in split_top(text, _UNION)]
    parsed = [piece for piece in map(_piece, pieces) if piece is not None]
    if len(parsed) < len(pieces):
        return None
    if len(parsed) == 1:
        return parsed[0]
    variables = {piece.variable for piece in parsed}
    if len(variables) > 1 or not all(piece.sure or "\\cup" in text for piece in parsed):
        return None
    if variables != {None} and re.search(r"\band\b|,|;", text):
        both = _joined(parsed, all)
        if "and" in text or not _same_set(both, _NONE):  # `x < 1, x > 2` can only mean either
            return both
    return _joined(parsed, any)


def _piece(text: str) -> Range | None:
    whole, *minus = split_top(text, _MINUS)
    if minus:
        from_set, taken = _piece(whole.strip()), parse_range(minus[0].strip())
        if not from_set or not taken or taken.variable or len(minus) > 1:
            return None
        return _joined((from_set, complement(taken)), all)
    if _REALS.match(text):
        return _ALL
    listed = text.startswith("\\{") and text.endswith("\\}")
    if listed or len(text) > 2 and text[0] in "([" and text[-1] in ")]" and encloses(text):
        bounds = [_bound(end) for end in split_top(text[2:-2] if listed else text[1:-1], COMMA)]
        if None in bounds or not listed and len(bounds) != 2:
            return None
        if listed:
            return _joined([_related("=", bound) for bound in bounds], any, sure=False)
        low = _related(">" if text[0] == "(" else "\\geq", bounds[0])
        high = _related("<" if text[-1] == ")" else "\\leq", bounds[1])
        interval = _joined((low, high), all, sure=text[0] + text[-1] != "()" or oo in bounds or -oo in bounds)
        return None if _same_set(interval, _NONE) else interval  # (3,2) is a pair
    return _relation(text)


def _relation(text: str) -> Range | None:
    """The numbers for which a relation in solved form holds, such as ``x > 2`` or ``1 \\leq |x| < 3``."""
    sides, signs = relations(text)
    if len(signs) == 1 and signs[0] in ("\\in", "\\notin"):
        inner = parse_range(sides[1]) if _VARIABLE.match(sides[0]) else None
        if inner and signs[0] == "\\notin":
            inner = complement(inner)
        return inner and replace(inner, variable=sides[0])
    if len(signs) == 1 and signs[0] in _PLACES:
        middles = [n for n, side in enumerate(sides) if _VARIABLE.match(side) or _DISTANCE.fullmatch(side)]
        sign = _FLIP.get(signs[0], signs[0]) if middles == [1] else signs[0]
        return _one_sided(sides[middles[0]], sign, sides[1 - middles[0]]) if len(middles) == 1 else None
    directions = {sign in ("<", "\\leq") for sign in signs}
    if len(signs) != 2 or len(directions) > 1 or not set(signs) <= _FLIP.keys() or sides[1].startswith("-"):
        return None
    first, second = (_relation(f"{sides[n]} {signs[n]} {sides[n + 1]}") for n in (0, 1))
    return _joined((first, second), all) if first and second else None


def _one_sided(variable: str, sign: str, text: str) -> Range | None:
    """``x < 3``, ``-x < 3``, ``|x| < 3``, ``x = 3`` and ``x \\neq 3``."""
    bound, distance = _bound(text), _DISTANCE.fullmatch(variable)
    if bound is None or distance and (sign not in _FLIP or not bound):
        return None
    if distance:
        ends = _related(sign, bound), _related(_FLIP[sign], -bound)
        return replace(_joined(ends, all if sign in ("<", "\\leq") else any), variable=distance[1])
    if variable.startswith("-"):
        sign, variable, bound = _FLIP.get(sign, sign), variable[1:].strip(), -bound
    return replace(_related(sign, bound), variable=variable, sure=sign != "=")


def _bound(text: str) -> Expr | None:
    text = text.strip()
    infinite = re.fullmatch(r"\+?\s*(-?)\s*\\infty", text)
    if infinite:
        return -oo if infinite[1] else oo
    if not text or relations(text)[1] or "\\infty" in text:
        return None
    parsed = values.parse_expression(text)
    return parsed if isinstance(parsed, Expr) else None


def same_range(gold: Range, answer: Range) -> bool:
    """Whether two ranges are the same set (and about the same variable, when both name one)."""
    return (gold.variable or answer.variable) == (answer.variable or gold.variable) and _same_set(gold, answer)


def _same_set(left: Range, right: Range) -> bool:
    """Whether the sets have the same bounds and pieces, for several values of the symbols in the bounds."""
    bounds = list(dict.fromkeys(bound for bound in left.bounds + right.bounds if bound not in (oo, -oo)))
    symbols = set().union(*(bound.free_symbols for bound in bounds))
    for seed in (*values.POSITIVE_SEEDS, *values.NEGATIVE_SEEDS) if symbols else values.POSITIVE_SEEDS[:1]:
        point = values.sample_point(symbols, seed)
        at: dict[Expr, Any] = {bound: values.number_at(values.exact(bound), point) for bound in bounds}
        if all(value is not None and value.is_real for value in at.values()):
            bounds.sort(key=at.__getitem__)
        places = {oo: math.inf, -oo: -math.inf}
        for bound in bounds:  # what is equal has one place
            equal = (place for other, place in places.items() if values.same_parsed(other, bound))
            places[bound] = next(equal, 2 * len(places))
        for number in range(3, 2 * len(places)):  # the odd ones stand between the bounds
            sides = {bound: (number > place) - (number < place) for bound, place in places.items()}
            if left.holds(sides.__getitem__) != right.holds(sides.__getitem__):
                return False
    return True
