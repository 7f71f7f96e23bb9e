"""Questions from rows and files, seeds, multiple choice, going on after a kill, the harness's command and results."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from openrlhf_orz.cli.evaluate import main
from openrlhf_orz.data.options import lettered
from openrlhf_orz.evaluate.grading import same_for
from openrlhf_orz.evaluate.harness import harness_command, read_harness_results
from openrlhf_orz.evaluate.questions import (
    BENCHMARKS,
    EvaluationError,
    load_questions,
    questions_of,
    sample_seed,
)
from openrlhf_orz.evaluate.results import Responses, check_settings, results_table
from openrlhf_orz.evaluate.run import missing_requests
from openrlhf_orz.reward.verifiers import VerifierSet


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_with_any_of_the_usual_keys_and_repeated_ids():
    rows = [
        {"prompt": "1+1?", "answer": 2, "id": 0},
        {"problem": "2?", "answer": 3.0, "id": "x"},
        {"question": "3?", "answer": "a", "id": "x"},
    ]
    found = questions_of(rows, "b", 0, "f")
    assert [(q.id, q.text, q.reference) for q in found] == [("0", "1+1?", "2"), ("x", "2?", "3"), ("x#2", "3?", "a")]
    with pytest.raises(EvaluationError, match="f, row 2: no answer"):
        questions_of([rows[0], {"prompt": "?"}], "b", 0, "f")


@pytest.mark.parametrize("answer", ["BC", "ABCD", "B, C", "E", "", "4"])
def test_a_key_must_name_one_option(answer):
    row = {"question": "Which are prime?", "choices": ["4a", "7", "11", "15"], "answer": answer}
    with pytest.raises(EvaluationError, match="f, row 1"):
        questions_of([row], "b", 0, "f")


@pytest.mark.parametrize(
    "choices, answer",
    [
        ({"text": ["N2", "O2"], "label": ["1", "2"]}, "2"),
        ({"text": ["N2", "O2"], "label": ["A", "B"]}, "(b)"),
        ({"A": "N2", "B": "O2"}, "B"),
        (["N2", "O2"], 1),
        (["N2", "O2"], 1.0),
        (("N2", "O2"), "O2"),
        (["N2", " O2 "], "O2"),
        ({"text": ["2", "O2"], "label": ["1", "2"]}, 2),  # a label of the row's own goes first
        ({"A": "B", "B": "O2"}, "B"),
    ],
)
def test_options_of_every_form_are_asked(choices, answer):
    (found,) = questions_of([{"question": "Which gas?", "choices": choices, "answer": answer}], "b", 0, "f")
    assert f"\n{found.reference}. O2" in found.text and found.verifier == "letter"
    with pytest.raises(EvaluationError, match="2 to 26 options"):
        questions_of([{"question": "Which gas?", "choices": {"text": ["N2"]}, "answer": "A"}], "b", 0, "f")


@pytest.mark.parametrize(
    "choices, answer, right",
    [
        (["1", "2", "2,3", "6"], 2, "2,3"),  # MMLU's rows: a number is an index
        (["0", "10", "20"], 20, "20"),  # none of that number: the option itself
        (["1", "2", "3"], "3", "3"),
        ([5, 7, 11], 7, "7"),
    ],
)
def test_a_number_is_an_index_among_texts(choices, answer, right):
    (found,) = questions_of([{"question": "?", "choices": choices, "answer": answer}], "b", 0, "f")
    assert f"\n{found.reference}. {right}\n" in found.text


@pytest.mark.parametrize(
    "choices, answer", [(["1", "2", "2,3"], "2"), ([1, 2, 3], 2), (["B", "A"], "A"), (["x", "x", "y"], "x")]
)
def test_an_answer_that_may_mean_two_options_is_refused(choices, answer):
    with pytest.raises(EvaluationError, match="names none, or several, of its choices: give its letter"):
        questions_of([{"question": "?", "choices": choices, "answer": answer}], "b", 0, "f")


def test_rows_are_read_as_training_reads_them():
    asked = [{"role": "user", "content": "1+1?"}]
    rows = [{"prompt": asked, "answer": "2"}, {"prompt": json.dumps(asked), "answer": 2}]
    assert [(q.text, q.reference) for q in questions_of(rows, "b", 0, "f")] == [("1+1?", "2")] * 2
    turns = [{"role": "system", "content": "Be short."}, *asked]
    for row, said in (
        ({"prompt": turns, "answer": "2"}, "messages of system, user"),
        ({"prompt": [{"role": "user"}], "answer": "2"}, "the question, message 0 is null"),
        ({"prompt": 5, "answer": "2"}, "the question is a number"),
        ({"prompt": "q", "answer": ["2"]}, "the answer is a list"),
        ({"prompt": "q", "answer": True}, "the answer is a boolean"),
    ):
        with pytest.raises(EvaluationError, match=f"f, row 1: {said}"):
            questions_of([row], "b", 0, "f")


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("nan.jsonl", b'{"question": "q", "answer": NaN}\n', "nan.jsonl, row 1: the answer is nan"),
        ("latin.jsonl", b'{"question": "a", "answer": "1"}\n{"question": "caf\xe9"}\n', "latin.jsonl:2: not_utf8"),
        ("deep.jsonl", b"[" * 100_000, "deep.jsonl:1: broken_json"),
        ("broken.json", b'{"question": "q"\n', "broken.json:1: broken_json"),
    ],
)
def test_files_that_cannot_be_asked_are_named_with_the_row(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EvaluationError, match=said):
        load_questions([str(tmp_path / name)], [], 0, None)


def test_a_json_file_may_hold_an_object_a_line(tmp_path):
    rows = [{"question": "q", "answer": "1"}, {"question": "r", "answer": "2"}]
    file = write(tmp_path / "lines.json", rows)
    assert [question.text for question in load_questions([str(file)], [], 0, None)[0]] == ["q", "r"]


def test_files_of_all_kinds_that_training_reads(tmp_path):
    """CSV, packed lines and Parquet; one with a broken line is refused by name; choices of Parquet are asked."""
    rows = [{"question": "q", "answer": "1"}, {"question": "r", "answer": "2"}]
    (tmp_path / "a.csv").write_text('question,answer\n"q",1\nr,2\n')
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    for name in ("a.csv", "b.jsonl.gz", "c.parquet"):
        found, sources = load_questions([str(tmp_path / name)], [], 0, None)
        assert [(q.text, q.reference, q.verifier) for q in found] == [("q", "1", None), ("r", "2", None)]
        assert list(sources.values())[0]["file"] == name
    (tmp_path / "d.csv").write_text("question,answer\nq\n")
    with pytest.raises(EvaluationError, match="d.csv:2: broken_csv"):
        load_questions([str(tmp_path / "d.csv")], [], 0, None)
    choice = [{"question": "?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answer": "B"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(choice), tmp_path / "e.parquet")
    (found,) = load_questions([str(tmp_path / "e.parquet")], [], 0, None)[0]
    assert f"\n{found.reference}. y\n" in found.text and found.verifier == "letter"


def test_seeds_are_each_samples_own():
    seeds = {sample_seed(0, bench, question, sample) for bench in "ab" for question in "12" for sample in range(50)}
    assert len(seeds) == 200 and all(0 <= seed < 2**31 for seed in seeds)
    assert sample_seed(0, "a", "1", 3) == sample_seed(0, "a", "1", 3) != sample_seed(1, "a", "1", 3)


def test_a_plan_does_not_depend_on_what_is_done_already():
    questions = questions_of([{"prompt": str(i), "answer": "1"} for i in range(4)], "b", 0, "f")
    everything = missing_requests(questions, 3, 0, lambda question: [1], {})
    assert len(everything) == 12
    rest = missing_requests(questions, 3, 0, lambda question: [1], {request.key for request in everything[::2]})
    assert rest == everything[1::2]


def test_options_are_shuffled_by_seed_and_graded_by_letter():
    orders = set()
    for name in map(str, range(60)):
        text, letter = lettered("Which?", "right one", ["w1", "w2", "w3"], 0, name)
        assert f"\n{letter}. right one\n" in text
        assert (text, letter) == lettered("Which?", "right one", ["w1", "w2", "w3"], 0, name)
        orders.add(text)
    assert len(orders) > 15
    assert any(
        lettered("Which?", "r", ["a", "b", "c"], 1, n) != lettered("Which?", "r", ["a", "b", "c"], 0, n)
        for n in "12345"
    )
    row = {"Question": "Which?", "Correct Answer": "r", **{f"Incorrect Answer {i}": f"w{i}" for i in (1, 2, 3)}}
    (question,) = questions_of([row], "gpqa_diamond", 0, "f", BENCHMARKS["gpqa_diamond"])
    verifier = VerifierSet(workers=1).named(question.verifier)
    others = set("ABCD") - {question.reference}
    assert verifier.grade(f"</think> <answer>\\boxed{{{question.reference}}}</answer>", question.reference).reward == 1
    assert verifier.grade(f"</think> <answer>\\boxed{{{others.pop()}}}</answer>", question.reference).reward == 0
    assert same_for(verifier)("(B) x", "B") and not same_for(verifier)("B", "C")


def test_choices_in_a_row():
    rows = [{"question": "?", "choices": ["x", "y", "z"], "answer": answer} for answer in ("B", 1, "y")]
    found = questions_of(rows, "b", 0, "f")
    assert all(f"\n{q.reference}. y\n" in q.text and q.verifier == "letter" for q in found)
    assert all(sorted(line[3:] for line in q.text.split("\n")[2:5]) == ["x", "y", "z"] for q in found)
    with pytest.raises(EvaluationError, match="names none"):
        questions_of([{"question": "?", "choices": ["x", "y"], "answer": "Q"}], "b", 0, "f")


@pytest.mark.parametrize(
    "last",
    ["None of these", "all of the above", "Both A and B", "(A) or (C)", "Neither", "more than one of the above"],
)
def test_options_that_speak_of_others_keep_the_rows_order(last):
    """Shuffled, "none of these" would stand before others, and "A and B" would name other options."""
    rows = [{"question": f"{n}?", "choices": ["x", "y", "z", last], "answer": "D"} for n in range(5)]
    for found in questions_of(rows, "b", 0, "f"):
        assert found.reference == "D" and f"\nA. x\nB. y\nC. z\nD. {last}\n" in found.text
    plain = [{**row, "choices": ["x", "y", "z", "abovementioned handball"]} for row in rows]
    assert {found.reference for found in questions_of(plain, "b", 0, "f")} != {"D"}


def test_files_names_and_sizes_are_checked(tmp_path):
    rows = [{"prompt": "same?", "answer": "1"}] * 3
    file = write(tmp_path / "eval_aime2024.jsonl", rows)
    notes = []
    questions, sources = load_questions([str(file)], [], 0, 2, notes.append)
    assert [q.bench for q in questions] == ["aime2024"] * 2 and sources["aime2024"]["rows"] == 3
    assert (
        "aime2024 has 3 rows here, 30 are expected" in notes[0] and "2 of its 3 questions more than once" in notes[1]
    )
    questions, _ = load_questions([f"mine={file}"], [], 0, None, notes.append)
    assert questions[0].bench == "mine" and len(questions) == 3
    with pytest.raises(EvaluationError, match="two sets are called aime2024"):
        load_questions([str(file), str(file)], [], 0, None)
    with pytest.raises(EvaluationError, match="no file"):
        load_questions([str(tmp_path / "none.jsonl")], [], 0, None)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "answer": "1"}\n{"prompt"\n')
    with pytest.raises(EvaluationError, match="bad.jsonl:2"):
        load_questions([str(tmp_path / "bad.jsonl")], [], 0, None)
    with pytest.raises(EvaluationError, match="--bench nothing"):
        load_questions([], ["nothing"], 0, None)


def test_responses_go_on_after_a_kill(tmp_path):
    file = Responses(tmp_path / "responses.jsonl")
    for sample in range(3):
        file.add({"bench": "b", "id": "1", "sample": sample, "response": "x\u2028y\r"})
    file.close()
    with open(tmp_path / "responses.jsonl", "ab") as cut:
        cut.write(b'{"bench": "b", "id": "1", "sam')
    again = Responses(tmp_path / "responses.jsonl")
    assert sorted(again.done) == [("b", "1", 0), ("b", "1", 1), ("b", "1", 2)]
    again.add({"bench": "b", "id": "1", "sample": 3, "response": ""})
    assert ("b", "1", 3) in again.done
    again.close()
    assert len(Responses(tmp_path / "responses.jsonl").done) == 4
    with open(tmp_path / "responses.jsonl", "ab") as damaged:
        damaged.write(b"noise\n")
    with pytest.raises(EvaluationError, match="responses.jsonl:5"):
        Responses(tmp_path / "responses.jsonl")


def test_responses_of_other_settings_are_not_mixed(tmp_path):
    check_settings(tmp_path, {"seed": 0, "stop": ("a",)})
    check_settings(tmp_path, {"seed": 0, "stop": ("a",)})
    with pytest.raises(EvaluationError, match="seed = 0, now it is 1"):
        check_settings(tmp_path, {"seed": 1, "stop": ("a",)})
    older = {"seed": 0, "stop": ("a",), "verifier": "math"}  # which that folder does not name yet
    check_settings(tmp_path, older)
    with pytest.raises(EvaluationError, match="verifier = 'math', now it is 'letter'"):
        check_settings(tmp_path, older | {"verifier": "letter"})


def test_equal_answers_are_equal_for_the_majority():
    verifiers = VerifierSet(workers=1)
    same = same_for(verifiers.named())
    assert same("\\frac{1}{2}", "0.5") and not same("1", "2")
    verifiers.close()


def test_errors_name_the_flag(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["--model", "m", "--out", out]) == 2 and "--data" in capsys.readouterr().err
    assert main(["--model", "m", "--out", out, "--data", "x", "--n", "0"]) == 2 and "--n" in capsys.readouterr().err
    assert main(["--model", "m", "--out", out, "--bench", "livecodebench"]) == 2
    assert "--allow_code_execution" in capsys.readouterr().err
    assert main(["--model", "m", "--out", out, "--bench", "mmlu"]) == 2 and "lighteval" in capsys.readouterr().err


def test_harness_command_and_results(tmp_path):
    line = harness_command("py", "M", ["mmlu_pro", "livecodebench"], tmp_path, {"dtype": "bfloat16"}, 5)
    assert line[:6] == [
        "py",
        "-m",
        "lighteval",
        "vllm",
        "model_name=M,dtype=bfloat16",
        "mmlu_pro|0,lcb:codegeneration_v6|0",
    ]
    assert line[-2:] == ["--max-samples", "5"]
    folder = tmp_path / "results" / "M"
    folder.mkdir(parents=True)
    scores = {
        "mmlu_pro|0": {"extractive_match": 0.4, "extractive_match_stderr": 0.1},
        "mmlu:a|0": {"em": 0.2, "em_stderr": 0.1}, "mmlu:b|0": {"em": 0.6, "em_stderr": 0.1},
        "mmlu:_average|0": {"em": 0.4}, "all": {"em": 0.4},
    }  # fmt: skip
    (folder / "results_2026.json").write_text(json.dumps({"results": scores}))
    rows = read_harness_results(tmp_path, ["mmlu_pro", "mmlu"])
    assert rows["mmlu_pro"]["avg_at_n"] == 0.4 and rows["mmlu_pro"]["low"] == pytest.approx(0.204)
    assert rows["mmlu"] == {"avg_at_n": pytest.approx(0.4), "metric": "em", "harness": "lighteval", "tasks": 2}
    assert "| mmlu_pro | - | - | 40.0 | 20.4 to 59.6 |" in results_table(rows)
    with pytest.raises(EvaluationError, match="ifeval"):
        read_harness_results(tmp_path, ["ifeval"])
