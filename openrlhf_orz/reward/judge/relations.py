"""The rule for equations and other relations."""

from __future__ import annotations

import re
from typing import Any

from openrlhf_orz.reward.judge import ranges, shapes, values
from openrlhf_orz.reward.judge.quantity import number, split_unit
from openrlhf_orz.reward.rules import Decision, agree_by_rules, decide_by_rules

_FUNCTION = re.compile(r"([a-zA-Z]'*)\s*\(\s*([a-df-hj-z])\s*\)$")
_SUM = re.compile(r"[-+*/^]|\\(?:frac|cdot|times|sqrt)(?![a-zA-Z])")


def relation_rule(gold: str, answer: str) -> Decision:
    """A relation is more than its right side: `72=73`, `x^2=73` and `\\neq 73` are not 73."""
    g_sides, g_signs = shapes.relations(gold)
    a_sides, a_signs = shapes.relations(answer)
    if not g_signs and not a_signs:
        return None
    if g_signs == a_signs == ["="]:
        a_sides = _same_argument(g_sides, a_sides)
    if not g_signs:
        return _value_of_chain(gold, a_sides, a_signs)
    if set(g_signs) <= {"=", "\\approx"} and all(map(_is_number, g_sides)):  # 0.56 = 56\%
        stated = [side for side in a_sides if not shapes.is_label(side)]
        return bool(stated) and all(any(agree_by_rules(side, given) for side in g_sides) for given in stated)
    if set(g_signs) <= {"=", "\\approx"}:
        return _against_equation(gold, g_sides, g_signs, answer, a_sides, a_signs)
    return None if a_signs else False


def _value_of_chain(gold: str, sides: list[str], signs: list[str]) -> Decision:
    if "\\in" in signs:
        return decide_by_rules(gold, sides[-1])[0] if signs == ["\\in"] and shapes.is_label(sides[0]) else False
    if set(signs) - {"=", "\\approx", "\\equiv", "\\sim"}:
        return None if ranges.parse_range(gold) else False
    named = [n for n, side in enumerate(sides) if shapes.is_label(side) and (n == 0 or not agree_by_rules(gold, side))]
    stated = [n for n in range(len(sides)) if n not in named]
    if not stated:
        # an equation between symbols: a value only if the reference is one of its sides, after a name
        return len(sides) == 2 and signs == ["="] and shapes.is_label(sides[0]) and agree_by_rules(gold, sides[1])
    if not named and len({shapes.label_key(sides[n]) for n in stated}) < len(stated):
        return False  # 73 = 73 says nothing
    # what stands behind an approximation sign is a rounding, unless that is what the reference is
    exact = [n for n in stated if n == 0 or signs[n - 1] in ("=", "\\equiv")]
    rounded = [n for n in stated if n not in exact]
    if exact and all(decide_by_rules(gold, sides[n])[0] for n in exact):
        return all(values.may_be_rounding(gold, sides[n]) for n in rounded)
    return re.search(r"\.\d", gold) is not None and any(agree_by_rules(gold, sides[n]) for n in rounded)


def _same_argument(gold: list[str], answer: list[str]) -> list[str]:
    """The answer's `f(t) = 2t+5` in the letter of `f(x) = 2x+5`."""
    wanted, given = _FUNCTION.match(gold[0]), _FUNCTION.match(answer[0])
    if not wanted or not given or wanted[1] != given[1]:
        return answer
    there, here = (re.compile(rf"(?<![\\a-zA-Z]){call[2]}(?![a-zA-Z])") for call in (wanted, given))
    if not there.search(gold[1]) or there.search(answer[1]):
        return answer
    return [gold[0], here.sub(f" {wanted[2]} ", answer[1])]


def _is_number(side: str) -> bool:
    return number(split_unit(side.removesuffix("\\%"))[0]) is not None


def _against_equation(gold, g_sides, g_signs, answer, a_sides, a_signs) -> Decision:
    if shapes.items_of(gold) or shapes.items_of(answer):
        return None
    if g_signs == a_signs == ["="] and [*map(shapes.label_key, g_sides)] == [*map(shapes.label_key, a_sides[::-1])]:
        return True
    named = shapes.is_label(g_sides[0], strict=True)
    implicit = g_sides[1:] == ["0"] and len(_symbols(g_sides[0])) > 1
    value = g_sides[-1] if g_signs[-1] == "=" else g_sides[-2]
    if a_signs and a_signs[0] == "\\approx" and not a_sides[0] and "\\approx" not in g_signs:
        return False
    if not a_signs:
        return agree_by_rules(value, answer) if named else False
    if set(a_signs) - {"=", "\\approx"}:
        return False
    if named and not implicit:
        if not shapes.is_label(a_sides[0]) and shapes.is_label(a_sides[-1]):
            a_sides = a_sides[::-1]
        constant = not _symbols(value)
        called = re.search(r"\($|\)$", a_sides[0]) is not None
        if shapes.is_label(a_sides[0]) and (constant or called or not _symbols(a_sides[0]) & _symbols(a_sides[-1])):
            names = [shapes.label_key(sides[0]) for sides in (g_sides, a_sides)]
            letters = [re.fullmatch(r"\\?[a-zA-Z]+'*(?:_\w)?", name) for name in names]
            if names[0] != names[1]:
                others = all(letters) and (constant or not set(names) <= {"y", "f"})
                if others or not any(letters) and values.same_value(g_sides[0], a_sides[0]) is False:
                    return False
            solved = names[0] == names[1] or not any(letters) or not _SUM.search(names[0] + names[1])
            if solved and decide_by_rules(value, a_sides[-1] if a_signs[-1] == "=" else a_sides[-2])[0]:
                return True
        if constant:
            return False  # an unsolved equation restates the question
    if len(g_sides) == 2 and len(a_sides) == 2:
        return _same_equation(g_sides, a_sides)
    return None


def _symbols(text: str) -> frozenset:
    parsed = values.parse_expression(text)
    return frozenset(s.name for s in getattr(parsed, "free_symbols", ()))


@values.none_on_error
def _same_equation(gold: list[str], answer: list[str]) -> Decision:
    """Equal up to a constant factor; never for an answer that always holds."""
    parsed: Any = map(values.parse_expression, (*gold, *answer))
    left, left_side, right, right_side = parsed
    difference, other = values.exact(left - left_side), values.exact(right - right_side)
    if values.evaluate_equal(other, other * 2):
        return False
    symbols = difference.free_symbols | other.free_symbols
    points = [values.sample_point(symbols, seed) for seed in values.POSITIVE_SEEDS]
    ratios = [ratio for point in points if (ratio := values.number_at(difference / other, point)) is not None]
    same = len(ratios) == len(points) and all(abs(ratio - ratios[0]) <= abs(ratios[0]) / 10**30 for ratio in ratios)
    return bool(ratios[0] != 0) if same else None
