"""Ways to the grader: verifiers by name, the reward function for stock OpenRLHF, the command."""

import ast
import importlib.util
import inspect
import json
import sys
import textwrap
import time
from decimal import Decimal
from pathlib import Path

import pytest

from openrlhf_orz.cli import grade as command
from openrlhf_orz.reward import Grader, Verdict, reward_func
from openrlhf_orz.reward.verifiers import VerifierSet, letter_of, make_verifier, pack_label, unpack_label
from openrlhf_orz.reward.workers import wire
from openrlhf_orz.reward.workers.gym import SCORERS, same_form, score_entry

from . import hostile
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
A = 12, B = 13
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


HOSTILE = [answer for _, answer in hostile.ROWS if len(answer) < 10_000]


@pytest.mark.parametrize("name, golds", [("letter", "ABCDEx"), ("exact", ["B", "73"])])
def test_hostile_answers_are_wrong_for_comparisons_too(name, golds):
    verifier = make_verifier(name)  # a letter in a hundred \text once was that letter
    assert {verifier.grade(response(answer), gold).reward for answer in HOSTILE for gold in golds} == {0.0}


@pytest.fixture(scope="module")
def gym():
    """The verifier and the package; one worker for all tests, so that one answer could spoil the next."""
    package = pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    with make_verifier("reasoning_gym", workers=1) as verifier:
        yield verifier, package


def test_reasoning_gym_scores_in_a_worker(gym):
    verifier, package = gym
    entry = package.create_dataset("jugs", size=1, seed=1)[0]
    for gold in (entry, json.dumps(entry)):
        assert verifier.grade(response(entry["answer"]), gold).reward == 1
        assert verifier.grade(response("[]"), gold).reward == 0
    assert verifier.grade(response("1"), "{}").verdict is Verdict.UNPARSABLE
    with pytest.raises(TypeError, match="entry is expected"):
        verifier.grade(response("1"), 3)


def test_hostile_answers_score_nothing(gym):
    verifier, package = gym
    entries = [package.create_dataset(task, size=1, seed=1)[0] for task in ("gcd", "jugs", "basic_arithmetic")]
    grades = [verifier.grade(response(answer), entry) for answer in HOSTILE for entry in entries]
    assert {grade.reward for grade in grades} == {0.0}
    assert all(verifier.grade(response(entry["answer"]), entry).reward == 1 for entry in entries)


# A wrong answer of the right form: the next letters and digits.
SHIFTED = str.maketrans(
    "abcdefghijklmnopqrstuvwxyABCDEFGHIJKLMNOPQRSTUVWXY012345678",
    "bcdefghijklmnopqrstuvwxyzBCDEFGHIJKLMNOPQRSTUVWXYZ123456789",
)


