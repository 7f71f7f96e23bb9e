"""The table of judgements (cases.txt) through the real workers."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from openrlhf_orz.reward.rules import JUDGE_RULES, RULES

from .conftest import read_cases, response

CASES = read_cases()
KINDS = sorted({case.kind for case in CASES})


def test_the_table_is_large_and_has_no_case_twice():
    assert len(CASES) >= 400
    assert len({(case.gold, case.answer) for case in CASES}) == len(CASES)
    assert sum(case.hack for case in CASES) >= 80


@pytest.fixture(scope="module")
def graded(grader):
    """Each case of the table with its grade."""
    with ThreadPoolExecutor(4) as threads:
        return list(zip(CASES, threads.map(lambda case: grader.grade(response(case.answer), case.gold), CASES)))


@pytest.mark.parametrize("kind", KINDS)
def test_verdicts(graded, kind):
    wrong = [
        (case.gold, case.answer, grade.verdict.label, grade.rule)
        for case, grade in graded
        if case.kind == kind and bool(grade.reward) != case.right
    ]
    assert wrong == []


@pytest.fixture(scope="module")
def readable(grader):
    """The references that can be read."""
    golds = list(dict.fromkeys(case.gold for case in CASES))
    with ThreadPoolExecutor(4) as threads:
        return {gold for gold, read in zip(golds, threads.map(grader.check_reference, golds)) if read}


@pytest.mark.parametrize("kind", KINDS)
def test_references_can_be_read(readable, kind):
    assert {case.gold for case in CASES if case.kind == kind} - readable == set()


def test_references_that_are_no_answers_are_found(grader):
    bad = ["", "  ", r"\frac{", "5)", "x =", "$$", "(", "7" * 10_000]
    bad += ["2 + 3 gives 5 because 5 - 3 = 2", r"$x = 4$, since $2x = 8$", r"\text{Thus we get } 12"]
    assert [gold for gold in bad if grader.check_reference(gold)] == []


def test_every_rule_decides_a_case_of_the_table(graded):
    deciding = {grade.rule for _, grade in graded}
    assert [name for name in JUDGE_RULES if name not in deciding] == []
    assert deciding - {None} <= set(RULES)


def test_plain_is_math_verify_alone(plain_grader):
    # Math-Verify cuts a relation to its right side and rounds to six places
    assert plain_grader.grade(response("72=73"), "73").reward == 1
    assert plain_grader.grade(response("0.333333"), r"\frac{1}{3}").reward == 1
    assert plain_grader.grade(response("74"), "73").reward == 0


def test_symmetric_kinds_are_symmetric(grader):
    """Numbers, expressions and matrices do not care which side is the reference.

    But for one rule: a reference written as a long decimal is taken for a rounding.
    """
    kinds = {"fractions", "scientific", "roots and constants", "algebra", "matrices"}
    cases = [case for case in CASES if case.kind in kinds and not re.fullmatch(r"\d\.\d{5,}", case.answer)]
    with ThreadPoolExecutor(4) as threads:
        grades = list(threads.map(lambda case: grader.grade(response(case.gold), case.answer), cases))
    assert [(c.gold, c.answer) for c, g in zip(cases, grades) if bool(g.reward) != c.right] == []
