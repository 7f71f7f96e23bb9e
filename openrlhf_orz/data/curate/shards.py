"""Stages on disk, in shards of rows that appear whole or not at all: a killed run goes on at its last shard."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from openrlhf_orz.data.json_lines import read_records, write_records, write_whole


def code_version() -> str:
    """A hash of this folder's files: a run does not go on from the stages of another version of the code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in (".py", ".npz"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as data:
        while block := data.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def key_of(*parts: Any) -> str:
    """A hash of JSON-able values, from which a stage was made."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rejection(row: dict, stage: str, reason: str, detail: str = "", **more: Any) -> dict:
    """The line of rejected.jsonl for a row; a long question or answer is cut."""
    question = row["question"]
    cut = {"question": question[:2000], "question_chars": len(question)} if len(question) > 2000 else {}
    origin = {name: row["meta"][name] for name in ("file", "row") if name in row["meta"]}
    found = {"id": row["id"], "stage": stage, "reason": reason} | ({"detail": detail} if detail else {})
    shown = {"question": question, "answer": row["answer"][:2000], "source": row["source"]}
    return {**found, **more, **origin, **shown, **cut}


def split_rows(
    rows: Iterable[dict], stage: str, judge: Callable[[dict], tuple[str, str] | None]
) -> tuple[list[dict], list[dict]]:
    """The kept rows and the rejections: `judge` returns (reason, detail) for a row that is rejected, else None."""
    kept, rejected = [], []
    for row in rows:
        refused = judge(row)
        if refused:
            rejected.append(rejection(row, stage, *refused))
        else:
            kept.append(row)
    return kept, rejected


class Stage:
    """The folder of one stage: numbered shards of kept rows and of rejections, each with its counts.

    A shard is complete when its `.done` file exists. `key` identifies the stage's inputs and options; a folder with
    another key is emptied. `done` is True when the stage was finished.
    """

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key
        self.name = folder.name.split("_", 1)[-1]
        marker = folder / "stage.json"
        found = json.loads(marker.read_text()) if marker.exists() else {}
        if found.get("key") != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_whole(marker, json.dumps({"key": key, "done": False}))
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
        """Write a shard. `rejected` is read after `kept`, then `more` gives further counts of the shard.

        `finish` adds up the counts (numbers, or objects of numbers), except those whose names begin with "_".
        """
        reasons: Counter[str] = Counter()

        def counted() -> Iterator[dict]:
            for record in rejected:
                reasons[record["reason"]] += 1
                yield record

        n_kept = write_records(self.kept(shard), kept)
        n_rejected = write_records(self.rejected(shard), counted())
        counts = {"kept": n_kept, "rejected": n_rejected, "reasons": dict(sorted(reasons.items())), **more()}
        write_whole(self.folder / f"{shard:05d}.done", json.dumps(counts, sort_keys=True))

    def shards(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.done"))

    def counts(self, shard: int) -> dict:
        return json.loads((self.folder / f"{shard:05d}.done").read_text())

    def rows(self) -> Iterator[dict]:
        """Every kept row, in order."""
        for shard in self.shards():
            yield from read_records(self.kept(shard))

    def rejections(self) -> Iterator[dict]:
        for shard in self.shards():
            yield from read_records(self.rejected(shard))

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
            "stage": self.name,
            "rows_in": totals["kept"] + totals["rejected"],
            **totals,
            "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
            **{name: dict(sorted(counter.items())) for name, counter in extra.items()},
            **more,
        }
        self.done = True
        marker = {"key": self.key, "done": True, "summary": self.summary}
        write_whole(self.folder / "stage.json", json.dumps(marker, ensure_ascii=False))
