"""Where rows come from: finds and decodes files, folders and hub datasets into raw records, one at a time.

Data is data: files are decoded as JSON, CSV, Parquet or Arrow, and nothing in them is run or unpickled.
"""

from __future__ import annotations

import csv
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_orz.data.json_lines import Broken, decoded_lines, unique_keys

READERS = (".json", ".jsonl", ".jsonl.gz", ".csv", ".parquet")
LONGEST_FIELD = 1 << 26  # characters of a field of a CSV file
TABLE_BATCH = 128  # rows decoded at a time
LARGE_BATCH = 2**19  # bytes
# Files of a folder that describe it and hold no rows.
_DESCRIPTIONS = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}
_SPLIT_ALIASES = {
    **dict.fromkeys(("training",), "train"),
    **dict.fromkeys(("valid", "val", "dev"), "validation"),
    **dict.fromkeys(("testing", "eval", "evaluation"), "test"),
}
_SPLIT_WORDS = {"train", "validation", "test", *_SPLIT_ALIASES}

Record = tuple[str, int, Any]  # file, row number from 1, decoded record or Broken


class DataError(ValueError):
    """Data that no run can start with; the message names the flag, what was found and the remedy."""


@dataclass(frozen=True)
class DataFlags:
    """The flags that name a dataset, its split and its keys; errors name them."""

    dataset: str
    split: str
    input_key: str = "--data.input_key"
    label_key: str = "--data.label_key"


TRAIN_FLAGS = DataFlags("--data.prompt_dataset", "--data.prompt_split")
EVAL_FLAGS = DataFlags("--eval.dataset", "--eval.split")


def records(spec: str, split: str, columns: set[str] | None, flags: DataFlags = TRAIN_FLAGS) -> Iterator[Record]:
    """Every record of `spec` in order (see `rows.read_dataset` for what a spec may be).

    Of tables (Parquet, saved and hub datasets) only `columns` are decoded, or all (None); the others are None.
    Raises DataError when there is no such file, folder or dataset, or it can't be read at all.
    """
    name, data_dir, path = _place(spec, flags)
    if path is not None:
        path = path / data_dir
        if path.is_dir():
            return _folder(path, split, columns, flags)
        if path.is_file():
            return _file(path, columns, flags)
        raise DataError(f"{flags.dataset}: {path} is neither a file nor a folder. Check the path.")
    return _hub(name, data_dir or None, split, columns, flags)


def is_here(spec: str, flags: DataFlags) -> bool:
    """Whether `spec` is a file or folder, and not a dataset on the hub. Raises DataError as `records` does."""
    return _place(spec, flags)[2] is not None


def _place(spec: str, flags: DataFlags) -> tuple[str, str, Path | None]:
    """(name, folder in it, path), without a path for a dataset on the hub."""
    name, data_dir = spec.strip(), ""
    if "@" in name and not os.path.exists(Path(name).expanduser()):
        name, data_dir = (part.strip() for part in name.split("@", 1))
    path = Path(name).expanduser()
    try:
        exists = path.exists()
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise DataError(
            f"{flags.dataset}: {name[:200]!r} can't be reached: {error.strerror}. Check the path."
        ) from None
    if not name or (not exists and _looks_like_path(name)):
        raise DataError(f"{flags.dataset}: there is no file or folder {name!r}. Check the path.")
    return name, data_dir, path if exists else None


def suffix_of(path: Path) -> str:
    """What says how a file is read: one of ``READERS``, else its last suffix. Lower case."""
    name = path.name.lower()
    return ".jsonl.gz" if name.endswith(".jsonl.gz") else path.suffix.lower()


def _looks_like_path(name: str) -> bool:
    return suffix_of(Path(name)) in READERS or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name)


def _file(path: Path, columns: set[str] | None, flags: DataFlags) -> Iterator[Record]:
    suffix = suffix_of(path)
    if suffix not in READERS:
        raise DataError(
            f"{flags.dataset}: {path} is not a kind of file that is read ({', '.join(READERS)}). Convert it to JSONL: "
            "one JSON object a line, with question and answer."
        )
    try:
        if suffix == ".parquet":
            yield from _parquet(path, columns)
        elif _begins(path) in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(
                f"{flags.dataset}: {path} is in UTF-16. Save it in UTF-8: iconv -f UTF-16 -t UTF-8 {path.name} > NEW."
            )
        elif suffix == ".csv":
            yield from _csv(path, flags)
        else:
            yield from _json(path, flags) if suffix == ".json" else _json_lines(path)
    except (OSError, EOFError, zlib.error) as error:  # pyarrow's and gzip's own errors among them
        raise DataError(f"{flags.dataset}: {path} can't be read: {error}. Replace the file.") from error


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def _json_lines(path: Path) -> Iterator[Record]:
    yield from ((str(path), number, record) for number, record in decoded_lines(path))


def _csv(path: Path, flags: DataFlags) -> Iterator[Record]:
    """Rows by the names in the first line; all values are text. The number of a row is that of its last line."""
    csv.field_size_limit(LONGEST_FIELD)
    # bad bytes become lone surrogates, so that only the rows that hold them are refused
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        lines = csv.reader(text, strict=True)
        try:
            names = next(lines, [])
            if len(set(names)) != len(names):
                raise DataError(f"{flags.dataset}: {path}: a name stands twice in the first line. Rename one column.")
            for values in lines:
                if len(values) == len(names):
                    yield str(path), lines.line_num, dict(zip(names, values))
                elif values:
                    detail = f"{len(values)} fields, the first line has {len(names)}"
                    yield str(path), lines.line_num, Broken("broken_csv", detail)
        except csv.Error as error:
            raise DataError(f"{flags.dataset}: {path}:{lines.line_num}: {error}. Mend the file.") from None


