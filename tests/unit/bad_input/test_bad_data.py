"""Data that cannot be trained on: rows, files and folders."""

import gzip
import json

import pytest
from command_line import AS_ROOT, GOOD, check

# a file of one row, and what the message must hold
ROWS = [
    (b'{"question": "1+1=?"}', ["--data.label_key answer: no row", "Keys seen", "question"]),
    (b'{"answer": "2"}', ["--data.input_key question: no row", "Keys seen"]),
    (b'{"question": "", "answer": "2"}', ["no_question: key 'question' is empty"]),
    (b'{"question": " \\n ", "answer": "2"}', ["no_question: key 'question' is empty"]),
    (b'{"question": null, "answer": "2"}', ["no_question: key 'question' is null"]),
    (b'{"question": 7, "answer": "2"}', ["question_not_text: key 'question' is a number"]),
    (b'{"question": {"text": "1+1"}, "answer": "2"}', ["question_not_text: key 'question' is an object"]),
    (b'{"question": "1+1", "answer": null}', ["no_answer: key 'answer' is null"]),
    (b'{"question": "1+1", "answer": "  "}', ["no_answer: key 'answer' is empty"]),
    (b'{"question": "1+1", "answer": ["2"]}', ["answer_not_text: key 'answer' is a list"]),
    (b'{"question": "1+1", "answer": {"value": 2}}', ["answer_not_text: key 'answer' is an object"]),
    (b'{"question": "1+1", "answer": true}', ["answer_not_text: key 'answer' is a boolean"]),
    (b'{"question": "1+1", "answer": NaN}', ["answer_not_text: key 'answer' is nan, not a finite number"]),
    (b'{"question": "1+1", "answer": -Infinity}', ["answer_not_text: key 'answer' is -inf, not a finite number"]),
    (b'{"question": "1+1", "answer": ' + b"1" * 5000 + b"}", ["broken_json: Exceeds the limit"]),
    (b'{"question": "a", "question": "b", "answer": "2"}', ["duplicate_key: key 'question' stands twice"]),
    (b'{"question": "\\ud800", "answer": "2"}', ["not_utf8: key 'question'"]),
    (b'{"question": "caf\xe9", "answer": "2"}', ["not_utf8: 'utf-8' codec can't decode byte 0xe9"]),
    (b'["1+1", "2"]', ["not_an_object: a list"]),
    (b'"1+1"', ["not_an_object: a string"]),
    (b"null", ["not_an_object: null"]),
    (b'[{"from": "human", "value": "1+1"}]', ["bad_dialogue: 1 turns"]),
    (b'{"question": "1+1", "answer": "2"', ["broken_json: Expecting ',' delimiter"]),
    (b"question,answer", ["broken_json: Expecting value"]),
    (b'{"question": "1\x00", "answer": "2"}', ["broken_json: Invalid control character"]),
    (b"\x00" * 4096, ["broken_json: Expecting value"]),
    (b"[" * 100_000, ["broken_json"]),
    (b'{"question": "' + b"12 + " * 2_000_000 + b'", "answer": "2"}', ["prompt_too_long: over ", "--data.max_len"]),
    (b'{"question": "1+1", "answer": "' + b"x" * 9000 + b'"}', ["reference_unparsable: reference 'xxx"]),
]  # fmt: skip


@pytest.mark.parametrize(
    "row, named", ROWS, ids=[f"{number}-{str(row[:50])[2:-1]}" for number, (row, _) in enumerate(ROWS)]
)
def test_rows(run, tmp_path, row, named):
    (tmp_path / "rows.jsonl").write_bytes(row + b"\n")
    result = run()
    check(result, 2, ["error: ", "--data."])
    if "--data." not in named[0]:  # a reason of this row, where it is, and where all are
        named = [
            f"rows.jsonl:1: {named[0]}",
            *named[1:],
            "--data.prompt_dataset: no row of",
            "Mend the rows listed in",
        ]
        (bad,) = map(json.loads, (tmp_path / "run" / "data" / "bad_rows_train.jsonl").read_text().splitlines())
        assert (bad["row"], bad["file"]) == (1, str(tmp_path / "rows.jsonl"))
    check(result, 2, named)


def test_bad_rows_among_good_ones_are_counted_and_left_out(run, tmp_path):
    """With a byte order mark and Windows line ends; the run goes on."""
    bad = [row for row, named in ROWS if len(row) < 5000 and "--data." not in named[0]]
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([GOOD.strip().encode(), *bad]) + b"\r\n")
    named = [
        f"rows.jsonl: 1 rows kept, {len(bad)} bad (",
        "answer_not_text 5",
        "every bad row is in",
        "1 prompts, 1 steps",
    ]
    check(run(), "starts", named)
    assert len((tmp_path / "run" / "data" / "bad_rows_train.jsonl").read_text().splitlines()) == len(bad)


