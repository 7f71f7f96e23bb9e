"""Hostile answers: none is right, all are answered in time, none harms the next."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from openrlhf_orz.reward import Verdict, guards

from .conftest import crowd, read_cases, response
from .hostile import ROWS

SECONDS = 5.0  # on a core of its own; scaled by how crowded the machine is


def test_there_are_enough():
    assert len(ROWS) >= 80


@pytest.fixture(scope="module")
def grades(grader):
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda row: grader.grade(response(row[1]), "73"), ROWS))


def test_none_is_right(grades):
    assert [row for row, grade in zip(ROWS, grades) if grade.reward or grade.verdict is Verdict.RIGHT] == []


def test_all_are_answered_in_time(grades):
    late = [
        (row[0], ascii(row[1][:40]), round(g.ms)) for row, g in zip(ROWS, grades) if g.ms > 1e3 * SECONDS * crowd()
    ]
    assert late == []


@pytest.mark.parametrize("gold", [r"\frac{x+1}{2}", r"(2,5)", r"\text{Evelyn}", "x^2+y^2=1", "1,2,3"])
def test_nor_with_other_references(grader, gold):
    rows = [row for row in ROWS if guards.refusal(gold, row[1]) is None]
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda row: grader.grade(response(row[1]), gold), rows))
    assert [row for row, grade in zip(rows, results) if grade.reward] == []


def test_honest_answers_after_them_are_graded(grader, grades):
    assert grader.grade(response(r"\frac{146}{2}"), "73").reward == 1


def test_guards_take_no_time():
    begin = time.process_time()
    for _, answer in ROWS:
        guards.refusal("73", answer)
    assert time.process_time() - begin < 2


def test_guards_never_refuse_the_reference_itself():
    golds = [answer for _, answer in ROWS] + [case.gold for case in read_cases()]
    assert [gold[:40] for gold in golds if guards.refusal(gold, gold)] == []


def test_guards_refuse_no_honest_answer():
    above_a_limit = ("3^{6567340}", r"[2^{1/2^{1000}},\infty)", r"[4^{1/2^{1001}},\infty)")  # see below
    refused = [
        case
        for case in read_cases()
        if (case.right and guards.refusal(case.gold, case.answer))
        # a sum that stands in the reference may stand in the answer
        or (case.gold not in above_a_limit and guards.refusal("0", case.gold) not in (None, "unevaluated"))
    ]
    assert refused == []


@pytest.mark.parametrize(
    "answer, rule",
    [
        ("7" * 1001, "length"),
        ("73\x00", "control_characters"),
        ("\ud800", "control_characters"),
        ("(1+" * 9 + "1" + ")" * 9, "nesting"),
        ("- " * 8 + "1", "repetition"),
        ("7" * 61, "digits"),
        ("777 " * 90, "all_digits"),
        (r"\alpha\beta" * 51, "commands"),
        ("x+y+" * 76 + "z", "tokens"),
        (r"\def\a{\a}\a", "macros"),
        ("," * 101, "repetition"),
        ("a, " * 101, "elements"),
        ("& a" * 101, "matrix_cells"),
        (r"\int_0^1 x dx", "unevaluated"),
        ("9^{9^9}", "power"),
        ("2^{99999}", "power"),
        ("3000!", "factorial"),
        ("(9!)!", "factorial"),
        (r"\binom{100000}{5}", "combinatorial"),
    ],
)
def test_guards_name_their_rule(answer, rule):
    assert guards.refusal("73", answer) == rule


AT_THE_LIMIT = {
    "length": "x" * 1000,
    "control_characters": "x\ty\nz",
    "repetition": "-" * 7 + "1",
    "nesting": "(1+" * 8 + "1" + ")" * 8,
    "digits": "7" * 60,
    "all_digits": "77777 " * 50,
    "commands": r"\alpha+\beta+" * 50,
    "tokens": "x+y+" * 75,
    "macros": r"\definition",
    "elements": "a, " * 100,
    "matrix_cells": "& a" * 100,
    "unevaluated": r"\sin x",
    "power": "2^{9999}",
    "factorial": "2999!",
    "combinatorial": r"\binom{9999}{5}",
}


@pytest.mark.parametrize("guard", guards.GUARDS, ids=lambda guard: guard.name)
def test_guards_refuse_nothing_at_their_limit(guard):
    answer = AT_THE_LIMIT[guard.name]
    assert guard.measure(answer) == guard.limit
    assert guards.refusal("73", answer) is None


@pytest.mark.parametrize(
    "answer", ["2^{3^4}", "e^{x^2}", "x^{2023}", "10^{1000}", "2999!", "2^{2^n}", r"\sqrt[3]{2}", "7" * 60]
)
def test_guards_let_pass(answer):
    assert guards.refusal("73", answer) is None


def test_a_reference_lifts_its_own_guard(grader):
    assert grader.grade(response("3^{6567340}"), "3^{6567340}").reward == 1
    assert guards.refusal("3^{6567340}", "3^{6567341}") is None
    assert guards.refusal("3^{6567340}", "3^{65673411}") == "power"
    assert guards.refusal(r"\sum_{k=1}^n F_k", r"\sum_{j=1}^n F_j") is None


def test_this_process_parses_nothing():
    """Extraction and guards only: the engine's process never imports the parser."""
    code = "import sys; from openrlhf_orz.reward import Grader; Grader().close(); print('sympy' in sys.modules)"
    assert os.popen(f'"{os.sys.executable}" -c "{code}"').read().strip() == "False"
