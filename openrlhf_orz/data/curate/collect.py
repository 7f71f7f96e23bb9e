"""Stage 1: reads every input into one schema, in shards; what is no question with an answer is rejected by name.

A row is {id, question, answer, source, difficulty, pass_rate, meta}: text, text, text, text or null, a share or null,
and an object of small values, among them `file` and `row` (where it stood; a line number in JSON lines).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openrlhf_orz.data.curate.entries import Entry, answer_text, entry, look, question_text
from openrlhf_orz.data.curate.shards import Stage, rejection
from openrlhf_orz.data.curate.synthesise import synthesised
from openrlhf_orz.data.rows import BadValue, answer_of, as_dialogue, from_dialogue, question_of
from openrlhf_orz.data.sources import READERS, Broken, DataError, Flags, records

GENERATED = ("additions", "reasoning_gym")  # inputs that are made, not read
_KEYS = {"name", "path", "entry", "split", "question", "answer", "source", "difficulty", "meta", "answer_from",
         "question_from", "licence", "where", "select", "limit"}  # fmt: skip
_TEXT_CHARS = 300  # of a value kept in meta


@dataclasses.dataclass(frozen=True)
class Input:
    """One element of the configuration's `inputs`, checked."""

    name: str
    path: str
    fields: Entry
    source: str | None  # the same for all rows
    where: dict[str, Any]
    limit: int | None
    generated: dict[str, Any] | None


def parse_inputs(items: list[dict]) -> list[Input]:
    """The inputs of a configuration; DataError names the element, key and remedy."""
    found = [_parse(item, f"inputs.{i}") for i, item in enumerate(items)]
    names = [item.name for item in found]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise DataError(f"inputs.{i}: a second input is called {name!r}. Give it a `name` of its own.")
    return found


def _parse(item: dict, where: str) -> Input:
    for kind in GENERATED:
        if kind in item:
            unknown = set(item) - {kind, "name"}
            if unknown or not isinstance(item[kind], dict):
                raise DataError(f"{where}: {kind} with its options, and a name, are expected, not {item!r}.")
            name = item.get("name") or (item[kind].get("task") or kind)
            return Input(str(name), "", Entry(), None, {}, None, {kind: item[kind]})
    unknown = set(item) - _KEYS
    if unknown:
        raise DataError(f"{where}.{sorted(unknown)[0]}: there is no such key. There are {', '.join(sorted(_KEYS))}.")
    fields = entry(item["entry"], f"{where}.entry") if "entry" in item else Entry()
    changes: dict[str, Any] = {}
    for key in ("question", "answer", "difficulty", "meta"):
        if key in item:
            value = item[key]
            changes[key] = (value,) if isinstance(value, str) else tuple(value or ())
    changes |= {key: item[key] for key in ("split", "answer_from", "question_from", "licence") if key in item}
    fields = dataclasses.replace(fields, **changes)
    path = str(item.get("path") or fields.path)
    if not path:
        raise DataError(f"{where}: give `path`, a file, a folder or a hub name.")
    conditions = {**fields.where, **(item.get("where") or {}), **(item.get("select") or {})}
    name = item.get("name") or item.get("entry") or _stem(path)
    return Input(str(name), path, fields, item.get("source"), conditions, item.get("limit"), None)


def _stem(path: str) -> str:
    return Path(path).stem if Path(path).suffix.lower() in READERS else path.rstrip("/").rsplit("/", 1)[-1]


def collect(inputs: list[Input], stage: Stage, shard_rows: int) -> None:
    """Write the shards of `stage`. Those that are there are not written again; their rows are only counted off.

    A shard never spans two inputs.
    """
    shard = 0
    for item in inputs:
        rows, counted = read_input(item), 0
        while True:
            if stage.has(shard):
                counts = stage.counts(shard)
                for _ in range(counts["_read"]):
                    next(rows, None)
                counted += counts["_read"]
                last = counts["_last"]
            else:
                last = _write(stage, shard, item, rows, shard_rows)
            shard += 1
            if last:
                break
    stage.finish(inputs=[_described(item) for item in inputs])


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


def read_input(item: Input) -> Iterator[tuple[dict, tuple | None]]:
    """(row, None), or (what is known of a bad row, (reason, detail))."""
    if item.generated:
        for number, row in enumerate(synthesised(item.generated, item.name), 1):
            yield {"id": f"{item.name}#{number}", **row}, None
        return
    fields = item.fields
    keys = [*fields.question, *fields.answer, *fields.source, *fields.difficulty, *fields.meta, *item.where, "0", "1"]
    columns = {key.split(".")[0] for key in keys} | {"id", "pass_rate", *keys}
    flags = Flags(f"inputs ({item.name}): path", f"inputs ({item.name}): split")
    stems: dict[str, str] = {}
    for count, (file, number, record) in enumerate(records(item.path, fields.split, columns, flags)):
        if item.limit is not None and count >= item.limit:
            return
        where = stems.setdefault(file, _place(file, item.path))
        row = {
            "id": f"{item.name}{where}#{number}", "question": "", "answer": "", "source": item.source or item.name,
            "difficulty": None, "pass_rate": None, "meta": {"file": _shown(file, item.path), "row": number},
        }  # fmt: skip
        try:
            yield _fill(row, record, item), None
        except BadValue as found:
            yield row, found.args


def _place(file: str, path: str) -> str:
    """What tells the files of a folder apart in ids."""
    return "" if file == path or not Path(path).is_dir() else "/" + Path(file).relative_to(path).as_posix()


def _shown(file: str, path: str) -> str:
    """The file without the folders above the input, so that results do not depend on where the data lie."""
    return Path(path).name + _place(file, path)


def _fill(row: dict, record: Any, item: Input) -> dict:
    fields = item.fields
    dialogue = as_dialogue(record)
    if isinstance(record, Broken):
        raise BadValue(record.reason, record.detail)
    if dialogue is not None:
        row["question"], row["answer"] = from_dialogue(dialogue)
        record = record if isinstance(record, dict) else {}
    elif isinstance(record, dict):
        key, value = look(record, fields.question)
        value = question_text(value, fields.question_from)
        _show(row, "question", value)
        shown = f"key {key or fields.question[0]!r}"
        row["question"] = question_of(value, shown)
        key, value = look(record, fields.answer)
        row["answer"] = answer_of(
            answer_text(value, fields.answer_from, key or ""), f"key {key or fields.answer[0]!r}"
        )
    else:
        raise BadValue("not_an_object", f"{type(record).__name__}, not an object with question and answer")
    _, source = look(record, fields.source)
    if item.source is None and isinstance(source, str) and source.strip():
        row["source"] = _small(source.strip())
    _, difficulty = look(record, fields.difficulty)
    if isinstance(difficulty, (str, int, float)) and not isinstance(difficulty, bool):
        row["difficulty"] = str(_small(difficulty))
    rate = record.get("pass_rate")
    if isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 <= rate <= 1:
        row["pass_rate"] = float(rate)
    for key in ("id", *fields.meta):
        _, value = look(record, (key,))
        if isinstance(value, (str, int, float)) and not (isinstance(value, float) and not math.isfinite(value)):
            row["meta"]["own_id" if key == "id" else key] = _small(value)
    for key, allowed in item.where.items():
        value = row[key] if key in ("source", "difficulty") else look(record, (key,))[1]
        if not _allowed(value, allowed):
            raise BadValue("not_selected", f"{key}: {_small(value)!r}")
    return row


def _show(row: dict, key: str, value: Any) -> None:
    if isinstance(value, str):
        row[key] = value


def _small(value: Any) -> Any:
    """A value fit for meta: short, and UTF-8."""
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
