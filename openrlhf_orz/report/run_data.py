"""Reads a run directory as it is: while the run still writes, from older versions, or damaged."""

import errno
import json
import math
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

SHOWN_LINES = 5  # damaged lines whose numbers are given


class RunError(ValueError):
    """There is nothing to report in a run directory; the message names the directory and the remedy."""


@dataclass
class Run:
    """One run. ``metrics`` and ``evals`` are rows by step; ``notes`` say what is missing or could not be read."""

    path: Path
    name: str
    metrics: list[dict]
    evals: list[dict] = field(default_factory=list)
    config: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def rollout_files(self) -> dict[int, Path]:
        """The rollout file of each step that has one, in the order of steps."""
        files = {}
        for file in (self.path / "rollouts").glob("step_*.jsonl"):
            if number := re.fullmatch(r"step_([0-9]{1,12})", file.stem):
                files[int(number[1])] = file
        return dict(sorted(files.items()))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refuse(digits)


def open_file(path: Path) -> BinaryIO:
    """Open a file to read its bytes. Raises OSError for what is no file: a pipe would be waited for without an end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(handle, "rb")


def read_objects(path: Path, notes: list[str]) -> list[dict]:
    """The JSON objects of a file, one per line. Other lines are counted and numbered in ``notes``.

    A last line without its line end is still being written, and is ignored.
    """
    rows, damaged = [], []
    with open_file(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_constant=_refuse, parse_float=_finite)
                if not isinstance(row, dict):
                    raise ValueError("no object")
            except (ValueError, RecursionError):
                if line.endswith(b"\n"):
                    damaged.append(number)
                continue
            rows.append(row)
    if damaged:
        named = ", ".join(map(str, damaged[:SHOWN_LINES])) + (", ..." if len(damaged) > SHOWN_LINES else "")
        word = "line is" if len(damaged) == 1 else "lines are"
        notes.append(f"{path.name}: {len(damaged)} {word} damaged and left out (line {named})")
    return rows


def by_step(rows: list[dict], name: str, notes: list[str]) -> list[dict]:
    """Rows in the order of steps; ``notes`` says which rows are left out.

    A run that was resumed at an earlier step has taken back what came after it: those rows are left out, too.
    """
    kept: dict[int, dict] = {}
    without = taken_back = 0
    for row in rows:
        step = row.get("step")
        if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 <= step < 1e12 or step % 1:
            without += 1
            continue
        while kept and next(reversed(kept)) >= step:
            kept.popitem()
            taken_back += 1
        kept[int(step)] = row
    if without:
        notes.append(f"{name}: {without} rows without a step are left out")
    if taken_back:
        notes.append(f"{name}: {taken_back} rows of steps that a resumed run has taken back are left out")
    return [kept[step] for step in sorted(kept)]


def load_run(path: str | Path, name: str | None = None) -> Run:
    """Read a run directory. Raises RunError if it is not one."""
    path = Path(path)
    if not path.is_dir():
        raise RunError(f"{path} is no directory: give a run's own, the one that holds metrics.jsonl")
    notes: list[str] = []
    found = {}
    for part in ("metrics.jsonl", "eval.jsonl"):
        try:
            found[part] = by_step(read_objects(path / part, notes), part, notes)
        except FileNotFoundError:
            found[part] = []
    config = {}
    try:
        with open_file(path / "config.json") as stream:
            config = json.loads(stream.read().decode("utf-8", errors="replace"))
        if not isinstance(config, dict):
            raise ValueError("no object")
    except FileNotFoundError:
        notes.append("config.json is not there: no configuration is shown")
    except (ValueError, RecursionError) as error:
        config = {}
        notes.append(f"config.json cannot be read ({error})")
    if not (path / "metrics.jsonl").exists() and not config:
        raise RunError(f"{path} holds neither metrics.jsonl nor config.json: give a run's own directory")
    if not found["metrics.jsonl"]:
        notes.append("no step is finished yet")
    return Run(path, name or path.resolve().name, found["metrics.jsonl"], found["eval.jsonl"], config, notes)


def load_runs(paths: list[str | Path]) -> list[Run]:
    """Read several runs; those whose directories have the same name get a number."""
    runs: list[Run] = []
    taken: set[str] = set()
    for path in paths:
        run = load_run(path)
        number = 2
        while run.name in taken:
            run.name = f"{Path(path).resolve().name} ({number})"
            number += 1
        taken.add(run.name)
        runs.append(run)
    return runs


def number_or_none(value: Any) -> float | None:
    """A finite number to five significant digits, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        return None
    if isinstance(value, int) or value == int(value):
        return int(value)
    return float(f"{value:.5g}")


def columns(rows: list[dict]) -> dict[str, list]:
    """The numeric keys of ``rows`` as lists of equal length, with None where a row has no finite number."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    table = {key: [number_or_none(row.get(key)) for row in rows] for key in keys}
    return {key: values for key, values in table.items() if any(value is not None for value in values)}


def flatten_flags(config: Any, prefix: str = "") -> dict[str, str]:
    """Nested flags as {"actor.adam.lr": "1e-06"}; nothing of what is no object."""
    flat: dict[str, str] = {}
    if not isinstance(config, dict):
        return flat
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(flatten_flags(value, f"{prefix}{key}."))
        else:
            flat[prefix + str(key)] = value if isinstance(value, str) else json.dumps(value)
    return flat
