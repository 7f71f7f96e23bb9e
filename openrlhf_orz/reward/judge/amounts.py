"""Several numbers with their words: compound quantities, counts of things, remainders."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from openrlhf_orz.reward.judge import shapes
from openrlhf_orz.reward.judge.brackets import spoken
from openrlhf_orz.reward.judge.quantity import DECIMAL, UNITS, fraction, number, singular, split_unit, unit_of
from openrlhf_orz.reward.rules import Decision, agree_by_rules

_AMOUNT = re.compile(
    rf"\s*(?:(?P<number>-?(?:(?:\d+\s*)?\\frac\{{[^{{}}]*\}}\{{[^{{}}]*\}}|(?:\d+ +)?\d+\s*/\s*\d+|{DECIMAL}))"
    r"|(?P<word>[A-Za-z]+(?:['-][A-Za-z]{2,})*\.?|\\\$|\^\\circ)|(?P<gap>[,;:=&]|\\&))\s*"
)


class Amounts(NamedTuple):
    """Numbers with words between them, such as ``3 hours 20 minutes`` or ``4 red and 7 blue``.

    ``words`` are all of them in order, numbers as fractions. ``parts`` is the size of each dimension or noun in base
    units, None if numbers and units do not pair.
    """

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
            words.append(value.value)
        elif match["word"] and match["word"].lower() not in ("and", "quotient"):
            words.append({"r": "remainder", "rem": "remainder"}.get(match["word"].lower().strip("."), match["word"]))
    numbers = [word for word in words if isinstance(word, Fraction)]
    said = [word for word in words if isinstance(word, str)]
    if len(numbers) < 2 or not any(len(word) > 2 or len(word) > 1 and singular(word) in UNITS for word in said):
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
        numbers = [value and value.value for value in map(number, listed.parts)]
        return numbers == [word for word in left.words if isinstance(word, Fraction)]
    return None if right and listed else False
