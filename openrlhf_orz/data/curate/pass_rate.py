"""Stage 6: rejects questions that a model always or never answers rightly: they teach it nothing.

Rates are mined from the rollouts of earlier runs, or estimated by sampling a model.

Estimates of a shard are appended to `NNNNN.estimates.jsonl` as they come, so that a killed run keeps them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from openrlhf_orz.data.curate.config import PassRate
from openrlhf_orz.data.curate.normalise import clean_question
from openrlhf_orz.data.curate.shards import rejection
from openrlhf_orz.data.curate.signature import signature
from openrlhf_orz.data.json_lines import Broken, decoded_lines, json_line, read_records
from openrlhf_orz.data.prompts import render
from openrlhf_orz.data.sources import DataError

_AT_ONCE = 256  # questions that the model gets together

# (prompts, references, verifiers) -> the number of right answers of n, for each prompt
Sampler = Callable[[list[str], list[str], list[str]], list[int]]


def estimate(rows: Iterable[dict], options: PassRate, sample: Sampler, file: Path) -> dict[str, tuple[int, int]]:
    """(right, n) by the id of each row; samples the model for rows that are not in `file` yet."""
    known = _known(file)
    with file.open("ab") as out:
        todo = (row for row in rows if row["id"] not in known)
        while batch := list(itertools.islice(todo, _AT_ONCE)):
            prompts = [render(options.template, row["question"]) for row in batch]
            verifiers = [row["meta"].get("verifier", "math") for row in batch]
            rights = sample(prompts, [row["answer"] for row in batch], verifiers)
            for row, right in zip(batch, rights):
                known[row["id"]] = (right, options.n)
                out.write(json_line({"id": row["id"], "right": right, "n": options.n}))
            out.flush()
    return known


def unasked(source: Path, file: Path) -> int:
    """How many rows of a shard the model has not answered yet."""
    known = _known(file)
    return sum(row["id"] not in known for row in read_records(source))


def _known(file: Path) -> dict[str, tuple[int, int]]:
    """The estimates in the file; a last line that a kill cut short is removed."""
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


# ---- estimates from rollouts


def question_key(question: str) -> int:
    """A hash that is the same for a question before and after cleaning."""
    return signature(clean_question(question)[0]).exact


def mine_rollouts(folders: list[str], template: str) -> dict[int, tuple[int, int]]:
    """(right answers, all answers) by the question's key, from rollouts/step_*.jsonl of the run folders.

    A prompt's question is looked up in the run's own data/prompts_*.jsonl; if it is not there, the template's text is
    removed. Raises DataError, naming the folder or the file and line.
    """
    totals: dict[int, tuple[int, int]] = {}
    keys: dict[str, int] = {}
    for folder in map(Path, folders):
        files = sorted((folder / "rollouts").glob("step_*.jsonl"))
        if not files:
            raise DataError(
                f"pass_rate.rollouts: {folder} has no rollouts/step_N.jsonl. Give a training run's folder."
            )
        questions = {
            row["prompt"]: row["question"]
            for file in sorted((folder / "data").glob("prompts_*.jsonl"))
            for row in _rows(file, ("prompt", "question"))
        }
        for file in files:
            for row in _rows(file, ("prompt", "reward")):
                prompt = row["prompt"]
                if prompt not in keys:
                    keys[prompt] = question_key(questions.get(prompt) or _strip(prompt, template))
                right, n = totals.get(keys[prompt], (0, 0))
                totals[keys[prompt]] = (right + bool(row.get("right", row["reward"] > 0)), n + 1)
    return totals


def _strip(prompt: str, template: str) -> str:
    before, _, after = render(template, "\0").partition("\0")
    return prompt.removeprefix(before).removesuffix(after)


def _rows(file: Path, keys: tuple[str, ...]) -> Iterator[dict]:
    for number, row in decoded_lines(file):
        if not isinstance(row, dict) or any(key not in row for key in keys):
            why = row.detail if isinstance(row, Broken) else f"{' and '.join(keys)} are expected"
            raise DataError(f"{file}:{number}: no line of a run ({why}). Leave the file out.")
        yield row


# ---- the stage


def pass_rate_reason(right: int, n: int, options: PassRate) -> tuple[str, str] | None:
    """(reason, detail) if a row with this estimate is rejected: never_right, too_easy or too_often_right."""
    detail = f"{right} of {n}"
    if right == 0 and options.exclude_zero:
        return "never_right", detail
    if right == n and options.exclude_one or right > options.max_rate * n:
        return "too_easy", detail
    if 0 <= options.max_right < right:
        return "too_often_right", detail
    return None


def filter_rows(
    rows: Iterable[dict], options: PassRate, estimates: dict[Any, tuple[int, int]], mined: bool
) -> tuple[list[dict], list[dict]]:
    """The kept rows with `pass_rate`, `meta.pass_right` and `meta.pass_n`, and the rejections.

    `estimates` are (right, n): by the question's key if they were mined from rollouts, else by the row's id.
    """
    kept, rejected = [], []
    for row in rows:
        right, n = estimates.get(question_key(row["question"]) if mined else row["id"], (0, 0))
        if n < options.min_n:
            if options.missing == "drop":
                rejected.append(rejection(row, "pass_rate", "no_estimate", f"{n} answers"))
            else:
                kept.append(row)
            continue
        row["pass_rate"] = right / n
        row["meta"] |= {"pass_right": right, "pass_n": n}
        refused = pass_rate_reason(right, n, options)
        if refused:
            rejected.append(rejection(row, "pass_rate", *refused, pass_right=right, pass_n=n))
        else:
            kept.append(row)
    return kept, rejected


def filter_shard(
    source: Path, options: PassRate, sample: Sampler | None, mined: dict[int, tuple[int, int]] | None, file: Path
) -> tuple[list[dict], list[dict]]:
    """`filter_rows` for one shard on disk: with `mined` estimates, or else by `sample`, which adds to `file`."""
    if mined is not None:
        return filter_rows(read_records(source), options, mined, mined=True)
    if sample is None:
        raise ValueError("estimates that are not mined need a model to sample")
    estimates = estimate(read_records(source), options, sample, file)
    return filter_rows(read_records(source), options, estimates, mined=False)
