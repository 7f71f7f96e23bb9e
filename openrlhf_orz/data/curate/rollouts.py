"""Pass rates from the rollouts of earlier runs: no model is needed to know what a model could not do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from openrlhf_orz.data.curate import normalise
from openrlhf_orz.data.curate.signature import signature
from openrlhf_orz.data.prompts import render
from openrlhf_orz.data.sources import DataError


def question_key(question: str) -> int:
    """Equal for a question before and after cleaning."""
    return signature(normalise.question(question)[0]).exact


def mine(folders: list[str], template: str) -> dict[int, tuple[int, int]]:
    """For each question's key the right answers and all answers in rollouts/step_*.jsonl of the run folders.

    A prompt is led back to its question by the run's own data/prompts_*.jsonl, else by taking the template's text
    off. Raises DataError, naming the folder or the file and line.
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
                totals[keys[prompt]] = (right + (row["reward"] > 0), n + 1)
    return totals


def _strip(prompt: str, template: str) -> str:
    before, _, after = render(template, "\0").partition("\0")
    return prompt.removeprefix(before).removesuffix(after)


def _rows(file: Path, keys: tuple[str, ...]) -> Iterator[dict]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if any(key not in row for key in keys):
                    raise ValueError(f"{' and '.join(keys)} are expected")
            except (ValueError, TypeError) as error:
                raise DataError(f"{file}:{number}: no line of a run ({error}). Leave the file out.") from error
            yield row
