"""Stage 7: questions that a model always or never answers rightly teach it nothing, and go.

The estimates of a shard are appended to `NNNNN.estimates.jsonl` as they come, so that a killed run keeps them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from openrlhf_orz.data.curate.config import PassRate
from openrlhf_orz.data.curate.rollouts import question_key
from openrlhf_orz.data.curate.shards import dumps, read_lines, rejection
from openrlhf_orz.data.prompts import render

_AT_ONCE = 256  # questions handed to the model together

# (prompts, references, verifiers) -> right answers of n for each
Sampler = Callable[[list[str], list[str], list[str]], list[int]]


def estimate(rows: Iterable[dict], options: PassRate, sample: Sampler, file: Path) -> dict[str, tuple[int, int]]:
    """(right, n) for the id of each row; asks the model for those that `file` does not hold yet."""
    known = _known(file)
    with file.open("ab") as out:
        todo = (row for row in rows if row["id"] not in known)
        while batch := list(itertools.islice(todo, _AT_ONCE)):
            prompts = [render(options.template, row["question"]) for row in batch]
            verifiers = [row["meta"].get("verifier", "math") for row in batch]
            rights = sample(prompts, [row["answer"] for row in batch], verifiers)
            for row, right in zip(batch, rights):
                known[row["id"]] = (right, options.n)
                out.write(dumps({"id": row["id"], "right": right, "n": options.n}))
            out.flush()
    return known


def _known(file: Path) -> dict[str, tuple[int, int]]:
    """What is in the file; a last line that a kill cut short is taken off."""
    found: dict[str, tuple[int, int]] = {}
    good = 0
    if file.exists():
        with file.open("rb") as lines:
            for line in lines:
                try:
                    row = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    row = None
                if row is None:
                    break
                found[row["id"]] = (row["right"], row["n"])
                good += len(line)
        with file.open("r+b") as out:
            out.truncate(good)
    return found


def judge(right: int, n: int, options: PassRate) -> tuple[str, str] | None:
    """(reason, detail) when a row with this estimate goes: never_right, too_easy or too_often_right."""
    detail = f"{right} of {n}"
    if right == 0 and options.exclude_zero:
        return "never_right", detail
    if right == n and options.exclude_one or right > options.max_rate * n:
        return "too_easy", detail
    if 0 <= options.max_right < right:
        return "too_often_right", detail
    return None


def filter_rows(
    rows: Iterable[dict],
    options: PassRate,
    found: dict[str, tuple[int, int]] | dict[int, tuple[int, int]],
    mined: bool,
) -> tuple[list[dict], list[dict]]:
    """The kept rows with `pass_rate`, `meta.pass_right` and `meta.pass_n`, and the rejections."""
    kept, rejected = [], []
    for row in rows:
        right, n = found.get(question_key(row["question"]) if mined else row["id"], (0, 0))
        if n < options.min_n:
            if options.missing == "drop":
                rejected.append(rejection(row, "pass_rate", "no_estimate", f"{n} answers"))
            else:
                kept.append(row)
            continue
        row["pass_rate"] = right / n
        row["meta"] |= {"pass_right": right, "pass_n": n}
        refused = judge(right, n, options)
        if refused:
            rejected.append(rejection(row, "pass_rate", *refused, pass_right=right, pass_n=n))
        else:
            kept.append(row)
    return kept, rejected


def filter_shard(source: Path, options: PassRate, sample: Sampler | None, mined: dict | None, file: Path):
    """`filter_rows` for one shard on disk, after asking the model where there is one."""
    if mined is None:
        found = estimate(read_lines(source), options, sample, file)
        return filter_rows(read_lines(source), options, found, mined=False)
    return filter_rows(read_lines(source), options, mined, mined=True)
