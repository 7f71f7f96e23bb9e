"""A file is whole or as it was before."""

import json

import pytest

from openrlhf_orz.runtime import files


def test_the_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text("before")
    with files.write_aside(path) as stream:
        stream.write("é")
        stream.flush()
        assert path.read_text() == "before"
    assert path.read_bytes() == "é".encode() and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text("before")

    def rows():
        yield {"a": 1}
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.write_json_lines(path, rows())
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_lines_of_json(tmp_path):
    path = tmp_path / "file.jsonl"
    files.write_json_lines(path, [{"a": "é"}, {"b": float("nan")}])
    assert path.read_text(encoding="utf-8") == '{"a": "é"}\n{"b": NaN}\n'
    files.write_json_lines(path, [{"a": "é"}], ensure_ascii=True)
    assert path.read_text() == '{"a": "\\u00e9"}\n'
    files.append_json_line(path, {"b": 2})
    with pytest.raises(ValueError):
        files.append_json_line(path, {"c": float("inf")})
    with pytest.raises(ValueError):
        files.write_json_lines(tmp_path / "other", [{"c": float("inf")}], allow_nan=False)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": "é"}, {"b": 2}]
    assert list(tmp_path.iterdir()) == [path]


def test_lines_that_are_no_objects_are_none(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text('{"a": 1}\n[1]\n\n{"b": 2')
    assert list(files.read_json_lines(path)) == [(1, {"a": 1}), (2, None), (3, None), (4, None)]
