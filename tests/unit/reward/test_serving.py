"""Ways to the grader: verifiers by name, the reward function for stock OpenRLHF, the command."""

import importlib.util
import json
from pathlib import Path

import pytest

from openrlhf_orz.cli import grade as command
from openrlhf_orz.reward import Verdict, reward_func
from openrlhf_orz.reward.verifiers import letter_of, make_verifier

from .conftest import response

PROMPT = (
    r"... <think> </think> <answer> </answer> tags ... the \boxed{} tag. What is 36 + 37?" + "\nAssistant: <think>"
)


def test_an_unknown_verifier_is_named():
    with pytest.raises(ValueError, match="'maths'.*exact, letter, math"):
        make_verifier("maths")


RIGHT_C = r"""
$C$
\(C\)
C, 24
C = 24
\text{Option C}
\text{Answer: C}
\textrm{C}
\textit{C}
{C}
[C]
\left(C\right)
\displaystyle C
**C**
\underline{C}
\text{C) 24}
(C)
c
(c)
\text{c)}
C.
C:
**(C)**
`C`
\mathbf{(C)}
\text{The correct answer is C}
\text{The answer is (C)}
\text{Choice C}
C. \Delta H > 0
(C)\ 24
(C) 24\text{ J}
\text{C. A circle of radius 2}
\text{(C) both the first and the second}
C: E = mc^2
\large C
\textbf{C.} 12
\text{C}.
\mathrm{C}
\Large{\textbf{C}}
\text{(C)}
\color{red}{C}
option C
Answer: C
$\mathbf{C}$
"""
NO_LETTER = r"""
\text{(A) or (C)}
(A), (B), (C), (D)
A. B. C. D.
A\text{ or }C
(A) and (C)
D \to \infty
\text{None}
\text{A circle}
A/B/C/D
A, B
AB
A B C D
A; B; C
\{A, B\}
(A, B)
A: B
A) B) C) D)
A. not this, C is right
\text{A or maybe B}
A, \text{ or } B
\text{not A}
\text{A, but possibly D}
A|B
A \cup B
A = B
A = B = C
(A)(B)
[A][B]
\text{Answer: A or B}
\text{either A or B}
A + B
A\text{ (or B)}
A (B)
A & B
A. B
a, b, c
(a) or (b)
A^B
A_1
A'
All
\text{All of the above}
\text{A, B, C and D}
A, then B
A > B
A: 12, B: 13
A. 12 B. 13
\neg A
-A
\overline{A}
A\text{ is wrong}
12
(A) 3 (B) 4
\text{(A) 3 or (B) 4}
"""


@pytest.mark.parametrize("text", RIGHT_C.strip().splitlines())
def test_spellings_of_one_letter(text):
    assert letter_of(text) == "C"


@pytest.mark.parametrize("text", ["", "Bob", "12", *NO_LETTER.strip().splitlines()])
def test_whatever_names_several_letters_or_none_is_no_letter(text):
    assert letter_of(text) is None


@pytest.mark.parametrize(
    "name, gold, answer, right",
    [
        ("letter", "B", r"\text{(B)}", True),
        ("letter", "B", "A", False),
        ("letter", "B", "A or B", False),
        ("letter", "B", "12", False),
        ("exact", "12:30", " 12:30 ", True),
        ("exact", "1/2", "0.5", False),
        ("math", "1/2", "0.5", True),
    ],
)
def test_verifiers(name, gold, answer, right):
    verifier = make_verifier(name)
    try:
        assert verifier.check_reference(gold)
        grade = verifier.grade(response(answer), gold)
        assert (grade.reward, grade.verdict) == ((1.0, Verdict.RIGHT) if right else (0.0, Verdict.WRONG))
        assert verifier.grade(response(answer), gold, stopped=False).reward == 0
        assert verifier.grade("no box", gold).verdict is Verdict.NO_ANSWER
    finally:
        verifier.close()


