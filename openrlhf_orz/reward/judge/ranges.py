"""Intervals, their unions, and inequalities in solved form, as sets of real numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sympy import Expr, oo

from openrlhf_orz.reward.judge import values
from openrlhf_orz.reward.judge.brackets import encloses, split_top

_UNION = re.compile(r"\\cup(?![a-zA-Z])|(?:\\text\{\s*)?\b(?:or|and)\b(?:\s*\})?|,|;")
_RELATION = re.compile(r"\\leq|\\geq|\\neq|<|>|=|\\in(?![a-zA-Z])|\\notin(?![a-zA-Z])")
_VARIABLE = re.compile(r"\s*-?\s*(?:\\?[a-zA-Z]|\\[a-z]+|[a-zA-Z]_\{?\w\}?|[fgh]\s*\(\s*[a-z]\s*\))\s*$")
_REALS = re.compile(
    r"\\mathbb\{R\}$|(?:\\text\{)?\s*(?:all|any|every)\s*\}?\s*(?:\\text\{)?\s*reals?(?:\s+numbers?)?(?:\s+[a-z])?\s*\}?$|R$",
    re.IGNORECASE,
)
_EXCEPT = re.compile(
    r"(?:\\text\{\s*)?(?:all\s+)?reals?(?:\s+numbers?)?\s*(?:except|other than|excluding)(?:\s+for)?\s*(?:\}\s*)?"
    r"(?:[a-z]\s*=\s*)?(-?[^{}]+?)\s*\}?$",
    re.IGNORECASE,
)
_BUILDER = re.compile(r"\\\{\s*(?P<var>\\?[a-zA-Z])\s*(?:\\in\s*\\mathbb\{R\}\s*)?[|:]\s*(?P<body>.*)\\\}$", re.DOTALL)
_MEMBER = re.compile(r"\\?[a-zA-Z]\s*\\(?:not)?in(?![a-zA-Z])")
_EMPTY = re.compile(
    r"\\emptyset\s*$|\\\{\s*\\\}$|(?:\\text\{)?\s*(?:no (?:real )?solutions?|empty set|the empty set)\s*\}?$",
    re.IGNORECASE,
)
_DISTANCE = re.compile(r"\|\s*(\\?[a-zA-Z])\s*\|")
_FLIP = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq"}


@dataclass(frozen=True)
class Segment:
    """One interval; ``low`` and ``high`` are parsed bounds, equal and closed for a point."""

    low: Expr
    low_open: bool
    high: Expr
    high_open: bool


@dataclass(frozen=True)
class Range:
    """A set of reals: its segments in writing order.

    ``variable`` is set if it was written as a relation. ``sure`` is False for ``(a,b)`` and
    ``\\{a,b\\}``, which may also be a pair and a list.
    """

    segments: tuple[Segment, ...]
    variable: str | None
    sure: bool


def parse_range(text: str) -> Range | None:
    """``text`` (tidy) as a set of reals, None if it is not written as one."""
    text = _EXCEPT.sub(lambda m: f"\\mathbb{{R}} \\setminus \\{{{m[1]}\\}}", text.strip())
    builder = _BUILDER.match(text)
    if builder:
        text = builder["body"].strip()
        inner = parse_range(text)
        return Range(inner.segments, None, True) if inner and inner.variable == builder["var"].strip() else None
    if _REALS.match(text):
        return Range((Segment(-oo, True, oo, True),), None, True)
    if _EMPTY.match(text):
        return Range((), None, True)
    member = _MEMBER.match(text)
    pieces = [text] if member else [piece.strip() for piece in split_top(text, _UNION)]
    if any(not piece for piece in pieces):
        return None
    parsed = [piece for piece in map(_piece, pieces) if piece is not None]
    if len(parsed) < len(pieces):
        return None
    if len(parsed) == 1:
        return parsed[0]
    variables = {piece.variable for piece in parsed}
    if len(variables) > 1 or not all(piece.sure or "\\cup" in text for piece in parsed):
        return None
    union = tuple(s for piece in parsed for s in piece.segments)
    if variables != {None} and re.search(r"\band\b|,|;", text):
        both: tuple[Segment, ...] | None = parsed[0].segments
        for piece in parsed[1:]:
            both = _intersect(both, piece.segments) if both is not None else None
        if both or "and" in text:  # `x < 1, x > 2` can only mean either
            return Range(both, variables.pop(), True) if both is not None else None
    return Range(union, variables.pop(), True)


def _piece(text: str) -> Range | None:
    minus = split_top(text, re.compile(r"\\setminus(?![a-zA-Z])|(?<=\}|\))\s*-\s*(?=\\\{)"))
    if len(minus) == 2:
        whole, taken = _piece(minus[0].strip()), parse_range(minus[1].strip())
        if not whole or not taken or taken.variable:
            return None
        outside = _complement(taken.segments)
        left = None if outside is None else _intersect(whole.segments, outside)
        return None if left is None else Range(left, whole.variable, True)
    if len(minus) > 2:
        return None
    if _REALS.match(text):
        return Range((Segment(-oo, True, oo, True),), None, True)
    points = _points(text)
    if points is not None:
        return Range(tuple(Segment(p, False, p, False) for p in points), None, False)
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and encloses(text):
        ends = split_top(text[1:-1], ",;")
        if len(ends) != 2:
            return None
        bounds = [_bound(end) for end in ends]
        if None in bounds:
            return None
        segment = Segment(bounds[0], text[0] == "(", bounds[1], text[-1] == ")")
        return Range((segment,), None, text[0] != "(" or text[-1] != ")" or oo in bounds or -oo in bounds)
    return _relation(text)


def _points(text: str) -> list[Expr] | None:
    if not (text.startswith("\\{") and text.endswith("\\}")):
        return None
    points = [_bound(part) for part in split_top(text[2:-2], ",;")]
    return None if None in points else points


def _relation(text: str) -> Range | None:
    """The numbers for which a relation in solved form holds, such as ``x > 2`` or ``1 \\leq |x| < 3``."""
    signs = _RELATION.findall(text)
    sides = [side.strip() for side in split_top(text, _RELATION)]
    if not signs or len(sides) != len(signs) + 1:
        return None
    if signs[0] in ("\\in", "\\notin"):
        return _membership(sides, signs)
    if len(signs) == 1:
        middles = [n for n, side in enumerate(sides) if _VARIABLE.match(side) or _DISTANCE.fullmatch(side)]
        return (
            _one_sided(sides[middles[0]], signs[0], sides[1 - middles[0]], middles[0] == 1)
            if len(middles) == 1
            else None
        )
    rising = [sign in ("<", "\\leq") for sign in signs]
    if len(signs) != 2 or rising[0] != rising[1] or not set(signs) <= _FLIP.keys() or sides[1].startswith("-"):
        return None
    first, second = (_relation(f"{sides[n]} {signs[n]} {sides[n + 1]}") for n in (0, 1))
    if first is None or second is None:
        return None
    if len(first.segments) == len(second.segments) == 1:  # also where the bounds are symbols
        low, high = (end.segments[0] for end in ((first, second) if rising[0] else (second, first)))
        return Range((Segment(low.low, low.low_open, high.high, high.high_open),), first.variable, True)
    both = _intersect(first.segments, second.segments)
    return Range(both, first.variable, True) if both else None


def _membership(sides: list[str], signs: list[str]) -> Range | None:
    """``x \\in (1,2)`` and ``x \\notin (1,2)``."""
    if len(signs) > 1 or not _VARIABLE.match(sides[0]):
        return None
    inner = parse_range(sides[1])
    if inner is None:
        return None
    segments = inner.segments if signs[0] == "\\in" else _complement(inner.segments)
    sure = inner.sure or signs[0] == "\\notin"
    return Range(segments, sides[0], sure) if segments is not None else None


def _one_sided(variable: str, sign: str, text: str, turned: bool) -> Range | None:
    """``x < 3``, ``3 > x`` (``turned``), ``-x < 3``, ``|x| < 3``, ``x = 3`` and ``x \\neq 3``."""
    bound, distance = _bound(text), _DISTANCE.fullmatch(variable)
    if bound is None or distance and sign not in _FLIP:
        return None
    if variable.startswith("-"):
        sign, variable, bound = _FLIP.get(sign, sign), variable[1:].strip(), -bound
    if turned:
        sign = _FLIP.get(sign, sign)
    segments: tuple[Segment, ...]
    if distance:
        inside = (Segment(-bound, sign in "<>", bound, sign in "<>"),)
        outside = (Segment(-oo, True, -bound, sign in "<>"), Segment(bound, sign in "<>", oo, True))
        return Range(inside if sign in ("<", "\\leq") else outside, distance[1], True) if bound else None
    if sign == "=":
        segments = (Segment(bound, False, bound, False),)
    elif sign == "\\neq":
        segments = (Segment(-oo, True, bound, True), Segment(bound, True, oo, True))
    elif sign in ("<", "\\leq"):
        segments = (Segment(-oo, True, bound, sign == "<"),)
    else:
        segments = (Segment(bound, sign == ">", oo, True),)
    return Range(segments, variable, sign != "=")


def _bound(text: str) -> Expr | None:
    text = text.strip()
    if re.fullmatch(r"\+?\s*\\infty", text):
        return oo
    if re.fullmatch(r"-\s*\\infty", text):
        return -oo
    if not text or _RELATION.search(text) or "\\infty" in text:
        return None
    parsed = values.parse_expression(text)
    return parsed if isinstance(parsed, Expr) else None


def _less(a: Expr, b: Expr) -> bool | None:
    if a == -oo and b != -oo or b == oo and a != oo:
        return True
    if a == oo or b == -oo:
        return False
    try:
        order = values.exact(a - b).evalf(30)
        return bool(order < 0) if order.is_number and order.is_real else None
    except MemoryError:
        raise
    except Exception:
        return None


def _normal(segments: tuple[Segment, ...]) -> tuple[Segment, ...] | None:
    """Sorted and merged where they touch; None when bounds cannot be ordered."""
    for s in segments:
        if s.low != s.high and _less(s.low, s.high) is None:
            return None
    ordered: list[Segment] = []
    for segment in segments:
        position = 0
        while position < len(ordered) and _less(ordered[position].low, segment.low):
            position += 1
        ordered.insert(position, segment)
    merged: list[Segment] = []
    for s in ordered:
        if merged:
            last = merged[-1]
            touches = values.same_parsed(last.high, s.low) and not (last.high_open and s.low_open)
            if touches or _less(s.low, last.high):
                longer = s if _less(last.high, s.high) or (not s.high_open and not _less(s.high, last.high)) else last
                starts_open = last.low_open and (s.low_open or bool(_less(last.low, s.low)))
                merged[-1] = Segment(last.low, starts_open, longer.high, longer.high_open)
                continue
        merged.append(s)
    return tuple(merged)


def _complement(segments: tuple[Segment, ...]) -> tuple[Segment, ...] | None:
    normal = _normal(segments)
    if normal is None:
        return None
    gaps, low, low_open = [], -oo, True
    for s in normal:
        if s.low != -oo:
            gaps.append(Segment(low, low_open, s.low, not s.low_open))
        low, low_open = s.high, not s.high_open
    if low != oo:
        gaps.append(Segment(low, low_open, oo, True))
    return tuple(gaps)


def _intersect(left: tuple[Segment, ...], right: tuple[Segment, ...]) -> tuple[Segment, ...] | None:
    left_gaps, right_gaps = _complement(left), _complement(right)
    return None if left_gaps is None or right_gaps is None else _complement(left_gaps + right_gaps)


def same_range(gold: Range, answer: Range) -> bool:
    """Whether two ranges are the same set (and about the same variable, when both name one)."""
    if gold.variable and answer.variable and gold.variable.strip() != answer.variable.strip():
        return False
    left, right = _normal(gold.segments), _normal(answer.segments)
    if left is None or right is None:
        left, right = gold.segments, answer.segments
    return len(left) == len(right) and all(
        a.low_open == b.low_open
        and a.high_open == b.high_open
        and values.same_parsed(a.low, b.low)
        and values.same_parsed(a.high, b.high)
        for a, b in zip(left, right)
    )


def is_complement(one: Range, other: Range | None) -> bool:
    """Whether two ranges share no number and leave none out."""
    outside = _complement(one.segments)
    return other is not None and outside is not None and same_range(Range(outside, one.variable, True), other)
