"""JSON lines: one reader for files of others, in which every line may be broken, and a reader and writer for ours."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_orz.report.run_data import open_file


@dataclass(frozen=True)
class Broken:
    """Stands for a record that could not be decoded; `reason` as in `rows.BadRow`."""

    reason: str
    detail: str


def decoded_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, record or Broken) for every line that is not empty; ``.gz`` files are unpacked.

    Raises OSError for what is no file.
    """
    with open_file(path) as file, gzip.open(file) if path.name.lower().endswith(".gz") else file as lines:
        for number, line in enumerate(lines, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():  # an empty line is the end of the file, not a row
                yield number, _decode(line.rstrip(b"\r\n"))


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"), object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        return Broken("not_utf8", str(error))
    except (ValueError, RecursionError) as error:  # ValueError: broken, or an integer of thousands of digits
        return Broken("broken_json", str(error))


def unique_keys(pairs: list[tuple[str, Any]]) -> Any:
    """A JSON object; Broken if a key stands twice, which JSON allows and of which Python would take the last."""
    record = dict(pairs)
    if len(record) == len(pairs):
        return record
    names = [name for name, _ in pairs]
    return Broken("duplicate_key", f"key {next(name for name in names if names.count(name) > 1)!r} stands twice")


def json_line(record: Any) -> bytes:
    """One line of JSON. A lone surrogate becomes its JSON escape, so that every record can be written."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"


def read_records(path: Path) -> Iterator[Any]:
    """The records of a file that `write_records` wrote."""
    with path.open("rb") as lines:
        for line in lines:
            yield json.loads(line)


def write_records(path: Path, records: Iterable[Any]) -> int:
    """Write one record a line and return how many; the file appears under its name when it is complete."""
    count = 0
    with partial_of(path).open("wb") as file:
        for record in records:
            file.write(json_line(record))
            count += 1
    os.replace(partial_of(path), path)
    return count


def write_whole(path: Path, text: str) -> None:
    """Write a text; the file appears under its name when it is complete."""
    partial_of(path).write_text(text, encoding="utf-8")
    os.replace(partial_of(path), path)


def partial_of(path: Path) -> Path:
    """Where a file is written until it is complete."""
    return path.with_name(path.name + ".partial")
