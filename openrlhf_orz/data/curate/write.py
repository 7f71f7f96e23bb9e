"""The last step: writes the kept rows in splits, as JSON lines and Parquet, every rejected row, and the card.

kept/train.jsonl, kept/test.jsonl (the held-out rows), parquet/ with the same rows, rejected.jsonl, clusters.jsonl,
funnel.json, README.md (the data set's card) and its pictures. Equal inputs, configuration and seed give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf_orz.data.curate.config import Config
from openrlhf_orz.data.curate.shards import Stage, file_hash
from openrlhf_orz.data.json_lines import json_line, partial_of, write_records, write_whole
from openrlhf_orz.report.pictures import write_bars

WRITTEN = ("kept", "parquet", "pictures")  # folders, each made anew
_BATCH = 10_000  # rows of a Parquet row group
_LENGTHS = (50, 100, 200, 400, 800, 1600, 3200)  # characters, edges of the histogram
_RATES = 10  # bars from 0 to 1


class _Split:
    """One split, written as JSON lines and Parquet at once."""

    def __init__(self, folder: Path, name: str):
        self.paths = [folder / "kept" / f"{name}.jsonl", folder / "parquet" / f"{name}.parquet"]
        for path in self.paths:
            path.parent.mkdir(exist_ok=True)
        self.partial = [partial_of(path) for path in self.paths]
        self.lines = self.partial[0].open("wb")
        self.table: Any = None
        self.batch: list[dict] = []
        self.count = 0

    def add(self, row: dict) -> None:
        self.lines.write(json_line(row))
        self.batch.append(row)
        self.count += 1
        if len(self.batch) == _BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        text = ("id", "question", "answer", "source", "difficulty")
        schema = pa.schema(
            [*((name, pa.string()) for name in text), ("pass_rate", pa.float64()), ("meta", pa.string())]
        )
        if self.table is None:
            self.table = pq.ParquetWriter(self.partial[1], schema)
        columns = {name: [row[name] for row in self.batch] for name in (*text, "pass_rate")}
        columns["meta"] = [json.dumps(row["meta"], ensure_ascii=False, sort_keys=True) for row in self.batch]
        self.table.write_table(pa.table(columns, schema))
        self.batch = []

    def close(self) -> None:
        self._flush()
        self.table.close()
        self.lines.close()
        for partial, path in zip(self.partial, self.paths):
            partial.rename(path)


def write_dataset(config: Config, stages: list[Stage], folder: Path) -> dict:
    """Write everything from the finished stages; returns the summary that funnel.json holds."""
    for name in WRITTEN:
        shutil.rmtree(folder / name, ignore_errors=True)
    splits = {"train": _Split(folder, "train"), "test": _Split(folder, "test")}
    counted: dict[str, Counter] = {"lengths": Counter(), "sources": Counter(), "rates": Counter()}
    for row in _ordered(stages[-1], config):
        held_out = _share(config.seed, str(row["meta"].get("family", row["id"]))) < config.heldout
        splits["test" if held_out else "train"].add(row)
        _count(row, counted)
    for split in splits.values():
        split.close()
    write_records(folder / "rejected.jsonl", (row for stage in stages for row in stage.rejections()))
    (folder / "clusters.jsonl").unlink(missing_ok=True)
    for stage in stages:
        if (stage.folder / "clusters.jsonl").exists():  # the stage dedup has it
            shutil.copyfile(stage.folder / "clusters.jsonl", folder / "clusters.jsonl")
    _pictures(folder / "pictures", counted)
    files = sorted(path for kind in ("kept", "parquet") for path in (folder / kind).iterdir())
    files += [folder / name for name in ("rejected.jsonl", "clusters.jsonl") if (folder / name).exists()]
    summary = {
        "name": config.name,
        "seed": config.seed,
        "stages": [stage.summary for stage in stages],
        "train": splits["train"].count,
        "heldout": splits["test"].count,
        "sources": dict(sorted(counted["sources"].items())),
        "files": {path.relative_to(folder).as_posix(): file_hash(path) for path in files},
    }
    write_whole(folder / "funnel.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "README.md", _card(summary, sorted(path.name for path in (folder / "pictures").iterdir())))
    return summary


def _ordered(stage: Stage, config: Config) -> Iterator[dict]:
    """The rows in the order of the inputs, or shuffled by the seed, read from disk one at a time."""
    if not config.shuffle:
        yield from stage.rows()
        return
    places = []
    for shard in stage.shards():
        position = 0
        with stage.kept(shard).open("rb") as lines:
            for line in lines:
                places.append((shard, position))
                position += len(line)
    files = {shard: stage.kept(shard).open("rb") for shard in stage.shards()}
    for i in np.random.default_rng(config.seed).permutation(len(places)):
        shard, position = places[i]
        files[shard].seek(position)
        yield json.loads(files[shard].readline())
    for file in files.values():
        file.close()


def _share(seed: int, name: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8], "big") / 2**64


def _count(row: dict, counted: dict[str, Counter]) -> None:
    counted["sources"][row["source"]] += 1
    counted["lengths"][sum(len(row["question"]) >= edge for edge in _LENGTHS)] += 1
    if row["pass_rate"] is not None:
        counted["rates"][min(int(row["pass_rate"] * _RATES), _RATES - 1)] += 1


def _pictures(folder: Path, counted: dict[str, Counter]) -> None:
    folder.mkdir()
    edges = ["0", *map(str, _LENGTHS)]
    lengths = [
        (f"{a}–{int(b) - 1}" if b else f"{a}+", counted["lengths"][i])
        for i, (a, b) in enumerate(zip(edges, [*edges[1:], ""]))
    ]
    write_bars(folder / "length.svg", "characters of the question", lengths)
    most = counted["sources"].most_common(15)
    rest = sum(counted["sources"].values()) - sum(count for _, count in most)
    write_bars(folder / "source.svg", "source", most + ([("others", rest)] if rest else []))
    if counted["rates"]:
        rates = [(f"{i / _RATES:.1f}–{(i + 1) / _RATES:.1f}", counted["rates"][i]) for i in range(_RATES)]
        write_bars(folder / "pass_rate.svg", "pass rate", rates)


# ---- the card

_FRONT_MATTER = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: parquet/train.parquet
  - split: test
    path: parquet/test.parquet
---
"""


