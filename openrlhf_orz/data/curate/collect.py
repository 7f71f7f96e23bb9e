"""Stage 0: reads every input into one schema, in shards; rejects records that are no question with an answer.

A row is {id, question, answer, source, difficulty, pass_rate, meta}. The first four are text, `difficulty` is text or
null, `pass_rate` a share or null, and `meta` an object of small values, among them `file` and `row` (in JSON lines the
number of the line).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from openrlhf_orz.data.curate.inputs import Entry, Input, curated_row, generated_rows
from openrlhf_orz.data.curate.shards import Stage, rejection
from openrlhf_orz.data.curate.signature import hash64
from openrlhf_orz.data.json_lines import Broken
from openrlhf_orz.data.rows import BadValue, answer_of, as_dialogue, from_dialogue, question_of, row_verifier
from openrlhf_orz.data.sources import DataFlags, records
from openrlhf_orz.reward.extract import boxes

_TEXT_CHARS = 300  # of a value kept in meta


def collect(inputs: list[Input], stage: Stage, shard_rows: int) -> None:
    """Write the shards of `stage`; no shard spans two inputs. The rows of finished shards are skipped."""
    shard, taken = 0, Taken()
    for item in inputs:
        rows = read_input(item, taken)
        while True:
            if stage.has(shard):
                counts = stage.counts(shard)
                for _ in range(counts["_read"]):
                    next(rows, None)
                last = counts["_last"]
            else:
                last = _write(stage, shard, item, rows, shard_rows)
            shard += 1
            if last:
                break
    stage.finish(inputs=[_described(item) for item in inputs], ids_repeated=taken.repeated)


def _write(stage: Stage, shard: int, item: Input, rows: Iterator[tuple[dict, tuple | None]], size: int) -> bool:
    rejected: list[dict] = []
    sources: Counter[str] = Counter()
    read = 0

    def kept() -> Iterator[dict]:
        nonlocal read
        for row, refusal in rows:
            read += 1
            sources[row["source"]] += 1
            if refusal is None:
                yield row
            else:
                rejected.append(rejection(row, "collect", *refusal))
            if read == size:
                return

    stage.write(shard, kept(), rejected, lambda: {"_read": read, "_last": read < size, "sources": sources})
    return read < size


def _described(item: Input) -> dict:
    made = "Apache-2.0 (reasoning-gym)" if item.generated and "reasoning_gym" in item.generated else "generated"
    what = {"name": item.name, "licence": made if item.generated else item.fields.licence or "not stated"}
    return what | ({"generated": item.generated} if item.generated else {"path": Path(item.path).name})


class Taken:
    """The ids given so far, as hashes. A row keeps its own id unless another has it."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.repeated = 0

    def choose(self, own: str | None, place: str) -> str:
        """The id of a row: its own, else the one made of its input and row number."""
        if own and hash64(own) not in self._seen:
            place = own
        elif own:
            self.repeated += 1
        self._seen.add(hash64(place))
        return place


def read_input(item: Input, taken: Taken | None = None) -> Iterator[tuple[dict, tuple | None]]:
    """(row, None) for each good row; for each bad one (the row as far as it is known, (reason, detail))."""
    taken = taken or Taken()
    if item.generated:
        for number, row in enumerate(generated_rows(item.generated, item.name), 1):
            yield {"id": taken.choose(None, f"{item.name}#{number}"), **row}, None
        return
    fields = item.fields
    keys = [*fields.question, *fields.answer, *fields.source, *fields.difficulty, *fields.meta, *item.where, "0", "1"]
    columns = {key.split(".")[0] for key in keys} | {"id", "pass_rate", "verifier", "meta", *_MARKS, *keys}
    flags = DataFlags(f"inputs ({item.name}): path", f"inputs ({item.name}): split")
    stems: dict[str, str] = {}
    for count, (file, number, record) in enumerate(records(item.path, fields.split, columns, flags)):
        if item.limit is not None and count >= item.limit:
            return
        where = stems.setdefault(file, _place(file, item.path))
        meta = {"file": _shown(file, item.path), "row": number}
        own = _own_id(record)
        place = f"{item.name}{where}#{number}"
        row = {"id": taken.choose(own, place), **curated_row("", "", item.source or item.name, None, meta)}
        if own and row["id"] == place:
            meta["own_id"] = own
        try:
            yield _fill(row, record, item), None
        except BadValue as found:
            yield row, found.args


def _place(file: str, path: str) -> str:
    """The part of an id that tells the files of a folder apart."""
    return "" if file == path or not Path(path).is_dir() else "/" + Path(file).relative_to(path).as_posix()


def _shown(file: str, path: str) -> str:
    """The file without the folders above the input, so that results do not depend on where the data lie."""
    return Path(path).name + _place(file, path)


