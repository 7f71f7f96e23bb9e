"""Rules for single things: numbers, percent, units, words, times, expressions."""

from __future__ import annotations

import re
from fractions import Fraction

from openrlhf_orz.reward.judge import shapes, values
from openrlhf_orz.reward.judge.brackets import TEXT
from openrlhf_orz.reward.judge.quantity import fraction, number, prime_powers, split_unit, units_agree
from openrlhf_orz.reward.judge.words import date_of
from openrlhf_orz.reward.rules import Decision, agree_by_rules, decide_by_rules

_HEDGE = re.compile(
    r"(?i)(?<![\\a-zA-Z])(?:not|about|approximately|almost|nearly|roughly|around|maybe|perhaps|possibly|probably|either)(?![a-zA-Z])"
)
_GLUED = re.compile(r"[\d})]\\text\{[a-zA-Z]")
_TO = re.compile(r"\s*(?:\\text\{\s*to\s*\}|\bto\b)\s*")
_DECIMAL = re.compile(r"-?(\d*)\.(\d+)(?:\s*(?:[eE]|(?:\\times|\\cdot|\*)\s*10\s*\^)\s*\{?\s*([+-]?\d{1,4})\s*\}?)?")
_SELECTION = re.compile(r"\\(?:min|max|sup)(?![a-zA-Z])")  # the answer leaves the choice to the grader
_CHOOSE = re.compile(r"(?<![a-zA-Z\\])C\s*\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)")
_VARIABLE = re.compile(r"(?<![\\a-zA-Z])[a-df-hj-z](?![a-zA-Z])")  # not e and i


def unfinished_rule(gold: str, answer: str) -> Decision:
    """Dots do not complete an answer that the reference writes out, and a hedge is none."""
    if "\\ldots" in answer and "\\ldots" not in gold:
        return False
    hedged = _HEDGE.search(answer) and not _HEDGE.search(gold)
    return False if hedged and not shapes.option_of(answer) and not shapes.words_of(gold) else None


def clock_rule(gold: str, answer: str) -> Decision:
    """Dates, times and ratios: `1:58 am` is not `1:58 pm`; 3:4 is 6:8 and 3/4."""
    date = date_of(gold)
    if date:
        return date == date_of(answer)
    clocks = [shapes.clock_of(_TO.sub(":", text)) for text in (gold, answer)]
    (left, timed), (right, at) = (clock or ((), False) for clock in clocks)
    if not left or not right:
        value = number(answer)
        if len(left) == 2 and left[1] and value is not None and not timed:
            return value * left[1] == left[0]
        return False if at or left and value is not None else None
    seconds = "00" if timed or at else next((text[-2:] for text in (gold, answer) if text.count(":") == 2), "")
    if left == right or seconds == "00" and (*left, 0)[:3] == (*right, 0)[:3]:
        return True
    looks_like_time = timed or at or any(part < 10 and f"0{part}" in gold + answer for part in left + right)
    if looks_like_time or len(left) != len(right) or 0 in left + right:
        return False
    return all(a * right[0] == b * left[0] for a, b in zip(left, right))


def exact_number_rule(gold: str, answer: str) -> Decision:
    """Numbers are equal exactly: no rounding of an exact reference, no absolute tolerance."""
    left, right = number(gold), number(answer)
    if left is None or right is None:
        if "^" not in gold + answer:
            return None
        powers = prime_powers(gold), prime_powers(answer)
        return None if None in powers else powers[0] == powers[1]
    decimal = "." in answer and "\\overline" not in answer
    half = None if decimal else _half_place(gold)  # an exact answer that rounds to a long decimal is right
    return left == right or half is not None and abs(left - right) <= half


def _half_place(text: str) -> Fraction | None:
    """Half of the last place of a decimal with six or more digits, None for other numbers."""
    match = _DECIMAL.fullmatch(text)
    if not match or len((match[1] + match[2]).lstrip("0")) < 6:
        return None
    return Fraction(10) ** (int(match[3] or 0) - len(match[2])) / 2


def percent_rule(gold: str, answer: str) -> Decision:
    """`5%` is 5 where percent was asked for, and 0.05; 500% is not 5."""
    asked, given = gold.endswith("\\%"), answer.endswith("\\%")
    if not (asked or given) or "=" in gold + answer:
        return None
    left, right = gold.removesuffix("\\%").strip(), answer.removesuffix("\\%").strip()
    if asked and given:
        return decide_by_rules(left, right)[0]
    body, other = (left, right) if asked else (right, left)
    if split_unit(other)[1]:
        return False
    plain, share = number(split_unit(body)[0]), number(split_unit(other)[0])
    if plain is None or share is None:
        sides = [f"\\frac{{{side}}}{{100}}" if side is body else side for side in (left, right)]
        return agree_by_rules(left, right) or bool(values.same_value(*sides))
    if plain == share:
        return True
    large_whole = share.denominator == 1 and abs(share) > 1
    return plain == 100 * share and not large_whole