def _card(summary: dict, pictures: list[str]) -> str:
    """README.md of the output folder, from the summary alone, with the front matter that the hub reads."""
    stages = summary["stages"]
    lines = [
        _FRONT_MATTER + f"# {summary['name']}\n",
        f"{summary['train']} questions to train on and {summary['heldout']} held out, with answers that the training "
        "grader can check. Made by openrlhf_orz's curation pipeline "
        f"(seed {summary['seed']}); kept/ has the rows as JSON lines, parquet/ the same rows.\n",
        "## Funnel\n\n| stage | in | out | left out |\n|---|---|---|---|",
    ]
    for stage in stages:
        reasons = ", ".join(f"{reason} {count}" for reason, count in stage["reasons"].items())
        lines.append(f"| {stage['stage']} | {stage['rows_in']} | {stage['kept']} | {reasons or '-'} |")
    lines += ["", "rejected.jsonl has every row that was left out, with stage, reason and what it was compared with."]
    for stage in stages:
        if stage.get("clusters") is not None:
            lines.append(
                f"clusters.jsonl has the {stage['clusters']} groups of duplicates; in {stage['conflicts']} of them "
                "the answers conflict."
            )
        if stage.get("against"):
            lines.append(
                f"Decontaminated against {stage['questions']} evaluation questions ({', '.join(stage['against'])})."
            )
    collected = stages[0].get("sources", {})
    lines += ["", "## Sources", "", "| source | rows | kept |", "|---|---|---|"]
    for source in sorted(collected, key=lambda name: (-collected[name], name)):
        lines.append(f"| {_cell(source)} | {collected[source]} | {summary['sources'].get(source, 0)} |")
    lines += ["", "| input | from | licence |", "|---|---|---|"]
    for item in stages[0]["inputs"]:
        where = item.get("path") or "generated: " + ", ".join(f"{k} {v}" for k, v in _flat(item["generated"]))
        lines.append(f"| {_cell(item['name'])} | {_cell(where)} | {_cell(item['licence'])} |")
    languages = next((stage["languages"] for stage in stages if stage.get("languages")), None)
    if languages:
        lines += ["", "Languages kept: " + ", ".join(f"{name} {count}" for name, count in languages.items()) + "."]
    lines += ["", "## Pictures", ""] + [f"![{name.removesuffix('.svg')}](pictures/{name})" for name in pictures]
    lines += ["", "## Files", "", "| file | sha256 |", "|---|---|"]
    lines += [f"| {name} | `{digest}` |" for name, digest in summary["files"].items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _flat(generated: dict) -> list[tuple[str, object]]:
    ((kind, options),) = generated.items()
    return [("kind", kind), *options.items()]