def hostile_to(right, question, entry):
    """Answers to a reasoning-gym entry that are not its answer ``right``."""
    other = right.translate(SHIFTED) if right.translate(SHIFTED) != right else "1"
    candidates = " ".join(["A B C D E", "yes no True False", *map(str, range(20)), right, other])
    yield from ("", " \n\t", question, candidates, f"{right} " * 500, "[" * 400, "{" * 400, "(" * 300)
    yield from (
        "NaN",
        "inf",
        "-Infinity",
        "nan + nani",
        "nan, nan",
        "1e400",
        "9" * 900,
        ".",
        "None",
        "null",
        "[]",
        "{}",
    )
    yield from (
        f"{right}\n{other}",
        f"{right} or {other}",
        f"{right}, {other} 1",
        f"{right} {right}",
        f"{right}{other}",
    )
    yield from (json.dumps([right, other]), json.dumps({"answer": right}), f"[{right}]", json.dumps(entry))
    yield from (other, f"not {right}", f"-{right} 7", right[: len(right) // 2].rstrip(".0"))
    yield from {"True", "False", "Yes", "No", "100"} - {right}


@pytest.mark.parametrize("task", sorted(SCORERS))
def test_each_scorer_takes_its_answer_and_no_hostile_one(gym, task):
    """In this process, as none of these scorers runs an answer as code."""
    entry = gym[1].create_dataset(task, size=1, seed=8)[0]
    text, right = json.dumps(entry), entry["answer"]
    begin = time.process_time()
    assert score_entry(text, right)[0] is Verdict.RIGHT and score_entry(text, f" {right}\n")[0] is Verdict.RIGHT
    answers = hostile_to(right, entry["question"], entry)
    assert [answer for answer in answers if score_entry(text, answer)[0] is Verdict.RIGHT] == []
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    "task, reference, answer, fair",
    [
        ("coin_flip", "0.234375", "15/64", True),
        ("coin_flip", "0.234375", "0.2", False),  # the scorer counts equal first characters
        ("gsm_symbolic", "20", "-20", False),  # it searches for the first digits
        ("gsm_symbolic", "20", "20.0", True),
        ("number_format", "1234.5", "1,234.50", True),
        ("complex_arithmetic", "8.0 + 3.0i", "8+3i", True),
        ("complex_arithmetic", "8.0 + 3.0i", "NaN", False),
        ("time_intervals", "5 days", "5 weeks", False),
        ("quantum_lock", "C → A → A", "C A A", True),
        ("knights_knaves", "Zoey is a knight, and Ann is a knave", "Ann is a knave and Zoey is a knight.", True),
        ("knights_knaves", "Zoey is a knight", "It is not the case that Zoey is a knight", False),
        ("word_ladder", "COLD,CORD,CARD", "COLD, BOLD, BALD, BARD, CARD", True),  # another ladder, to be scored
        ("game_of_life", "[[0,1],[1,0]]", "[[0,1],[1,0],[1,1]]", False),
        ("advanced_geometry", "(1.5, -2.0)", "(1.50, -2)", True),
        ("advanced_geometry", "(1.5, -2.0)", "(1.5, -2.0), (3, 4)", False),
    ],
)
def test_the_form_of_an_answer(task, reference, answer, fair):
    assert same_form(reference, answer, "How many days?") is fair


@pytest.mark.parametrize("payload", ["a command", "a poisoned worker", "a reference"])
def test_neither_an_answer_nor_a_reference_runs_code(gym, payload, tmp_path):
    """What the left-out scorers do: each of these ran in a worker, and the second made all later answers right."""
    verifier, package = gym
    left = tmp_path / "ran"
    command = f"__import__('os').system('touch {left}')"
    if payload == "a reference":
        metadata = {"source_dataset": "simple_integration", "integrand": command, "variable": "x"}
        verdict = verifier.grade(response("x"), {"question": "?", "answer": "x", "metadata": metadata}).verdict
    else:
        poison = "setattr(__import__('reasoning_gym'),'get_score_answer_fn',lambda n: lambda a,e: 1.0)"
        answer = f"[{command if payload == 'a command' else poison} or 'A']"
        entry = package.create_dataset("string_insertion", size=1, seed=1)[0]
        verdict = verifier.grade(response(answer), entry).verdict
        # past the caller's own look at the list
        assert verifier.pool.ask(wire.REASONING_GYM, json.dumps(entry), answer)[0] is Verdict.REFUSED
    assert verdict is Verdict.REFUSED and not left.exists()
    fair = package.create_dataset("gcd", size=1, seed=1)[0]
    assert verifier.grade(response("no such number"), fair).verdict is Verdict.WRONG
    assert not verifier.check_reference(json.dumps({"metadata": {"source_dataset": "n_queens"}}))


def called_names(task, package):
    """The names of all that the scorer of a reasoning-gym task calls, through functions of the package."""
    kind, _ = package.factory.DATASETS[task]
    modules = {sys.modules[cls.__module__] for cls in kind.__mro__ if cls.__module__.startswith("reasoning_gym")}
    seen, wanted = set(), {"score_answer"}
    while wanted:
        seen.add(name := wanted.pop())
        found = [inspect.getattr_static(kind, name, None), *(vars(module).get(name) for module in modules)]
        for each in found:
            each = getattr(each, "__func__", each)
            if not (getattr(each, "__module__", None) or "").startswith("reasoning_gym"):
                continue
            modules.add(sys.modules[each.__module__])
            calls = [
                n.func
                for n in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(each))))
                if isinstance(n, ast.Call)
            ]
            wanted |= {getattr(call, "id", getattr(call, "attr", "")) for call in calls} - seen
    return seen


def test_listed_scorers_call_nothing_that_runs_text(gym):
    runs_text = {
        "eval", "exec", "parse_expr", "sympify", "lambdify", "parse_latex", "simplify", "__import__", "import_module",
        "system", "popen", "Popen", "run", "open", "loadtxt", "getattr", "setattr", "get_score_answer_fn",
    }  # fmt: skip
    _, package = gym
    assert package.factory.DATASETS.keys() >= SCORERS
    assert {task: called for task in SCORERS if (called := called_names(task, package) & runs_text)} == {}
    unsafe = ("n_queens", "countdown", "string_insertion", "polynomial_multiplication", "bitwise_arithmetic")
    assert all(called_names(task, package) & runs_text for task in unsafe)  # the walk does find them