def base_rule(gold: str, answer: str) -> Decision:
    """A base is part of a number: `1011_2` is not `1011_3`; without one the digits count."""
    left, right = shapes.base_of(gold), shapes.base_of(answer)
    based = left or right
    if based is None or "=" in answer:
        return None
    if left and right:
        return left == right
    return based[0] == re.sub(r"\s|\\text|[{}]", "", answer if left else gold).upper()


def choice_rule(gold: str, answer: str) -> Decision:
    """A choice letter is that letter, bare or in text or brackets; `E` is not Euler's number."""
    wanted, given = shapes.option_of(gold), shapes.option_of(answer)
    if wanted is None or wanted.letter not in gold:
        return None
    if given is None:
        return decide_by_rules(wanted.content, answer)[0] if wanted.content else False if wanted.wrapped else None
    if given.letter not in answer and not (wanted.wrapped or "\\text" in answer):
        return False
    both = wanted.content and given.content
    other = both and decide_by_rules(wanted.content, given.content)[0] is False
    return wanted.letter == given.letter and not other


def words_rule(gold: str, answer: str) -> Decision:
    """A reference in words is compared as words, letters in order: `abc` is not `acb`."""
    left, right = shapes.words_of(gold), shapes.words_of(answer)
    if left is None or right is None and "=" in answer:
        return None
    if right is None:
        if re.search(r"^\W*[-+<>]|[\d^*<>]", answer):
            return False
        right = re.sub(r"[^a-z ]", "", answer.casefold().replace("\\text", "")).strip()
    return left == right or (left.replace(" ", "") == right.replace(" ", "") and len(left) > 2)


def unit_rule(gold: str, answer: str) -> Decision:
    """Units, currency and degrees may be left out, never exchanged: cm is not m."""
    g_body, g_unit, g_sure = split_unit(gold)
    a_body, a_unit, a_sure = split_unit(answer)
    if g_unit is not None and not g_sure and number(answer) is not None:
        g_body, g_unit = gold, None
    if a_unit is not None and not a_sure and number(a_body) is None:
        a_body, a_unit = answer, None
    if g_unit is None and a_unit is None:
        return None if g_body == gold and a_body == answer else decide_by_rules(g_body, a_body)[0]
    if g_unit is None and a_unit and a_unit.dimension.startswith("word:") and _GLUED.search(answer):
        return False  # 73\\text{abc}
    kinds = {unit.dimension for unit in (g_unit, a_unit) if unit}
    if kinds == {"angle", "radian"} or kinds == {"angle"} and ("\\pi" in g_body) != ("\\pi" in a_body):
        radians = "\\pi" in a_body or a_unit is not None and a_unit.dimension == "radian"
        in_degrees, in_radians = (g_body, a_body) if radians else (a_body, g_body)
        return bool(values.same_value(f"({in_degrees})\\cdot \\frac{{\\pi}}{{180}}", in_radians))
    factor = units_agree(g_unit, a_unit)
    if factor is None:
        return False
    if factor == 1:
        return decide_by_rules(g_body, a_body)[0]
    exact = number(a_body)  # 2 1/2 is a mixed number to `number` alone
    times = fraction(factor if exact is None else factor * exact)
    return decide_by_rules(g_body, times if exact is not None else f"({a_body})\\cdot {times}")[0]


def _same_pieces(gold: str, answer: str) -> bool:
    """Mathematics with words: the words are equal, and so is what stands between them, in this order."""
    left, right = TEXT.split(gold), TEXT.split(answer)
    words = [[shapes.words_of(f"\\text{{{piece}}}") for piece in side[1::2]] for side in (left, right)]
    between = zip(left[::2], right[::2])
    return words[0] == words[1] and all(a.strip() == b.strip() or agree_by_rules(a, b) for a, b in between)


def expression_rule(gold: str, answer: str) -> Decision:
    """Expressions are equal when they have one value everywhere, to 50 digits."""
    if "\\text" in gold + answer:
        return _same_pieces(gold, answer)
    wanted = number(gold)
    if wanted is not None and (_VARIABLE.search(answer) or re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{4,}", answer)):
        return False
    if _SELECTION.search(answer) and not _SELECTION.search(gold):
        return False
    if not re.search(r"[\^!]", answer):
        answer = _CHOOSE.sub(r"\\binom{\1}{\2}", answer)
    half = _half_place(gold) if "." not in answer else None
    if wanted is not None and half is not None:  # 0.866025 is \frac{\sqrt{3}}{2}
        return values.within_distance(answer, wanted, half)
    return values.same_value(gold, answer)