def test_line_number_of_a_broken_row(run, tmp_path):
    (tmp_path / "rows.jsonl").write_text(GOOD + "\n\n" + '{"question": "1+' + "\n")
    check(run(), "starts", ["rows.jsonl:4: broken_json: Unterminated string"])


def parquet(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"question": ["1+1=?"] * 100, "answer": ["2"] * 100}), path)
    return path.read_bytes()


FILES = {
    "empty": ("rows.jsonl", lambda path: b"", ["--data.prompt_dataset", "no rows", "Give a dataset with rows"]),
    "blank lines": ("rows.jsonl", lambda path: b"\n \n\r\n", ["--data.prompt_dataset", "no rows"]),
    "utf-16": ("rows.jsonl", lambda path: GOOD.encode("utf-16"), ["rows.jsonl is in UTF-16", "iconv"]),
    "utf-16 json": ("rows.json", lambda path: f"[{GOOD}]".encode("utf-16"), ["rows.json is in UTF-16", "iconv"]),
    "utf-32": ("rows.jsonl", lambda path: GOOD.encode("utf-32"), ["rows.jsonl is in UTF-16", "iconv"]),
    "csv": ("rows.csv", lambda path: b"prompt,answer\n", ["rows.csv can be used", "Give a dataset with rows"]),
    "tsv": ("rows.tsv", lambda path: b"prompt\tanswer\n", ["rows.tsv is not a kind of file", "Convert it to JSONL"]),
    "cut gzip": ("rows.jsonl.gz", lambda path: gzip.compress(GOOD.encode())[:20], ["rows.jsonl.gz", "Replace"]),
    "gzip under a wrong name": ("r.jsonl", lambda path: gzip.compress(GOOD.encode()), ["r.jsonl:1: not_utf8"]),
    "cut parquet": (
        "rows.parquet",
        lambda path: parquet(path)[:-20],
        ["rows.parquet can't be read", "Replace the file"],
    ),
    "no parquet": (
        "rows.parquet",
        lambda path: b"PAR1" + b"\0" * 99 + b"PAR1",
        ["rows.parquet can't be read", "Replace"],
    ),
    "broken json": (
        "rows.json",
        lambda path: b'[{"question": "1+1",\n"answer" "2"}]',
        ["rows.json", "line 2 column 10", "Mend"],
    ),
    "json object": (
        "rows.json",
        lambda path: b'{"data":\n[]}',
        ["rows.json holds an object with the keys data", "JSONL"],
    ),
    "json number": ("rows.json", lambda path: b"7", ["rows.json holds int, not a list of rows"]),
    "python script": ("rows.py", lambda path: b"raise SystemExit(99)", ["rows.py is not a kind of file", "Convert"]),
}


@pytest.mark.parametrize("name", FILES)
def test_files(run, tmp_path, name):
    file, content, named = FILES[name]
    (tmp_path / file).write_bytes(content(tmp_path / file))
    check(run("--data.prompt_dataset", f"{{tmp}}/{file}"), 2, ["--data.prompt_dataset", *named])


def test_folder_without_data(run, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").write_text("x")
    check(run("--data.prompt_dataset", "{tmp}/d"), 2, ["--data.prompt_dataset", "has no .json", "Check the path"])


def test_folder_of_another_split(run, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.jsonl").write_text(GOOD)
    result = run("--data.prompt_dataset", "{tmp}/d", "--data.prompt_split", "test")
    check(result, 2, ["--data.prompt_split test", "other splits only (train.jsonl)", "Name one of them"])


def test_damaged_saved_data_set(run, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "state.json").write_text("{}")
    check(run("--data.prompt_dataset", "{tmp}/d"), 2, ["--data.prompt_dataset", "did not load", "Save it anew"])


def test_evaluation_data_are_checked_under_their_own_flag(run, tmp_path):
    (tmp_path / "eval.jsonl").write_text('{"question": "1+1", "answer": ""}\n')
    result = run("--eval.dataset", "{tmp}/eval.jsonl", "--eval.steps", "1")
    check(result, 2, ["--eval.dataset: no row of", "eval.jsonl:1: no_answer", "bad_rows_eval.jsonl"])


@pytest.mark.skipif(AS_ROOT, reason="root may read and write everything")
@pytest.mark.parametrize(
    "what, named", [("rows.jsonl", "--data.prompt_dataset"), ("model/model.safetensors", "--actor")]
)
def test_no_permission_to_read(run, tmp_path, what, named):
    (tmp_path / what).chmod(0)
    check(run(), 2, [named, "ermission"])


@pytest.mark.skipif(AS_ROOT, reason="root may read and write everything")
def test_no_permission_to_write(run, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    check(run("--ckpt.output_dir", "{tmp}/locked/run"), 2, ["--ckpt.output_dir", "locked cannot be written"])
