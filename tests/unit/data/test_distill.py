"""What of a reasoner's responses goes on to a smaller model: right, whole, not twice; every response has one fate."""

import json

import pytest

from openrlhf_orz.cli.distill import main
from openrlhf_orz.data.sft_rows import select_responses
from openrlhf_orz.data.sources import DataError


def row(question, sample, verdict="right", text=None, tokens=10, stop_reason="stop"):
    text = f"{question} {sample}" if text is None else text
    return {
        "bench": "b",
        "id": question,
        "sample": sample,
        "prompt": f"Q {question}",
        "response": text,
        "verdict": verdict,
        "stop_reason": stop_reason,
        "tokens": tokens,
    }


ROWS = [
    row("x", 2),
    row("x", 0, text="same"),
    row("x", 1, text="same"),
    row("x", 3, tokens=11),
    row("x", 4, "wrong"),
    row("y", 0, "no_answer"),
    row("y", 1, "right", stop_reason="length"),
    row("y", 2),
    row("y", 3),
]


def test_each_response_has_one_fate():
    kept, fates = select_responses(ROWS, max_tokens=10)
    assert [(one["id"], one["sample"]) for one in kept] == [("x", 0), ("x", 2), ("y", 2), ("y", 3)]
    assert fates == {"kept": 4, "duplicate": 1, "too_long": 1, "wrong": 1, "no_answer": 1, "cut": 1}
    assert kept[0] == {"input": "Q x", "output": "same", "bench": "b", "id": "x", "sample": 0}


def test_at_most_so_many_to_a_question():
    kept, fates = select_responses(ROWS, per_question=1)
    assert [(one["id"], one["sample"]) for one in kept] == [("x", 0), ("y", 2)]
    assert fates["enough"] == 3 and sum(fates.values()) == len(ROWS)


def test_equal_responses_to_two_questions_both_stay():
    assert len(select_responses([row("x", 0, text="same"), row("y", 0, text="same")])[0]) == 2


@pytest.mark.parametrize("field", ["prompt", "verdict", "tokens"])
def test_a_row_without_a_field_is_named(field):
    rows = [row("x", 0), row("x", 1) | {field: None}]
    with pytest.raises(DataError, match=f"row 2: no {field}"):
        select_responses(rows)


def test_the_command(tmp_path, capsys):
    responses, output = tmp_path / "responses.jsonl", tmp_path / "out" / "sft.jsonl"
    responses.write_text("".join(json.dumps(one) + "\n" for one in ROWS))
    assert main(["--responses", str(responses), "--output", str(output), "--per_question", "2"]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 4 and rows[0]["input"] == "Q x"
    assert "4 responses to 2 questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ('{"bench": "b"', [], "responses.jsonl:1 is no JSON object"),
        (json.dumps(row("x", 0, "wrong")) + "\n", [], "no response can be kept (wrong 1)"),
        ("", [], "the files are empty"),
        (json.dumps(row("x", 0)) + "\n", ["--per_question", "0"], "--per_question is 0"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(tmp_path, capsys, text, flags, said):
    responses, output = tmp_path / "responses.jsonl", tmp_path / "sft.jsonl"
    responses.write_text(text)
    assert main(["--responses", str(responses), "--output", str(output), *flags]) == 2
    assert said in capsys.readouterr().err and not output.exists()


def test_files_may_number_their_questions_alike(tmp_path):
    """Two evaluations of other questions: their first ones are two, also with one response a question."""
    other = {**row("x", 0, text="other"), "prompt": "Q of another file"}
    kept, _ = select_responses([row("x", 0), other], per_question=1)
    assert [one["input"] for one in kept] == ["Q x", "Q of another file"]


def test_responses_are_not_written_over(tmp_path, capsys):
    responses = tmp_path / "responses.jsonl"
    responses.write_text(json.dumps(row("x", 0)) + "\n")
    before = responses.read_text()
    assert main(["--responses", str(responses), "--output", str(responses)]) == 2
    assert "--output is one of --responses" in capsys.readouterr().err and responses.read_text() == before
