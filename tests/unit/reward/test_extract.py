"""Extraction and format by hand-written cases, and their time on long hostile texts."""

import time

import pytest

from openrlhf_orz.reward.extract import boxes, extract_answer, has_format, reference_of

THINK = "Let me see. </think> "


@pytest.mark.parametrize(
    "response, answer",
    [
        (THINK + r"<answer> \boxed{5} </answer>", "5"),
        (THINK + r"<answer>The answer is $\boxed{\frac{1}{2}}$.</answer>", r"\frac{1}{2}"),
        (THINK + r"<answer>\fbox{5}</answer>", "5"),
        (THINK + r"<answer>$\boxed 5$</answer>", "5"),
        (THINK + r"<answer>$\boxed 12.$</answer>", "12"),
        (THINK + r"<answer>$\boxed\frac{1}{2}$</answer>", r"\frac{1}{2}"),
        (THINK + r"<answer>\\boxed{5}</answer>", "5"),
        (THINK + r"<answer>\boxed  {5}</answer>", "5"),
        # no tag, unclosed tag, tags the wrong way round
        (THINK + r"\boxed{5}", None),
        (THINK + r"<answer>\boxed{5}", None),
        (THINK + r"\boxed{5}</answer>", None),
        (r"</answer>\boxed{5}<answer>", None),
        (THINK + r"<answer>\boxed{3}</answer> wait <answer>\boxed{4}", "3"),
        # box outside the tag
        (r"so \boxed{5} </think> <answer>5</answer>", None),
        (r"so \boxed{4} </think> <answer>\boxed{5}</answer>", "5"),
        (THINK + r"<answer>\boxed{5}</answer> or \boxed{6}", "5"),
        # two answer blocks: the last; a block before </think> counts
        (THINK + r"<answer>\boxed{5}</answer><answer>\boxed{6}</answer>", "6"),
        (r"<answer>\boxed{5}</answer> </think>", "5"),
        (r"<answer>\boxed{5}</answer> </think> <answer>\boxed{6}</answer>", "6"),
        (THINK + r"<answer>\boxed{5}</answer><answer>none</answer>", None),
        # a block ends at its first closing tag and starts at the last opening one
        (THINK + r"<answer>\boxed{5}</answer>\boxed{6}</answer>", "5"),
        (THINK + r"<answer>\boxed{5}<answer>\boxed{6}</answer>", "6"),
        # tags in text or code
        ("I will use <answer> tags. " + THINK + r"<answer>\boxed{5}</answer>", "5"),
        (THINK + "```\nprint('<answer>')\n``` <answer>\\boxed{5}</answer>", "5"),
        # empty and blank boxes
        (THINK + r"<answer>\boxed{}</answer>", None),
        (THINK + r"<answer>\boxed{ }</answer>", None),
        (THINK + r"<answer>\boxed{5}\boxed{}</answer>", None),
        (THINK + r"<answer>\boxed</answer>", None),
        # braces
        (THINK + r"<answer>\boxed{\{1,2\}}</answer>", r"\{1,2\}"),
        (THINK + r"<answer>\boxed{\left\{ 1 \right.}</answer>", r"\left\{ 1 \right."),
        (THINK + r"<answer>\boxed{5</answer>", None),
        (THINK + r"<answer>\boxed{5} and \boxed{6</answer>", "5"),
        (THINK + r"<answer>\boxed{\boxed{5}</answer>", "5"),
        (THINK + r"<answer>} \boxed{5}}</answer>", "5"),
        # nested boxes
        (THINK + r"<answer>\boxed{\boxed{5}}</answer>", "5"),
        (THINK + r"<answer>\boxed{ \fbox{ \boxed{5} } }</answer>", "5"),
        (THINK + r"<answer>\boxed{x = \boxed{5}}</answer>", "x = {5}"),
        # other commands are no boxes
        (THINK + r"<answer>\boxedtext{5}</answer>", None),
        (THINK + r"<answer>boxed{5}</answer>", None),
        ("", None),
    ],
)
def test_extract_answer(response, answer):
    assert extract_answer(response) == answer


def test_last_of_several_boxes_counts_unless_agreement_is_required():
    response = THINK + r"<answer>\boxed{3} or \boxed{4}</answer>"
    assert extract_answer(response) == "4"
    assert extract_answer(response, require_agreement=True) is None
    same = THINK + r"<answer>\boxed{x+1}, that is \boxed{x + 1}</answer>"
    assert extract_answer(same, require_agreement=True) == "x + 1"


def test_boxes_are_the_outermost_in_order():
    assert boxes(r"\boxed{1} {\boxed{2}} \boxed{3\fbox{4}} \boxed 5") == ["1", "2", "3{4}", "5"]


@pytest.mark.parametrize(
    "response, follows",
    [
        ("r </think> <answer>5</answer>", True),
        ("r </think>\n\n<answer> \\boxed{5} </answer>\n", True),
        ("</think><answer>5</answer>", True),
        ("r </think> <answer>5</answer><|endoftext|>", True),
        ("r </think> <answer> </answer>", False),
        ("r <answer>5</answer>", False),
        ("r </think> so <answer>5</answer>", False),
        ("r <answer>5</answer> </think>", False),
        ("r </think> <answer>5</answer> and more", False),
        ("r </think> </think> <answer>5</answer>", False),
        ("r </think> <answer>5</answer> <answer>5</answer>", False),
        ("r <think> r </think> <answer>5</answer>", False),
        ("r </think> <answer>5", False),
        ("", False),
    ],
)
def test_has_format(response, follows):
    assert has_format(response) is follows


@pytest.mark.parametrize(
    "unit",
    [
        "<answer>",
        "</answer>",
        "<answer></answer>",
        "\\",
        "{",
        "}",
        r"\boxed ",
        r"\boxed{",
        r"\boxed{5}",
        r"\fbox",
        "</think>",
    ],
)
def test_time_is_linear_on_repetitions(unit):
    text = unit * (200_000 // len(unit))
    begin = time.process_time()
    for response in (text, f"<answer>{text}</answer>", "<answer>" + text + "}" * 1000 + "</answer>"):
        extract_answer(response, require_agreement=True)
        has_format(response)
    assert time.process_time() - begin < 5  # quadratic takes minutes


def test_deeply_nested_boxes():
    text = r"\boxed{" * 20_000 + "5" + "}" * 20_000
    assert extract_answer(f"<answer>{text}</answer>") == "5"


@pytest.mark.parametrize(
    "text, reference",
    [
        ("73", "73"),
        (r"\text{(boxed)}", r"\text{(boxed)}"),
        (r"\boxed{107}", "107"),
        (r"The area is $6\cdot 7=42$, so it is $\boxed{42}$.", "42"),
        (r"Then $x=\fbox{\frac{3}{4}}$. We have seen $\boxed{\frac{3}{4}}$.", r"\frac{3}{4}"),
        (r"$\boxed{2}$ or rather $\boxed{3}$", ""),  # which one is not said
    ],
)
def test_the_box_of_a_worked_solution_is_the_reference(text, reference):
    assert reference_of(text) == reference