def _json(path: Path, flags: DataFlags) -> Iterator[Record]:
    # Bad bytes become lone surrogates, so that only the rows that hold them are refused.
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    try:
        whole = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        # One record a line under the name .json is common.
        if text.lstrip().startswith("{") or getattr(error, "msg", "") == "Extra data":
            yield from _json_lines(path)
            return
        raise DataError(f"{flags.dataset}: {path} is not valid JSON: {error}. Mend the file.") from error
    if isinstance(whole, dict) and "\n" not in text.strip():
        whole = [whole]  # one line of JSON lines
    if isinstance(whole, Broken):
        whole = [whole]
    if not isinstance(whole, list):
        found = f"an object with the keys {', '.join(whole)}" if isinstance(whole, dict) else type(whole).__name__
        raise DataError(f"{flags.dataset}: {path} holds {found}, not a list of rows. Give the list alone, or JSONL.")
    for number, record in enumerate(whole, 1):
        yield str(path), number, record


def _parquet(path: Path, columns: set[str] | None) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        names, wanted = schema.names, [name for name in schema.names if columns is None or name in columns]
        # a dictionary's text is stored once, and would be copied for each of its rows
        flat = [name for name in wanted if not pa.types.is_nested(schema.field(name).type)]
        file = pq.ParquetFile(path, read_dictionary=flat)
        batches = file.iter_batches(batch_size=TABLE_BATCH, columns=wanted)
        for number, record in enumerate(_table_records(batches, names), 1):
            yield str(path), number, record
    except pa.ArrowException as error:
        raise OSError(error) from error


def _table_records(batches: Iterable[Any], names: list[str]) -> Iterator[Any]:
    """Records of pyarrow tables or record batches, with a None for each of `names` that was not decoded."""
    absent = dict.fromkeys(names)
    for batch in batches:
        rows = (batch.slice(i, 1) for i in range(batch.num_rows))
        if batch.nbytes > LARGE_BATCH:  # one row at a time
            decoded: Iterable[Any] = map(_decode_table_row, rows)
        else:
            try:
                decoded = batch.to_pylist()
            except UnicodeDecodeError:
                decoded = map(_decode_table_row, rows)
        for record in decoded:
            yield record if isinstance(record, Broken) else absent | record


def _decode_table_row(one: Any) -> Any:
    try:
        return one.to_pylist()[0]
    except UnicodeDecodeError as error:
        return Broken("not_utf8", str(error))


def _folder(path: Path, split: str, columns: set[str] | None, flags: DataFlags) -> Iterator[Record]:
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        yield from _saved(path, split, columns, flags)
        return
    files = [
        file
        for file in sorted(path.rglob("*"))
        if suffix_of(file) in READERS
        and file.is_file()
        and file.name not in _DESCRIPTIONS
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not files:
        raise DataError(f"{flags.dataset}: the folder {path} has no {', '.join(READERS)} file. Check the path.")
    chosen = _of_split(files, path, split)
    if not chosen:
        found = ", ".join(str(file.relative_to(path)) for file in files[:5])
        raise DataError(
            f"{flags.split} {split}: the folder {path} has files of other splits only ({found}). Name one of them."
        )
    for file in chosen:
        yield from _file(file, columns, flags)


def _of_split(files: list[Path], folder: Path, split: str) -> list[Path]:
    """The files of a split, by the words in their names; a file that names no split belongs to "train"."""

    def splits(file: Path) -> set[str]:
        words = set(re.split(r"[^a-z]+", str(file.relative_to(folder)).lower())) & _SPLIT_WORDS
        return {_SPLIT_ALIASES.get(word, word) for word in words}

    split = _SPLIT_ALIASES.get(split.lower(), split.lower())
    named = [file for file in files if split in splits(file)]
    plain = [file for file in files if not splits(file)]
    return sorted(named + plain) if split == "train" else named or plain


def _saved(path: Path, split: str, columns: set[str] | None, flags: DataFlags) -> Iterator[Record]:
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(f"{flags.dataset}: the saved dataset {path} did not load: {error}. Save it anew.") from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise DataError(f"{flags.split} {split}: {path} has the splits {', '.join(data)}. Name one of them.")
        data = data[split]
    yield from _dataset_records(data, str(path), columns)


def _hub(name: str, data_dir: str | None, split: str, columns: set[str] | None, flags: DataFlags) -> Iterator[Record]:
    import datasets

    try:
        data = datasets.load_dataset(name, data_dir=data_dir, split=split)
    except Exception as error:
        raise DataError(
            f"{flags.dataset} {name}: there is no such file or folder here, and as a hub dataset (split {split} of "
            f"{flags.split}) it did not load: {error}. Check the name and the network; a part of a dataset is given "
            "as NAME@FOLDER."
        ) from error
    yield from _dataset_records(data, name, columns)


def _dataset_records(data: Any, file: str, columns: set[str] | None) -> Iterator[Record]:
    names = list(data.column_names)
    wanted = [name for name in names if columns is None or name in columns]
    if not wanted:  # nothing to decode, yet every row counts
        yield from ((file, number, dict.fromkeys(names)) for number in range(1, len(data) + 1))
        return
    batches = data.select_columns(wanted).with_format("arrow").iter(batch_size=TABLE_BATCH)
    for number, record in enumerate(_table_records(batches, names), 1):
        yield file, number, record