def test_a_set_makes_each_verifier_once_and_raises_on_unknown_names():
    with pytest.raises(ValueError, match="'lettre'.*letter"):
        VerifierSet("lettre")
    with VerifierSet("exact") as verifiers:
        assert verifiers.named() is verifiers.named("exact") and verifiers.named("letter") is verifiers.named("letter")
        assert verifiers.named().grade(response("4"), 4).reward == 1
        with pytest.raises(ValueError, match="no verifier is called 'maths'"):
            verifiers.named("maths")


@pytest.mark.parametrize("gold, text", [(4, "4"), (4.0, "4"), (0.5, "0.5"), ("4", "4"), (Decimal("1.50"), "1.50")])
def test_a_reference_is_text_or_a_number(gold, text):
    assert Grader().read_reference(gold) == text


@pytest.mark.parametrize("gold", [True, None, [4], {"a": 4}, float("nan")])
def test_anything_else_is_no_reference(gold):
    with Grader() as grader, pytest.raises((TypeError, ValueError), match="a reference is text or a "):
        grader.grade(response("4"), gold)


@pytest.mark.parametrize("label", ["73", "", None, ["a", 1], {"tests": [1]}, 2.5, True, "orz-label:{}"])
@pytest.mark.parametrize("verifier", [None, "letter"])
def test_labels_travel_as_text(label, verifier):
    packed = pack_label(label, verifier)
    assert isinstance(packed, str) and unpack_label(packed) == (label, verifier)
    assert pack_label("73") == "73" and unpack_label(["x"]) == (["x"], None)


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
        {"answer": 73, "response": response("72=73")},
        {"gold": "\ud800", "response": "\ud800"},
        {"gold": "B", "response": response("(B)"), "verifier": "letter"},
        {"gold": "B", "response": response("(B)"), "verifier": "lettre"},
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
        "right", "right", "no_answer", "refused", "wrong", "no_answer", "right", *["unparsable"] * 6,
    ]  # fmt: skip
    assert [row["reward"] for row in out] == [1.0] + [0.0] * 5 + [1.0] + [0.0] * 6
    assert (out[0]["id"], out[0]["extracted"], out[3]["rule"]) == (1, "146/2", "power")
    assert [row.get("plain") for row in out[:5]] == ["right", "right", "no_answer", "refused", "right"]
    assert "'lettre'; there are exact" in out[7]["error"] and out[10]["error"] == "missing 'response'"
    assert summary["rows"] == 13
    assert summary["verdicts"]["unparsable"] == 6
    assert summary["disagreements_with_plain"] == 1
    assert summary["rows_per_second"] > 0
    source.write_text('{"reference": "1", "response": "1"}\n')
    assert command.main(arguments) == 2
    assert "no row of --input can be used" in capsys.readouterr().err


def test_the_commands_input_stays(tmp_path, capsys):
    """Where --output names it, by a link, too; and verdicts of before stay where this call fails."""
    cases, link = tmp_path / "cases.jsonl", tmp_path / "link.jsonl"
    row = json.dumps({"gold": "1", "response": response("1")}) + "\n"
    cases.write_text(row)
    link.symlink_to(cases)
    for output in (cases, link):
        assert command.main(["--input", str(cases), "--output", str(output), "--workers", "1"]) == 2
        assert "--output is --input" in capsys.readouterr().err and cases.read_text() == row
    verdicts, empty = tmp_path / "verdicts.jsonl", tmp_path / "empty.jsonl"
    verdicts.write_text("of before")
    assert command.main(["--input", str(tmp_path / "nowhere"), "--output", str(verdicts)]) == 2
    assert verdicts.read_text() == "of before" and "nowhere" in capsys.readouterr().err
    empty.write_text("\n")
    assert command.main(["--input", str(empty), "--output", str(verdicts), "--workers", "1"]) == 2
    assert "there are no rows" in capsys.readouterr().err and verdicts.read_text() == "of before"
    link.unlink()
    link.symlink_to(verdicts)
    assert command.main(["--input", str(cases), "--output", str(link), "--workers", "1"]) == 0
    assert link.is_symlink() and json.loads(verdicts.read_text())["verdict"] == "right"
    assert command.main(["--input", str(cases), "--output", "/dev/null", "--workers", "1"]) == 0