def _fill(row: dict, record: Any, item: Input) -> dict:
    """Put the fields of a record into a row. Raises BadValue."""
    fields = item.fields
    record = _fill_question_and_answer(row, record, fields)
    _, source = first_value(record, fields.source)
    if item.source is None and isinstance(source, str) and source.strip():
        row["source"] = _small(source.strip())
    _, difficulty = first_value(record, fields.difficulty)
    if isinstance(difficulty, (str, int, float)) and not isinstance(difficulty, bool):
        row["difficulty"] = str(_small(difficulty))
    rate = record.get("pass_rate")
    if isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 <= rate <= 1:
        row["pass_rate"] = float(rate)
    for key in fields.meta:
        _, value = first_value(record, (key,))
        if isinstance(value, (str, int, float)) and not (isinstance(value, float) and not math.isfinite(value)):
            row["meta"][key] = _small(value)
    if verifier := row_verifier(record):  # else the row would be graded by another
        row["meta"]["verifier"] = verifier
    for key, allowed in item.where.items():
        value = row[key] if key in ("source", "difficulty") else first_value(record, (key,))[1]
        if not _allowed(value, allowed):
            raise BadValue("not_selected", f"{key}: {_small(value)!r}")
    for key, (reason, fine) in _MARKS.items():
        value = record.get(key)
        if isinstance(value, (str, bool)) and value != "" and not fine(str(value).strip().lower()):
            raise BadValue(reason, f"{key}: {_small(value)!r}")
    return row


# Columns by which data sets (NuminaMath 1.5, OpenR1) mark rows themselves: the reason, and whether a value is fine.
_VALID = ("marked_incomplete", lambda value: value in ("yes", "true"))
_MARKS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "question_type": ("marked_proof", lambda value: value != "proof"),
    "problem_is_valid": _VALID,
    "solution_is_valid": _VALID,
}


def _own_id(record: Any) -> str | None:
    value = record.get("id") if isinstance(record, dict) else None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    try:
        return str(_small(str(value).strip())) or None
    except ValueError:  # an integer of thousands of digits
        return None


def _small(value: Any) -> Any:
    """A value for meta; text is cut and made UTF-8."""
    return value.encode("utf-8", "replace").decode()[:_TEXT_CHARS] if isinstance(value, str) else value


def _allowed(value: Any, allowed: Any) -> bool:
    if isinstance(allowed, dict):
        try:
            number = float(value)
        except (TypeError, ValueError):
            return False
        return allowed.get("min", -math.inf) <= number <= allowed.get("max", math.inf)
    choices = allowed if isinstance(allowed, list) else [allowed]
    return any(value == choice or str(value).lower() == str(choice).lower() for choice in choices)


def _fill_question_and_answer(row: dict, record: Any, fields: Entry) -> dict:
    """Returns the record's other fields."""
    dialogue = as_dialogue(record)
    if isinstance(record, Broken):
        raise BadValue(record.reason, record.detail)
    if dialogue is not None:
        row["question"], row["answer"] = from_dialogue(dialogue)
        record = record if isinstance(record, dict) else {}
    elif isinstance(record, dict):
        key, value = first_value(record, fields.question)
        value = question_text(value, fields.question_from)
        if isinstance(value, str):
            row["question"] = value  # rejected.jsonl shows it even if it is refused now
        row["question"] = question_of(value, f"key {key or fields.question[0]!r}")
        key, value = first_value(record, fields.answer)
        value = answer_text(value, fields.answer_from, key or "")
        row["answer"] = answer_of(value, f"key {key or fields.answer[0]!r}")
    else:
        raise BadValue("not_an_object", f"{type(record).__name__}, not an object with question and answer")
    return record


# ---- fields of a record


def first_value(record: dict, keys: tuple[str, ...]) -> tuple[str | None, Any]:
    """The first of `keys` whose value is not null, and its value, or (None, None). "a.b" goes into objects."""
    for key in keys:
        value: Any = record
        for part in [key] if key in record else key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return key, value
    return None, None


def question_text(value: Any, how: str) -> Any:
    """The question in the value under its key: text, or the user's last turn in a list of messages."""
    if isinstance(value, list):  # messages
        turns = [turn for turn in value if isinstance(turn, dict) and turn.get("role") in ("user", "human")]
        value = turns[-1].get("content") if turns else None
    if how == "few_shot" and isinstance(value, str):
        value = re.split(r"(?:^|\n)\s*Question:", value)[-1]
        value = re.sub(r"\s*Answer:\s*$", "", value).strip()
    return value


def answer_text(value: Any, how: str, key: str = "answer") -> Any:
    """The final answer in the value under `key`; None if the text has none."""
    if not isinstance(value, str):
        return value
    if how == "auto":
        how = "hashes" if "#### " in value else "boxed" if key == "solution" else "answer"
    if how == "boxed":
        found = boxes(value)
        return found[-1] if found else None
    if how == "hashes":
        return value.rsplit("####", 1)[1] if "####" in value else None
    return value
