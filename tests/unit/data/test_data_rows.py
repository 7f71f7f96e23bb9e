import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openrlhf_orz.data.rows import Row, read_dataset
from openrlhf_orz.data.sources import EVAL_FLAGS, DataError

DIALOGUE = [{"from": "human", "value": "1+1?"}, {"from": "assistant", "ground_truth": {"value": "2"}}]


def write(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return str(path)


def reasons(bad):
    return [(row.row, row.reason) for row in bad]


def test_json_lines_good_and_every_kind_of_bad_row(tmp_path):
    file = write(
        tmp_path / "some.jsonl",
        b'\xef\xbb\xbf{"q": " 1+1? ", "a": " 2 ", "datasource": "easy"}',  # a byte order mark, kept blanks, own source
        '{"q": "2+2?", "a": 4}',
        "",
        '{"q": "half?", "a": 0.5}',
        '{"q": "broken"',
        b'{"q": "caf\xe9", "a": "1"}',
        '["q", "a"]',
        '{"a": "1"}',
        '{"q": "  ", "a": "1"}',
        '{"q": null, "a": "1"}',
        '{"q": 7, "a": "1"}',
        '{"q": "x"}',
        '{"q": "x", "a": null}',
        '{"q": "x", "a": ""}',
        '{"q": "x", "a": true}',
        '{"q": "x", "a": ["1"]}',
        '{"q": "x", "a": NaN}',
        '{"q": "\\ud800", "a": "1"}',
        "[" * 100_000,
        '{"q": "x", "a": ' + "1" * 5000 + "}",
        '{"q": "last", "a": 18.0}',
        json.dumps(DIALOGUE[:1]),
    )
    rows, bad = read_dataset(file, "q", "a")
    assert rows == [
        Row(" 1+1? ", "2", "easy", file, 1),
        Row("2+2?", "4", "some", file, 2),
        Row("half?", "0.5", "some", file, 4),
        Row("last", "18", "some", file, 21),
    ]
    assert reasons(bad) == [
        (5, "broken_json"),
        (6, "not_utf8"),
        (7, "not_an_object"),
        (8, "no_question"),
        (9, "no_question"),
        (10, "no_question"),
        (11, "question_not_text"),
        (12, "no_answer"),
        (13, "no_answer"),
        (14, "no_answer"),
        (15, "answer_not_text"),
        (16, "answer_not_text"),
        (17, "answer_not_text"),
        (18, "not_utf8"),
        (19, "broken_json"),
        (20, "broken_json"),
        (22, "bad_dialogue"),
    ]
    assert {row.file for row in bad} == {file}
    assert [row.detail for row in bad if row.row in (12, 13, 16)] == [
        "key 'a' is missing",
        "key 'a' is null",
        "key 'a' is a list",
    ]


def test_max_rows_counts_good_and_bad(tmp_path):
    file = write(tmp_path / "f.jsonl", "{", '{"q": "x", "a": "1"}', '{"q": "y", "a": "1"}')
    rows, bad = read_dataset(file, "q", "a", max_rows=2)
    assert ([row.question for row in rows], reasons(bad)) == (["x"], [(1, "broken_json")])


def test_orz_release_needs_no_keys(tmp_path):
    no_truth = [{"from": "human", "value": "q"}, {"from": "assistant", "value": "a"}]
    no_answer = [{"from": "human", "value": "q"}, {"from": "assistant", "ground_truth": {"value": None}}]
    three = DIALOGUE + [{"from": "human", "value": "?"}]
    file = write(tmp_path / "orz.json", json.dumps([DIALOGUE, no_truth, no_answer, three, "text"], indent=1))
    rows, bad = read_dataset(file, "prompt", None)
    assert rows == [Row("1+1?", "2", "orz", file, 1)]
    assert reasons(bad) == [(2, "no_answer"), (3, "no_answer"), (4, "bad_dialogue"), (5, "not_an_object")]
    one_a_line = write(tmp_path / "orz.jsonl", json.dumps(DIALOGUE))
    assert read_dataset(one_a_line, "x", "y")[0] == [Row("1+1?", "2", "orz", one_a_line, 1)]


def test_json_list_of_objects_and_json_lines_under_the_name_json(tmp_path):
    good = {"q": "x", "a": "1"}
    as_list = write(tmp_path / "list.json", json.dumps([good, {"q": "y"}], indent=2))
    rows, bad = read_dataset(as_list, "q", "a")
    assert ([row.row for row in rows], reasons(bad)) == ([1], [(2, "no_answer")])
    as_lines = write(tmp_path / "lines.json", json.dumps(good), "{", json.dumps(good))
    rows, bad = read_dataset(as_lines, "q", "a")
    assert ([row.row for row in rows], reasons(bad)) == ([1, 3], [(2, "broken_json")])
    bad_byte = write(tmp_path / "byte.json", b'[{"q": "caf\xe9", "a": "1"},', b'{"q": "x", "a": "1"}]')
    rows, bad = read_dataset(bad_byte, "q", "a")
    assert ([row.row for row in rows], reasons(bad)) == ([2], [(1, "not_utf8")])


@pytest.mark.parametrize(
    "text, found", [("[1, 2", "not valid JSON"), ('{\n"data": [1]\n}', "the keys data"), ("3", "int")]
)
def test_json_that_is_no_list_is_an_error(tmp_path, text, found):
    with pytest.raises(DataError, match=f"--data.prompt_dataset.*{found}"):
        read_dataset(write(tmp_path / "f.json", text), "q", "a")


def test_parquet(tmp_path):
    strings = pa.array([b"x", b"caf\xe9", b"y", None], pa.binary()).cast(pa.string(), safe=False)
    table = pa.table({"q": strings, "a": [1.0, 2.0, None, 4.0], "other": [[1], [2], [3], [4]]})
    file = str(tmp_path / "t.parquet")
    pq.write_table(table, file)
    rows, bad = read_dataset(file, "q", "a")
    assert rows == [Row("x", "1", "t", file, 1)]
    assert reasons(bad) == [(2, "not_utf8"), (3, "no_answer"), (4, "no_question")]
    with pytest.raises(DataError, match="--data.label_key b: .*Keys seen in .*: a, other, q"):
        read_dataset(file, "q", "b")
    with pytest.raises(DataError, match="--data.input_key p: .*Keys seen: a, other, q"):
        read_dataset(file, "p", "b")
    with pytest.raises(DataError, match="can't be read"):
        read_dataset(write(tmp_path / "no.parquet", "text"), "q", "a")


def test_unknown_keys_name_flag_and_keys_seen(tmp_path):
    file = write(tmp_path / "f.jsonl", '{"prompt": "x", "answer": "1"}', '{"prompt": "y", "solution": "1"}')
    with pytest.raises(DataError, match="--data.input_key input: .*Keys seen: answer, prompt, solution"):
        read_dataset(file, "input", "answer")
    with pytest.raises(DataError, match="--data.label_key label: .*answer, prompt, solution"):
        read_dataset(file, "prompt", "label")
    with pytest.raises(DataError, match="--data.label_key is not given"):
        read_dataset(file, "prompt", None)


@pytest.mark.parametrize("spec", ["", "/no/such/file", "gone.jsonl", "a/b/c", "../x", "/no/such@part"])
def test_missing_file_is_an_error_without_asking_the_hub(spec):
    with pytest.raises(DataError, match="--data.prompt_dataset: there is no file or folder"):
        read_dataset(spec, "q", "a")
    with pytest.raises(DataError, match="--eval.dataset: there is no"):
        read_dataset(spec, "q", "a", flags=EVAL_FLAGS)


def test_other_kinds_of_file_are_an_error(tmp_path):
    with pytest.raises(DataError, match="Convert it to JSONL"):
        read_dataset(write(tmp_path / "f.pkl", "x"), "q", "a")


def test_folder_takes_the_files_of_the_split(tmp_path):
    row = json.dumps({"q": "x", "a": "1"})
    (tmp_path / "d" / "data").mkdir(parents=True)
    (tmp_path / "d" / ".cache").mkdir()
    for name in ["data/train-00000-of-00001.jsonl", "data/test.jsonl", "extra.jsonl", ".cache/x.jsonl", "README.md"]:
        write(tmp_path / "d" / name, row)
    folder = str(tmp_path / "d")

    def names(spec, split):
        return [row.file.removeprefix(folder + "/") for row in read_dataset(spec, "q", "a", split)[0]]

    assert names(folder, "train") == ["data/train-00000-of-00001.jsonl", "extra.jsonl"]
    assert names(folder, "test") == ["data/test.jsonl"]
    assert names(folder + "@data", "train") == ["data/train-00000-of-00001.jsonl"]
    with pytest.raises(DataError, match="--data.prompt_split validation: .*other splits only"):
        names(folder + "@data", "validation")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        names(folder + "@nothing", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no .json"):
        names(str(tmp_path / "empty"), "train")


def test_saved_and_hub_datasets(tmp_path, monkeypatch):
    import datasets

    data = datasets.Dataset.from_dict({"q": ["x", ""], "a": ["1", "2"], "extra": [1, 2]})
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "saved")
    folder = str(tmp_path / "saved")
    rows, bad = read_dataset(folder, "q", "a")
    assert rows == [Row("x", "1", folder, folder, 1)] and reasons(bad) == [(2, "no_question")]
    with pytest.raises(DataError, match="--data.prompt_split test: .* has the splits train"):
        read_dataset(folder, "q", "a", "test")
    with pytest.raises(DataError, match="Keys seen: a, extra, q"):
        read_dataset(folder, "question", "answer")

    asked = []

    def load_dataset(name, data_dir=None, split=None):
        asked.append((name, data_dir, split))
        if name == "no/such":
            raise FileNotFoundError("not on the hub")
        return datasets.Dataset.from_dict({"0": [DIALOGUE[0]], "1": [DIALOGUE[1]]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_dataset("org/name@main", "x", None, "test")[0] == [Row("1+1?", "2", "org/name", "org/name", 1)]
    assert asked == [("org/name", "main", "test")]
    with pytest.raises(DataError, match="--data.prompt_dataset no/such: .*not on the hub.*NAME@FOLDER"):
        read_dataset("no/such", "q", "a")


def test_what_a_datasource_and_a_number_become(tmp_path):
    values = ['" own "', '"  "', "7"]
    numbers = ["3.0", "9007199254740992.0", "1e300"]
    file = write(
        tmp_path / "f.jsonl",
        *(f'{{"q": "x", "a": {n}, "datasource": {v}}}' for v, n in zip(values, numbers)),
    )
    rows, bad = read_dataset(file, "q", "a")
    assert [(row.source, row.answer) for row in rows] == [("own", "3"), ("f", "9007199254740992.0"), ("f", "1e+300")]
    assert not bad


def test_splits_have_several_names_and_descriptions_are_no_rows(tmp_path):
    for name, question in [("val.jsonl", "v"), ("eval-0.jsonl", "t"), ("all.jsonl", "n"), ("dataset_infos.json", "d")]:
        write(tmp_path / name, json.dumps({"q": question, "a": "1"}))

    def questions(split):
        return [row.question for row in read_dataset(str(tmp_path), "q", "a", split)[0]]

    assert [questions(split) for split in ("validation", "dev", "test", "train")] == [["v"], ["v"], ["t"], ["n"]]


def test_csv(tmp_path):
    file = write(
        tmp_path / "t.csv",
        b"\xef\xbb\xbfq,a,other",
        '"two, with ""marks""\nand a line",4,x',
        "short",
        "",
        b"caf\xe9,1,x",
        " 2+2? , 4 ,",
    )
    rows, bad = read_dataset(file, "q", "a")
    assert rows == [Row('two, with "marks"\nand a line', "4", "t", file, 3), Row(" 2+2? ", "4", "t", file, 7)]
    assert reasons(bad) == [(4, "broken_csv"), (6, "not_utf8")] and bad[0].detail == "1 fields, the first line has 3"
    with pytest.raises(DataError, match="twice.csv: a name stands twice"):
        read_dataset(write(tmp_path / "twice.csv", "q,q", "x,y"), "q", "a")
    with pytest.raises(DataError, match="open.csv:2: .*Mend the file"):
        read_dataset(write(tmp_path / "open.csv", "q,a", '"x'), "q", "a")


def test_packed_json_lines(tmp_path):
    packed = tmp_path / "some.JSONL.gz"
    packed.write_bytes(gzip.compress(b'{"q": "x", "a": 1}\n{\n'))
    rows, bad = read_dataset(str(packed), "q", "a")
    assert rows == [Row("x", "1", "some", str(packed), 1)] and reasons(bad) == [(2, "broken_json")]
    assert read_dataset(str(tmp_path), "q", "a")[0] == rows  # also in a folder
    for content in (packed.read_bytes()[:-9], b"no gzip"):
        packed.write_bytes(content)
        with pytest.raises(DataError, match="some.JSONL.gz can't be read"):
            read_dataset(str(packed), "q", "a")


def test_nested_keys(tmp_path):
    nested = {"data": {"q": "x", "gold": {"truth": 4}}, "a.b": "1"}
    file = write(tmp_path / "f.jsonl", json.dumps(nested), '{"data": {"q": "y"}}', '{"data": 3}')
    rows, bad = read_dataset(file, "data.q", "data.gold.truth")
    assert [(row.question, row.answer) for row in rows] == [("x", "4")]
    assert reasons(bad) == [(2, "no_answer"), (3, "no_question")]
    assert read_dataset(file, "data.q", "a.b")[0][0].answer == "1"  # a key with a point in its name
    pq.write_table(pa.table({"data": [nested["data"]]}), str(tmp_path / "t.parquet"))
    assert read_dataset(str(tmp_path / "t.parquet"), "data.q", "data.gold.truth")[0][0].answer == "4"
    with pytest.raises(DataError, match="--data.label_key data.nothing: .*Keys seen"):
        read_dataset(file, "data.q", "data.nothing")


def test_the_verifier_of_a_row_in_curations_parquet(tmp_path):
    file = str(tmp_path / "t.parquet")
    metas = ['{"verifier": "letter"}', '{"family": "x"}', "no json, but verifier"]
    pq.write_table(pa.table({"q": ["x"] * 3, "a": ["B"] * 3, "meta": metas}), file)
    assert [row.verifier for row in read_dataset(file, "q", "a")[0]] == ["letter", None, None]
    odd = write(tmp_path / "f.jsonl", '{"q": "x", "a": "B", "verifier": 3}')
    assert reasons(read_dataset(odd, "q", "a")[1]) == [(1, "unknown_verifier")]
