"""Properties of the grader for any text (hypothesis, when it is installed)."""

import os
import time

import pytest

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from openrlhf_orz.reward import Verdict, extract_answer, guards, has_format
from openrlhf_orz.reward.judge.notation import tidy_latex

from .conftest import crowd, read_cases, response

# The same examples on every machine and run; ORZ_PROPERTY_EXAMPLES=20000 explores others.
EXPLORE = int(os.environ.get("ORZ_PROPERTY_EXAMPLES", "0"))
COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": not EXPLORE, "database": None}
SOME = settings(max_examples=EXPLORE or 150, **COMMON)
FEW = settings(max_examples=EXPLORE or 60, **COMMON)

any_text = st.text(st.characters(exclude_categories=()), max_size=300)  # lone surrogates too
PIECES = r"""
\frac \sqrt \boxed { } ( ) [ ] ^ _ 1 2 73 x n + - = < \leq , ; \cup \infty \pi \text{cm} \% % $ \$ \{ \} or and . ! \pm
\\ & | \left( \right) \begin{pmatrix} \end{pmatrix} ° / <answer> </answer> \sin i e :
"""
latex = st.lists(st.sampled_from([" ", *PIECES.split()]), max_size=25).map("".join)
ANSWERS = [case.answer for case in read_cases()]


@FEW
@given(text=st.one_of(any_text, latex), gold=st.one_of(any_text, latex, st.sampled_from(["73", "x+1", "(1,2]"])))
def test_grade_never_raises_and_keeps_its_deadline(grader, text, gold):
    begin = time.monotonic()
    grade = grader.grade(text, gold)
    boxed = grader.grade(response(text), gold)
    assert time.monotonic() - begin < 10 * crowd()
    for result in (grade, boxed):
        assert result.verdict in Verdict
        assert result.reward == float(result.verdict is Verdict.RIGHT)


@SOME
@given(st.one_of(any_text, latex))
def test_pure_parts_never_raise(text):
    extract_answer(text)
    extract_answer(response(text), require_agreement=True)
    has_format(text)
    guards.refusal("73", text)
    tidy_latex(text)


@SOME
@given(before=any_text, after=any_text, answer=st.sampled_from(ANSWERS))
def test_text_outside_the_answer_block_changes_nothing(before, after, answer):
    block = f"<answer> \\boxed{{{answer}}} </answer>"
    tags = ("<answer>", "</answer>")
    if not any(tag in (before + block + after).replace(block, "") for tag in tags):
        assert extract_answer(before + block + after) == extract_answer(block)


@SOME
@given(st.one_of(latex, any_text))
@example("\\" * 5 + "frac")
def test_tidying_twice_changes_nothing_more(text):
    once = tidy_latex(text)
    assert tidy_latex(once) == once


@FEW
@given(n=st.integers(-(10**12), 10**12), m=st.integers(-(10**12), 10**12))
def test_integers_are_right_when_equal(grader, n, m):
    assert grader.grade(response(f"{n:,}"), str(n)).reward == 1
    assert grader.grade(response(str(m)), str(n)).reward == float(n == m)


@FEW
@given(p=st.integers(-999, 999), q=st.integers(1, 999), k=st.integers(1, 9))
def test_fractions_do_not_depend_on_their_terms(grader, p, q, k):
    gold = f"\\frac{{{p}}}{{{q}}}"
    assert grader.grade(response(f"{p * k}/{q * k}"), gold).reward == 1
    assert grader.grade(response(f"{p * k + 1}/{q * k}"), gold).reward == 0


@FEW
@given(values=st.lists(st.integers(-99, 99), min_size=2, max_size=6, unique=True), chance=st.randoms())
def test_lists_are_unordered_and_tuples_are_not(grader, values, chance):
    shuffled = chance.sample(values, len(values))
    gold, answer = (", ".join(map(str, v)) for v in (values, shuffled))
    assert grader.grade(response(answer), gold).reward == 1
    assert grader.grade(response(f"\\{{{answer}\\}}"), gold).reward == 1
    assert grader.grade(response(f"({answer})"), f"({gold})").reward == float(values == shuffled)
    assert grader.grade(response(answer), str(values[0])).reward == 0
    assert grader.grade(response(", ".join(map(str, values[1:]))), gold).reward == 0


@FEW
@given(response_text=latex)
def test_cut_responses_earn_nothing(grader, response_text):
    assert grader.grade(response(response_text), "73", stopped=False).reward == 0
