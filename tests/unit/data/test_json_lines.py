"""JSON lines: a file is whole or not there, every record can be written, every broken line has a reason."""

import pytest

from openrlhf_orz.data.json_lines import Broken, decoded_lines, read_records, write_records, write_whole


def test_records_come_back(tmp_path):
    records = [{"a": "é 中"}, {"lone": "\ud800"}, {"b": None}]
    assert write_records(tmp_path / "f.jsonl", iter(records)) == 3
    assert list(read_records(tmp_path / "f.jsonl")) == records
    assert (tmp_path / "f.jsonl").read_bytes().splitlines()[:2] == ['{"a": "é 中"}'.encode(), b'{"lone": "\\ud800"}']
    with pytest.raises(ValueError):
        write_records(tmp_path / "g.jsonl", [float("nan")])


def test_a_file_that_was_not_finished_leaves_the_old_one(tmp_path):
    def records():
        yield {"new": 1}
        raise KeyboardInterrupt

    write_records(tmp_path / "f.jsonl", [{"old": 1}])
    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path / "f.jsonl", records())
    assert list(read_records(tmp_path / "f.jsonl")) == [{"old": 1}]
    write_whole(tmp_path / "g.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "g.txt", "new" * 10_000 + "\ud800")
    assert (tmp_path / "g.txt").read_text() == "old"


def test_lines_of_others_are_numbered_and_broken_ones_stay_in_their_place(tmp_path):
    lines = [b'\xef\xbb\xbf{"a": 1}\r', b"", b'{"a": 1, "a": 2}', b'{"a"', b'"\xe9"', b"[1]"]
    (tmp_path / "f.jsonl").write_bytes(b"\n".join(lines))
    found = [
        (number, record.reason if isinstance(record, Broken) else record)
        for number, record in decoded_lines(tmp_path / "f.jsonl")
    ]
    assert found == [(1, {"a": 1}), (3, "duplicate_key"), (4, "broken_json"), (5, "not_utf8"), (6, [1])]
