"""Is this answer the reference? Runs in a worker.

The rules of :mod:`openrlhf_orz.reward.rules` see both in one notation. Math-Verify parses expressions for them, and
compares those that :mod:`~openrlhf_orz.reward.judge.values` cannot evaluate; alone it decides in ``judge_plain``.
"""

from __future__ import annotations

import functools
import re

from math_verify import parse, verify

from openrlhf_orz.reward.judge import families, lists, ranges, relations, scalars, shapes, values
from openrlhf_orz.reward.judge.brackets import balanced
from openrlhf_orz.reward.judge.notation import tidy_latex
from openrlhf_orz.reward.judge.quantity import number, split_unit
from openrlhf_orz.reward.judge.words import date_of
from openrlhf_orz.reward.rules import decide_by_rules, register_rules
from openrlhf_orz.reward.verdict import Verdict

# A function NAME_rule in one of these is the judge's rule NAME.
_ROOMS = (families, lists, relations, scalars)
register_rules((name.removesuffix("_rule"), function)
               for room in _ROOMS for name, function in vars(room).items() if name.endswith("_rule"))  # fmt: skip
_LETTER_BRACKET = re.compile(r"^(?:\\text\{)?\s*[A-Z]\s*\)")  # B) 17
_TIGHT = re.compile(r"\d,\d{3}")  # a thousands comma, or a list without spaces
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
_REASON = re.compile(r"(?<![\\a-zA-Z])(?:because|since|therefore|thus|hence|we)(?![a-zA-Z])", re.IGNORECASE)
_tidy_reference = functools.lru_cache(maxsize=512)(tidy_latex)


def judge_answer(gold: str, answer: str) -> tuple[Verdict, str]:
    """The verdict on ``answer`` and the name of the rule that decided, "" where none can read it."""
    tidy_gold, tidy_answer = _tidy_reference(gold), tidy_latex(answer)
    if not balanced(_LETTER_BRACKET.sub("", tidy_answer)) and balanced(_LETTER_BRACKET.sub("", tidy_gold)):
        return Verdict.UNPARSABLE, ""  # f[x) = x
    decision, rule = decide_by_rules(tidy_gold, tidy_answer)
    if decision is False and _TIGHT.search(answer) and shapes.items_of(tidy_gold):
        decision, rule = decide_by_rules(tidy_gold, tidy_latex(answer, thousands=False))
    if decision is None:
        return Verdict.UNPARSABLE, ""
    return (Verdict.RIGHT if decision else Verdict.WRONG), rule


@functools.lru_cache(maxsize=512)
def _parse_span(span: str) -> list:
    # without the box, Math-Verify would search for a number in prose
    return parse("\\boxed{" + span + "}", parsing_timeout=None)


def judge_plain(gold: str, answer: str) -> tuple[Verdict, str]:
    """The verdict of Math-Verify alone. The rule's name is always ""."""
    wanted, given = _parse_span(gold), _parse_span(answer)
    if not wanted or not given:
        return Verdict.UNPARSABLE, ""
    right = verify(wanted, given, timeout_seconds=None)
    return (Verdict.RIGHT if right else Verdict.WRONG), ""


def check_reference(gold: str, plain: bool = False) -> tuple[Verdict, str]:
    """Whether ``gold`` can be parsed (as mathematics or words) and is right as its own answer."""
    if plain:
        return judge_plain(gold, gold)
    text = tidy_latex(gold)
    solution = re.search(r"\d", text) and (len(_WORD.findall(text)) > 8 or _REASON.search(text))  # no answer is that
    return (Verdict.RIGHT, "") if not solution and _readable(text) else (Verdict.UNPARSABLE, "")


_KINDS = (shapes.words_of, shapes.option_of, shapes.clock_of, shapes.base_of, lists.amounts, date_of)


def _readable(text: str) -> bool:
    """Whether ``text`` (tidy) says something that the rules can compare."""
    body = split_unit(text)[0]
    if number(body) is not None or any(kind(text) for kind in _KINDS):
        return True
    if "\\begin{cases}" in text:
        text = re.sub(r"^.*?\\begin\{cases\}|\\end\{cases\}", "", text)
        return all(_readable(row.split("&")[0].strip()) for row in text.split("\\\\"))
    listed = shapes.items_of(text)
    if listed and listed.parts and all(map(_readable, listed.parts)):
        return True
    if "\\text" in body:  # mathematics with words between
        pieces = (piece.strip() for piece in re.split(r"\\text\{[^{}]*\}", body))
        return all(not piece or _readable(piece if balanced(piece) else piece.strip("()")) for piece in pieces)
    sides, signs = shapes.relations(text)
    body = split_unit(sides[-1])[0] if signs and shapes.is_label(sides[0]) else body
    spans = (text, body, body.removesuffix("\\%"))
    return any(values.parse_expression(span) is not None or ranges.parse_range(span) for span in spans)
