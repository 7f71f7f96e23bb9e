"""Several numbers with their words: compound quantities, counts of things, remainders."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from openrlhf_orz.reward.judge import shapes
from openrlhf_orz.reward.judge.quantity import DECIMAL, UNITS, number, singular, split_unit, unit_of
from openrlhf_orz.reward.rules import Decision, agree_by_rules

_AMOUNT = re.compile(
    rf"\s*(?:(?P<number>-?(?:(?:\d+\s*)?\\frac\{{[^{{}}]*\}}\{{[^{{}}]*\}}|(?:\d+ +)?\d+\s*/\s*\d+|{DECIMAL}))"
    r"|(?P<word>[A-Za-z]+(?:['-][A-Za-z]{2,})*\.?|\\\$|\^\\circ)|(?P<gap>[,;:=&]|\\&))\s*"
)
_IN_TEXT = re.compile(r"\\text\{([^{}]*)\}")


@dataclass(frozen=True)
class Amounts:
    """Numbers with words between them, such as ``3 hours 20 minutes`` or ``4 red and 7 blue``.

    ``words`` are all of them in order, numbers as fractions. ``parts`` is the size of each unit or noun,
    None if they do not pair. ``total`` is the whole in base units of ``dimension``, None if it is no one measure.
    """

    words: tuple
    parts: dict[str, Fraction] | None = None
    dimension: str = ""
    total: Fraction | None = None


def amounts(text: str) -> Amounts | None:
    """``text`` (tidy) as two or more numbers with words, None if it has signs or is a plain list."""
    words: list[str | Fraction] = []
    flat, position = _IN_TEXT.sub(r" \1 ", text).replace("\\ ", " ").strip(), 0
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
    plain = Amounts(tuple(singular(word) if isinstance(word, str) else word for word in words))
    sized = [(unit.dimension, unit.size, n) for name, n in pairs if (unit := unit_of(name)) and unit.dimension]
    dimensions = {dimension for dimension, _, _ in sized}
    if label or len(sized) < len(pairs):
        return plain
    if len({unit[:2] for unit in sized}) < len(sized):
        return None if len(dimensions) == 1 else plain
    parts = {dimension: size * n for dimension, size, n in sized}
    whole = sum((size * n for _, size, n in sized), Fraction(0))
    return Amounts(plain.words, *((None, *dimensions, whole) if len(dimensions) == 1 else (parts,)))


def amounts_rule(gold: str, answer: str) -> Decision:
    """`3 hours 20 minutes` is 200 minutes; numbers keep their words, and words their order."""
    left, right = amounts(gold), amounts(answer)
    if left is None and right is None:
        return None
    if left and right:
        if None not in (left.total, right.total):
            return (left.dimension, left.total) == (right.dimension, right.total)
        return left.parts == right.parts if left.parts and right.parts else left.words == right.words
    whole, other = (left, answer) if left else (right, gold)
    if whole and whole.total is not None:
        body, unit, _ = split_unit(other)
        if unit is None or unit.dimension != whole.dimension:
            return False
        size = whole.total / unit.size
        exact = f"\\frac{{{size.numerator}}}{{{size.denominator}}}"
        return agree_by_rules(exact, body) if left else agree_by_rules(body, exact)
    listed = shapes.items_of(other)
    if left and left.parts and listed:
        values = [value and value.value for value in map(number, listed.parts)]
        return values == list(left.parts.values())[::-1]
    return None if right and listed else False