@pytest.mark.parametrize("name", ["exact", "letter"])
def test_long_answers_are_refused_unless_the_reference_is_long(name):
    verifier = make_verifier(name)
    long = "B) " + "x" * 1000
    refused = verifier.grade(response(long), "B")
    assert (refused.verdict, refused.rule, refused.reward) == (Verdict.REFUSED, "length", 0.0)
    right = verifier.grade(response(long), long)
    assert (right.verdict, right.rule) == (Verdict.RIGHT, name)
    assert not verifier.check_reference(" ")
    assert verifier.grade(response("12"), "").verdict is Verdict.WRONG  # neither has a letter


def test_reasoning_gym_scores_in_a_worker():
    gym = pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    entry = gym.create_dataset("countdown", size=1, seed=1)[0]
    gold = json.dumps(entry)
    verifier = make_verifier("reasoning_gym")
    try:
        assert verifier.grade(response(entry["answer"]), gold).reward == 1
        assert verifier.grade(response(str(entry["metadata"]["target"])), gold).reward == 0
        assert verifier.grade(response("9**9**9**9"), gold).reward == 0
        assert verifier.grade(response("1"), "{}").verdict is Verdict.UNPARSABLE
    finally:
        verifier.close()


@pytest.mark.parametrize(
    "query, prompt, expected",
    [
        (PROMPT + " r </think>", PROMPT, " r </think>"),
        (PROMPT[200:] + " r </think>", PROMPT, " r </think>"),  # cut from the left
        (PROMPT[60:] + " r", PROMPT, " r"),
        ("other <think> r", PROMPT, " r"),
        ("r", PROMPT, "r"),
    ],
)
def test_the_prompt_is_stripped(query, prompt, expected):
    assert reward_func.response_of(query, prompt) == expected


def load_as_openrlhf_does():
    path = Path(reward_func.__file__)
    spec = importlib.util.spec_from_file_location("reward_func", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reward_func_answers_as_openrlhf_expects(monkeypatch):
    monkeypatch.setenv("ORZ_GRADER_SCOPE", "unit test")
    module = load_as_openrlhf_does()
    answers = ["146/2", "74"]
    queries = [PROMPT + response(answer) + "<|endoftext|>" for answer in answers]
    result = module.reward_func(queries[:1], [PROMPT], ["73"])
    assert result["rewards"] == result["scores"] == 1.0
    assert result["extra_logs"]["verdict_right"] == 1.0
    assert all(isinstance(value, float) for value in result["extra_logs"].values())
    assert module.reward_func(queries, [PROMPT] * 2, ["73"] * 2)["rewards"] == [1.0, 0.0]
    # a box in the prompt alone earns nothing
    assert module.reward_func([PROMPT + r"<answer> </answer>"], [PROMPT], ["73"])["rewards"] == 0.0
    module.verifier().close()


def test_the_command_answers_every_row_in_order(tmp_path, capsys):
    rows = [
        {"gold": "73", "response": response("146/2"), "id": 1},
        {"gold": "73", "response": response("146/2"), "stop_reason": "length"},
        {"gold": "73", "response": "no box"},
        {"gold": "73", "response": response("9^{9^9}")},
        {"gold": 73, "response": response("72=73")},
        {"gold": "\ud800", "response": "\ud800"},
    ]
    lines = [json.dumps(row).encode() for row in rows] + [
        b"not json",
        b"[1]",
        b'{"gold": "1"}',
        b"\xff\xfe",
        b"",
        b"[" * 100_000,
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"\n".join(lines))
    arguments = ["--input", str(source), "--output", str(target), "--workers", "1", "--compare-plain"]
    assert command.main(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    out = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["verdict"] for row in out] == [
        "right", "right", "no_answer", "refused", "wrong", "no_answer", *["unparsable"] * 5,
    ]  # fmt: skip
    assert [row["reward"] for row in out] == [1.0] + [0.0] * 10
    assert (out[0]["id"], out[0]["extracted"], out[3]["rule"]) == (1, "146/2", "power")
    assert [row.get("plain") for row in out[:5]] == ["right", "right", "no_answer", "refused", "right"]
    assert out[8]["error"] == "missing 'response'"
    assert summary["rows"] == 11
    assert summary["verdicts"]["unparsable"] == 5
    assert summary["disagreements_with_plain"] == 1
    assert summary["rows_per_second"] > 0
