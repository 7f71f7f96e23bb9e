"""Is this answer the reference? Math-Verify and the mends around it; runs in a worker.

The rules named in :mod:`mends` look at a reference and an answer, both tidied, and say right,
wrong or nothing. What none of them decides is ``verify(parse(gold), parse(answer))``.
"""

from __future__ import annotations

import functools
import re

from math_verify import LatexExtractionConfig, parse, verify

from openrlhf_orz.reward.judge import compare, lists, ranges, relations, scalars, shapes, values
from openrlhf_orz.reward.judge.brackets import balanced
from openrlhf_orz.reward.judge.notation import tidy
from openrlhf_orz.reward.judge.quantity import number, split_unit
from openrlhf_orz.reward.mends import MENDS
from openrlhf_orz.reward.verdict import Verdict

_FUNCTIONS = {**vars(scalars), **vars(lists), **vars(relations)}
compare.RULES[:] = [_FUNCTIONS[name] for name in MENDS]
_TIGHT = re.compile(r"\d,\d{3}")  # a thousands comma, or a list without spaces
_tidy_reference = functools.lru_cache(maxsize=512)(tidy)


def judge(gold: str, answer: str) -> tuple[Verdict, int]:
    """The verdict on ``answer`` and the number of the mend that decided, 0 if Math-Verify did."""
    tidy_gold, tidy_answer = _tidy_reference(gold), tidy(answer)
    if not balanced(shapes.unlettered(tidy_answer)) and balanced(shapes.unlettered(tidy_gold)):
        return Verdict.UNPARSABLE, 0  # f[x) = x
    decision, rule = compare.decide(tidy_gold, tidy_answer)
    if decision is False and _TIGHT.search(answer) and shapes.items(tidy_gold):
        decision, rule = compare.decide(tidy_gold, tidy(answer, thousands=False))
    if decision is not None:
        return (Verdict.RIGHT if decision else Verdict.WRONG), rule
    target = _parse_latex(tidy_answer)
    if not any(isinstance(part, str) for part in target):
        return (Verdict.RIGHT if verify(_parse_latex(tidy_gold), target, timeout_seconds=None) else Verdict.WRONG), 0
    return Verdict.UNPARSABLE, 0


@functools.lru_cache(maxsize=512)
def _parse_latex(span: str) -> list:
    """As :func:`_parse_span`, but never a number fished out of what is not LaTeX."""
    return parse("\\boxed{" + span + "}", [LatexExtractionConfig()], parsing_timeout=None)


@functools.lru_cache(maxsize=512)
def _parse_reference(gold: str) -> list:
    return _parse_span(gold)


def _parse_span(span: str) -> list:
    # Bare LaTeX would fall through to Math-Verify's search for a number in prose.
    return parse("\\boxed{" + span + "}", parsing_timeout=None)


def judge_plain(gold: str, answer: str) -> tuple[Verdict, int]:
    """What Math-Verify alone says, reference first."""
    target = _parse_span(answer)
    if not target or not _parse_reference(gold):
        return Verdict.UNPARSABLE, 0
    return (Verdict.RIGHT if verify(_parse_reference(gold), target, timeout_seconds=None) else Verdict.WRONG), 0


def check_reference(gold: str, plain: bool = False) -> tuple[Verdict, int]:
    """Whether ``gold`` can be parsed (as mathematics or words) and is right as its own answer."""
    if plain:
        return judge_plain(gold, gold)
    text = tidy(gold)
    if shapes.words(text) or shapes.choice(text) or shapes.clock(text) or number(split_unit(text)[0]):
        return Verdict.RIGHT, compare.IDENTICAL
    listed = shapes.items(text)
    if listed and listed.parts and all(check_reference(part)[0] is Verdict.RIGHT for part in listed.parts):
        return Verdict.RIGHT, compare.IDENTICAL
    sides, signs = shapes.relations(text)
    body = split_unit(sides[-1] if signs and shapes.is_label(sides[0]) else text)[0]
    for span in (text, body, body.removesuffix("\\%")):
        if values.parse(span) is not None or ranges.parse_range(span) or shapes.based(span):
            return Verdict.RIGHT, 0
    return (
        judge_plain(text, text)
        if _parse_latex(text) and not isinstance(_parse_latex(text)[0], str)
        else (Verdict.UNPARSABLE, 0)
    )
