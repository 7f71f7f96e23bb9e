"""The Grader with a stand-in for its workers: what it decides itself, and what it asks them."""

import pytest

from openrlhf_orz.reward import Grader, Verdict
from openrlhf_orz.reward.grader import MAX_GOLD_CHARS
from openrlhf_orz.reward.rules import rule_number
from openrlhf_orz.reward.verifiers import ReasoningGym
from openrlhf_orz.reward.workers import wire


class RecordingPool:
    """Has one reply for all questions, and keeps them."""

    def __init__(self, reply):
        self.reply, self.asked = reply, []

    def ask(self, *question):
        self.asked.append(question)
        return self.reply

    def close(self):
        pass


def grader_with(reply=(Verdict.WRONG, 0), kind=Grader, **options):
    made = kind(**options)
    made._own = RecordingPool(reply)
    return made


@pytest.mark.parametrize(
    "response, graded",
    [
        (r"<answer>\boxed{1} \boxed{2}</answer>", "2"),  # the last box
        (r"<answer>\boxed{1}</answer> <answer>\boxed{2}</answer>", "2"),  # of the last block
        (r"<answer>\boxed{2}</answer> <answer>\boxed{1}", "2"),  # that is closed
        (r"\boxed{1} <answer>\boxed{2}</answer> \boxed{1}", "2"),
        (r"<answer>\boxed{1} \boxed{\boxed{2}}</answer>", "2"),
    ],
)
def test_the_last_box_of_the_last_block_is_graded(response, graded):
    grader = grader_with()
    right, wrong = grader.grade(response, "2"), grader.grade(response, "1")
    assert (right.verdict, right.reward, right.extracted) == (Verdict.RIGHT, 1.0, graded)
    assert (wrong.verdict, wrong.reward, wrong.extracted) == (Verdict.WRONG, 0.0, graded)
    assert [question[1:] for question in grader.pool.asked] == [("1", graded)]


@pytest.mark.parametrize("response", ["2", r"\boxed{2}", "<answer>2</answer>", r"<answer>\boxed{2}\boxed{}</answer>"])
def test_without_an_answer_no_worker_is_asked(response):
    grader = grader_with()
    assert grader.grade(response, "2").verdict is Verdict.NO_ANSWER
    assert grader.pool.asked == []


def test_only_a_response_that_stopped_earns_a_reward():
    for reply, reward in (((Verdict.RIGHT, 0), 1.0), ((Verdict.WRONG, 0), 0.0), ((Verdict.TIMEOUT, 0), 0.0)):
        grader = grader_with(reply)
        grades = [grader.grade(r"<answer>\boxed{2}</answer>", "4", stopped=stopped) for stopped in (True, False)]
        assert [grade.reward for grade in grades] == [reward, 0.0]
        assert [grade.verdict for grade in grades] == [reply[0]] * 2


def test_agreement_of_boxes_is_required_only_when_asked_for():
    different, same = r"<answer>\boxed{1} \boxed{2}</answer>", r"<answer>\boxed{x+1} \boxed{x + 1}</answer>"
    strict, usual = grader_with(require_agreement=True), grader_with()
    grade = strict.grade(different, "2")
    assert (grade.verdict, grade.rule, grade.reward) == (Verdict.WRONG, "boxes_disagree", 0.0)
    assert strict.grade(same, "x + 1").reward == usual.grade(different, "2").reward == 1.0


@pytest.mark.parametrize("plain", [False, True])
def test_the_worker_is_asked_for_rules_or_for_math_verify_alone(plain):
    grader = grader_with((Verdict.RIGHT, rule_number("words")), plain=plain)
    assert grader.compare("2", "4") == (Verdict.RIGHT, "2", "words")
    assert grader.check_reference("4")
    tasks = (wire.JUDGE_PLAIN, wire.CHECK_REFERENCE_PLAIN) if plain else (wire.JUDGE, wire.CHECK_REFERENCE)
    assert grader.pool.asked == [(tasks[0], "4", "2"), (tasks[1], "4", "")]


def test_equal_strings_are_right_but_for_math_verify_alone():
    usual, plain = grader_with(), grader_with(plain=True)
    assert usual.compare("4", " 4 ") == (Verdict.RIGHT, "4", "identical")
    assert plain.compare("4", " 4 ") == (Verdict.WRONG, "4", None)
    assert (len(usual.pool.asked), len(plain.pool.asked)) == (0, 1)


def test_a_blank_or_too_long_reference_is_not_sent():
    grader = grader_with((Verdict.RIGHT, 0))
    longest = "7" * MAX_GOLD_CHARS
    for gold in ("", " ", longest + "7"):
        assert grader.compare("4", gold) == (Verdict.UNPARSABLE, "4", "reference")
        assert grader.reference_verdict(gold) is Verdict.UNPARSABLE and not grader.check_reference(gold)
    assert grader.pool.asked == []
    assert grader.compare("4", longest)[0] is Verdict.RIGHT and grader.check_reference(longest)


def test_the_verdict_on_a_reference_says_why():
    for verdict in Verdict:
        grader = grader_with((verdict, 0))
        assert grader.reference_verdict("4") is verdict
        assert grader.check_reference("4") is (verdict is Verdict.RIGHT)


def test_reasoning_gym_sends_entries_and_short_answers_only():
    grader = grader_with((Verdict.RIGHT, rule_number("reasoning_gym")), kind=ReasoningGym)
    entry = '{"answer": "4", "metadata": {"source_dataset": "chain_sum"}}'
    assert grader.compare("4", entry) == (Verdict.RIGHT, "4", "reasoning_gym")
    assert grader.compare("4" * 1001, entry) == (Verdict.REFUSED, "4" * 1001, "length")
    unreadable = (
        "",
        "{}",
        "[1]",
        entry.replace("4", " "),
        '{"metadata": {"source_dataset": 1}}',
        "[" * 100_000,
        entry + " " * 25_000,
    )
    for gold in unreadable:
        assert grader.compare("4", gold) == (Verdict.UNPARSABLE, "4", "reference")
    assert grader.pool.asked == [(wire.REASONING_GYM, entry, "4")]


def test_a_reference_may_be_a_number():
    grader, text = grader_with(), r"<think> </think> <answer> \boxed{4} </answer>"
    assert grader.grade(text, 4).verdict is Verdict.RIGHT
    assert grader.grade(text, 4.5).verdict is Verdict.WRONG and grader._own.asked[-1][1:] == ("4.5", "4")
