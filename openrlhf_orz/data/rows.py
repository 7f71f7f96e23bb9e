"""Questions with reference answers from any kind of file or dataset; bad rows are returned with their reasons."""

from __future__ import annotations

import decimal
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_orz.data.json_lines import Broken
from openrlhf_orz.data.sources import READERS, TRAIN_FLAGS, DataError, DataFlags, records

QUESTION_KEYS = ("question", "prompt", "problem", "Question", "Problem")  # where a question stands if no key is given
_MISSING = object()


@dataclass(frozen=True)
class Row:
    """One question. `question` is as it was found, `answer` (the reference) stripped.

    `row` is the line number in a JSONL file, else the number of the row, both from 1; `source` is the row's
    `datasource` if it has one, else the name of the file (without suffix) or dataset.
    """

    question: str
    answer: str
    source: str
    file: str
    row: int


@dataclass(frozen=True)
class BadRow:
    """One row that can't be trained on.

    `reason` is one of broken_json, duplicate_key, not_utf8, not_an_object, bad_dialogue, no_question, no_answer
    (missing, null or empty), question_not_text, answer_not_text. `prepare` adds prompt_too_long and
    reference_unparsable.
    """

    file: str
    row: int
    reason: str
    detail: str


class BadValue(Exception):
    """A bad row was found; `args` are (reason, detail) as in `BadRow`."""


def read_dataset(
    spec: str,
    input_key: str,
    label_key: str | None,
    split: str = "train",
    max_rows: int | None = None,
    *,
    flags: DataFlags = TRAIN_FLAGS,
) -> tuple[list[Row], list[BadRow]]:
    """Read the questions and reference answers of one dataset, in order.

    `spec` is a .jsonl file, a .json file (a list of objects, or one object a line), a .parquet file, a folder of
    these or one written by `Dataset.save_to_disk`, or a hub dataset "name" or "name@folder". The question stands
    under `input_key` and the answer, text or a number, under `label_key`. A row that is a two-turn dialogue as in
    the ORZ release (`[{"from": "human", "value": ...}, {"from": "assistant", "ground_truth": {"value": ...}}]`)
    needs no keys. In a folder, files whose names carry another split are left out. `max_rows` bounds the rows
    read, good and bad. `flags` are named in errors. A bad row never raises. Raises DataError when there is nothing
    to read at `spec`, or when no row has `input_key` or `label_key`.
    """
    columns = {input_key, "datasource", "0", "1"} | ({label_key} if label_key else set())
    rows: list[Row] = []
    bad: list[BadRow] = []
    keys: dict[str, None] = {}  # seen in rows that are objects; a dict for its order
    for file, number, record in itertools.islice(records(spec, split, columns, flags), max_rows):
        try:
            dialogue = as_dialogue(record)
            if dialogue is not None:
                question, answer = from_dialogue(dialogue)
            elif isinstance(record, dict):
                keys |= dict.fromkeys(record)
                question = question_of(record.get(input_key, _MISSING), f"key {input_key!r}")
                answer = answer_of(record.get(label_key, _MISSING), f"key {label_key!r}")
            elif isinstance(record, Broken):
                raise BadValue(record.reason, record.detail)
            else:
                raise BadValue("not_an_object", f"{_kind(record)}, not an object with question and answer")
            rows.append(Row(question, answer, _source(record, file), file, number))
        except BadValue as found:
            bad.append(BadRow(file, number, *found.args))
    if keys and not rows:
        _check_keys(keys, spec, input_key, label_key)
    return rows, bad


def _check_keys(keys: dict[str, None], spec: str, input_key: str, label_key: str | None) -> None:
    seen = ", ".join(sorted(map(str, keys)))
    if input_key not in keys:
        raise DataError(f"--data.input_key {input_key}: no row of {spec} has it. Keys seen: {seen}. Name one of them.")
    if label_key not in keys:
        asked = f"--data.label_key {label_key}"
        found = f"{asked}: no row of {spec} has it." if label_key else "--data.label_key is not given."
        raise DataError(f"{found} Keys seen in {spec}: {seen}. Name the one with the reference answers.")


def as_dialogue(record: Any) -> list | None:
    """The turns of an ORZ dialogue, or None for another record. The hub makes each turn a column "0", "1"."""
    if isinstance(record, dict) and "0" in record and "1" in record:
        record = [record["0"], record["1"]]
    if isinstance(record, list) and record and isinstance(record[0], dict) and "from" in record[0]:
        return record
    return None


def from_dialogue(turns: list) -> tuple[str, str]:
    """Question and answer of a dialogue's turns. Raises BadValue when one is missing."""
    if len(turns) != 2 or not isinstance(turns[1], dict):
        raise BadValue("bad_dialogue", f"{len(turns)} turns, not a question and a ground truth")
    truth = turns[1].get("ground_truth")
    truth = truth if isinstance(truth, dict) else {}
    question = question_of(turns[0].get("value", _MISSING), "value")
    return question, answer_of(truth.get("value", _MISSING), "ground_truth.value")


def question_of(value: Any, where: str) -> str:
    """The question as it is. Raises BadValue, which says `where` it stood, for anything but text."""
    return _text(value, where, "question")


def answer_of(value: Any, where: str) -> str:
    """The answer, text or a number, as text. Raises BadValue, which says `where` it stood, for anything else."""
    number = isinstance(value, (int, float, decimal.Decimal)) and not isinstance(value, bool)
    if number and (isinstance(value, int) or math.isfinite(value)):  # an integer may be beyond any float
        # Tables with gaps turn whole numbers into floats.
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
        try:
            value = str(int(value) if whole else value)
        except ValueError as error:  # an integer of thousands of digits
            raise BadValue("answer_not_text", f"{where}: {error}") from None
    return _text(value, where, "answer").strip()


def _text(value: Any, where: str, what: str) -> str:
    if value is _MISSING:
        raise BadValue(f"no_{what}", f"{where} is missing")
    if value is None:
        raise BadValue(f"no_{what}", f"{where} is null")
    if not isinstance(value, str):
        raise BadValue(f"{what}_not_text", f"{where} is {_kind(value)}")
    if not value.strip():
        raise BadValue(f"no_{what}", f"{where} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # a lone surrogate, which no tokenizer takes
        raise BadValue("not_utf8", f"{where}: {error}") from None
    return value


def _kind(value: Any) -> str:
    if isinstance(value, (float, decimal.Decimal)) and not math.isfinite(value):
        return f"{value}, not a finite number"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")


def _source(record: Any, file: str) -> str:
    given = record.get("datasource") if isinstance(record, dict) else None
    if isinstance(given, str) and given.strip():
        return given.strip().encode("utf-8", "replace").decode()
    return Path(file).stem if Path(file).suffix.lower() in READERS else file.rstrip("/")
