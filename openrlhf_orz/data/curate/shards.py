"""Stages on disk: shards of rows that appear whole or not at all, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


def code_version() -> str:
    """A hash of this package's files: what another version of the code wrote is not gone on from."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in (".py", ".npz"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def dumps(record: Any) -> bytes:
    """One line of JSON. A lone surrogate becomes its JSON escape, so that every record can be written."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"


def read_lines(path: Path) -> Iterator[dict]:
    """The records of a file that `write_lines` wrote."""
    with path.open("rb") as lines:
        for line in lines:
            yield json.loads(line)


def write_lines(path: Path, records: Iterable[Any]) -> int:
    """Write JSON lines; the file appears when it is complete. Returns the number of records."""
    partial = path.with_name(path.name + ".partial")
    count = 0
    with partial.open("wb") as file:
        for record in records:
            file.write(dumps(record))
            count += 1
    os.replace(partial, path)
    return count


def write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def key_of(*parts: Any) -> str:
    """A hash of JSON-able values: what a stage was made from."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rejection(row: dict, stage: str, reason: str, detail: str = "", **more: Any) -> dict:
    """The line of rejected.jsonl for a row; long questions are cut there."""
    question = row["question"]
    cut = {"question": question[:2000], "question_chars": len(question)} if len(question) > 2000 else {}
    origin = {name: row["meta"][name] for name in ("file", "row") if name in row["meta"]}
    return {
        "id": row["id"], "stage": stage, "reason": reason, **({"detail": detail} if detail else {}), **more, **origin,
        "question": question, "answer": row["answer"][:2000], "source": row["source"], **cut,
    }  # fmt: skip


class Stage:
    """The folder of one stage: numbered shards of kept rows and of rejections, each with its counts.

    A shard is there when its `.done` file is. `key` says what the stage is made from; a folder with another key is
    emptied. `done` is True when the stage was finished.
    """

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key
        self.name = folder.name.split("_", 1)[-1]
        marker = folder / "stage.json"
        found = json.loads(marker.read_text()) if marker.exists() else {}
        if found.get("key") != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_text(marker, json.dumps({"key": key, "done": False}))
            found = {}
        for partial in folder.rglob("*.partial"):
            partial.unlink()
        self.done: bool = bool(found.get("done"))
        self.summary: dict = found.get("summary", {})

    def kept(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.jsonl"

    def rejected(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.rejected.jsonl"

    def has(self, shard: int) -> bool:
        return (self.folder / f"{shard:05d}.done").exists()

    def write(
        self,
        shard: int,
        kept: Iterable[dict],
        rejected: Iterable[dict],
        more: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """Write a shard; `rejected` is read after `kept`, then `more` gives further counts of it.

        `finish` adds up counts (numbers, or objects of numbers) but for those whose names begin with "_".
        """
        reasons: Counter[str] = Counter()

        def counted() -> Iterator[dict]:
            for record in rejected:
                reasons[record["reason"]] += 1
                yield record

        n_kept = write_lines(self.kept(shard), kept)
        n_rejected = write_lines(self.rejected(shard), counted())
        counts = {"kept": n_kept, "rejected": n_rejected, "reasons": dict(sorted(reasons.items())), **more()}
        write_text(self.folder / f"{shard:05d}.done", json.dumps(counts, sort_keys=True))

    def shards(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.done"))

    def counts(self, shard: int) -> dict:
        return json.loads((self.folder / f"{shard:05d}.done").read_text())

    def rows(self) -> Iterator[dict]:
        """Every kept row, in order."""
        for shard in self.shards():
            yield from read_lines(self.kept(shard))

    def rejections(self) -> Iterator[dict]:
        for shard in self.shards():
            yield from read_lines(self.rejected(shard))

    def finish(self, **more: Any) -> None:
        """Add up the shards and mark the stage as done."""
        totals = {"kept": 0, "rejected": 0}
        reasons: Counter[str] = Counter()
        extra: dict[str, Counter] = {}
        for shard in self.shards():
            counts = self.counts(shard)
            reasons.update(counts.pop("reasons"))
            for name, value in counts.items():
                if name.startswith("_"):
                    continue
                if isinstance(value, dict):
                    extra.setdefault(name, Counter()).update(value)
                else:
                    totals[name] = totals.get(name, 0) + value
        self.summary = {
            "stage": self.name, "rows_in": totals["kept"] + totals["rejected"], **totals,
            "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
            **{name: dict(sorted(counter.items())) for name, counter in extra.items()}, **more,
        }  # fmt: skip
        self.done = True
        marker = {"key": self.key, "done": True, "summary": self.summary}
        write_text(self.folder / "stage.json", json.dumps(marker, ensure_ascii=False))
