"""Rows for the warm start: RL would reward the responses, and no question is in both parts."""

import json

import pytest

from openrlhf_orz.cli import warm_start
from openrlhf_orz.data.prompts import render
from openrlhf_orz.data.rows import read_dataset
from openrlhf_orz.data.sft_rows import Worked, read_worked, sft_row, split_worked, worked_response
from openrlhf_orz.data.sources import DataError
from openrlhf_orz.reward.extract import extract_answer, has_format
from openrlhf_orz.settings.flags import STOP_STRINGS
from openrlhf_orz.settings.openrlhf_flags import PAPER_DEFAULTS

NATALIA = Worked("How many clips?", "In May 48/2 = 24.\nIn all 48+24 = 72.", "72")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def characters(texts):
    return [len(text) for text in texts]


def test_a_response_is_what_the_reward_and_the_stop_strings_want():
    text = worked_response(NATALIA)
    assert has_format(text) and extract_answer(text) == "72"
    assert [s for s in STOP_STRINGS if s in text] == ["</answer>"] and text.endswith("</answer>")


def test_the_prompt_is_the_one_of_rl():
    assert sft_row(NATALIA) == {"input": render("paper", "How many clips?"), "output": worked_response(NATALIA)}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": NATALIA.question, "solution": NATALIA.solution, "answer": "72"},
        {
            "question": NATALIA.question,
            "answer": "In May 48/2 = <<48/2=24>>24.\nIn all 48+24 = <<48+24=72>>72.\n#### 72",
        },
        {"question": NATALIA.question, "solution": NATALIA.solution + "\n#### 72", "answer": 72},
        {"Problem": NATALIA.question, "solution": NATALIA.solution, "answer": "72"},
    ],
)
def test_keys_and_gsm8k_form_are_found(tmp_path, row):
    assert read_worked(write(tmp_path / "a.jsonl", [row])) == [NATALIA]


def test_named_keys_win_and_rows_without_a_solution_are_left_out(tmp_path):
    rows = [{"question": "no", "q": "Q", "s": "S", "a": "A"}, {"q": "Q", "s": None, "a": "A"}]
    assert read_worked(write(tmp_path / "a.jsonl", rows), "q", "a", "s") == [Worked("Q", "S", "A")]


def test_a_key_goes_into_objects_as_curation_writes_them(tmp_path):
    row = {"question": "Q", "answer": "A", "meta": {"solution": "S"}}
    assert read_worked(write(tmp_path / "a.jsonl", [row]), solution_key="meta.solution") == [Worked("Q", "S", "A")]


def test_answers_alone_are_an_error_that_names_the_keys(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": "Q", "answer": "72"}])
    with pytest.raises(DataError, match="INPUT_KEY=question, LABEL_KEY=answer, SOLUTION_KEY=answer.*Keys seen"):
        read_worked(path)
    with pytest.raises(DataError, match="no rows"):
        read_worked(write(tmp_path / "empty.jsonl", []))


def test_the_parts_share_no_question_and_are_the_same_each_time():
    rows = [Worked(f"Q{i % 20}", "s" * (i % 20), "1") for i in range(40)]
    sft, rl = split_worked(rows, characters, 5, max_solution_tokens=9, max_tokens=10_000)
    assert len(sft) == 5 and {len(row.solution) for row in sft + rl} == set(range(10))
    assert len({row.question for row in sft + rl}) == len(sft) + len(rl) == 10
    assert split_worked(rows, characters, 5, 9, 10_000) == (sft, rl)
    whole = len(render("paper", "Q0") + worked_response(rows[0]))
    assert [r.question for part in split_worked(rows, characters, 0, 9, whole) for r in part] == ["Q0"]
    with pytest.raises(DataError, match="10 rows.*SFT_ROWS"):
        split_worked(rows, characters, 10, 9, 10_000)


def test_written_rows_are_what_the_trainers_read(tmp_path, monkeypatch):
    import transformers

    class Characters:
        def __call__(self, texts, **kwargs):
            return {"input_ids": texts}

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_: Characters())
    data = write(
        tmp_path / "a.jsonl", [{"prompt": f"Q{i}", "solution": "it is {0}", "answer": str(i)} for i in range(9)]
    )
    flags = ["--sft_rows", "4", "--max_tokens", "100000", "--model", "m", "--output", str(tmp_path / "out")]
    assert warm_start.main(["rows", "--data", data, *flags]) == 0
    sft = [json.loads(line) for line in (tmp_path / "out/sft.jsonl").read_text().splitlines()]
    keys = PAPER_DEFAULTS["data.input_key"], PAPER_DEFAULTS["data.label_key"]
    rl, bad = read_dataset(str(tmp_path / "out/rl.jsonl"), *keys)
    assert len(sft) == 4 and len(rl) == 5 and not bad
    seen = {row["input"] for row in sft} | {render("paper", row.question) for row in rl}
    assert seen == {render("paper", f"Q{i}") for i in range(9)}
    assert all(extract_answer(row["output"]) == row["input"].split("\nAssistant")[0][-1] for row in sft)
    assert warm_start.main(["rows", "--data", data, *flags, "--bare"]) == 0
    both = [json.loads(line) for line in (tmp_path / "out/sft.jsonl").read_text().splitlines()]
    assert both[:4] == sft and [row["input"] for row in both[4:]] == [row["input"] for row in sft]
    assert all(f" It is {extract_answer(row['output'])}. </think>" in row["output"] for row in both[4:])


def test_bare_rows_that_cannot_be_taken_are_counted(tmp_path, capsys):
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "T"}]
    rows = [{"question": "Q", "answer": "1"}, {"question": "", "answer": "1"}, {"question": "R"},
            {"question": turns, "answer": "2"}]  # fmt: skip
    given = ["bare", "--data", write(tmp_path / "a.jsonl", rows), "--output", str(tmp_path / "out")]
    assert warm_start.main(given) == 0
    told = capsys.readouterr().out
    assert "1 rows for the warm-up" in told and all(
        f"{why} 1" in told for why in ("no_text", "no_question", "no_answer")
    )
    assert len((tmp_path / "out" / "sft.jsonl").read_text().splitlines()) == 1
    given[2] = write(tmp_path / "b.jsonl", rows[1:])
    assert warm_start.main(given) == 2
    assert "no row has a question and an answer as text (" in capsys.readouterr().err
    assert warm_start.main([*given, "--input_key", "q"]) == 2
    assert "error: --input_key q: no row of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        warm_start.main([*given, "--sft_rows", "-1"])
    assert "--sft_rows: -1 is not a number of 1 or more" in capsys.readouterr().err


def test_rows_without_a_solution_are_counted(tmp_path):
    said, rows = [], [{"question": "Q", "solution": "S", "answer": "A"}, {"question": "Q", "answer": "A"}, [1]]
    assert len(read_worked(write(tmp_path / "a.jsonl", rows), log=said.append)) == 1
    assert "2 of 3 rows have no question, answer and solution" in said[0]
