"""A reasoner's graded responses as supervised rows for a smaller model: which are kept, what became of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from openrlhf_orz.data.sources import DataError

FIELDS = {"bench": str, "id": str, "sample": int, "prompt": str, "response": str, "verdict": str, "stop_reason": str,
          "tokens": int}  # fmt: skip


def select(
    rows: Iterable[dict], per_question: int | None = None, max_tokens: int | None = None
) -> tuple[list[dict], Counter]:
    """(rows for SFT, how many responses met which fate); each response is counted once, the kept ones under "kept".

    ``rows`` are lines of an evaluation's responses.jsonl. A response is kept if its verdict is right, it ended by
    itself, it has at most ``max_tokens`` tokens, its question has no equal response yet, and fewer than
    ``per_question`` (None: no bound) in the order of samples. Rows for SFT have ``input`` (the prompt as it was
    rendered) and ``output`` (the response with its stop string), besides ``bench``, ``id`` and ``sample``. Raises
    DataError, naming the row, if a field is missing or of another type.
    """
    questions: dict[tuple[str, str], list[dict]] = {}
    for number, row in enumerate(rows, 1):
        for name, kind in FIELDS.items():
            if not isinstance(row.get(name), kind) or isinstance(row[name], bool):
                raise DataError(
                    f"--responses, row {number}: no {name} ({kind.__name__}): give a responses.jsonl of"
                    " python -m openrlhf_orz.cli.evaluate"
                )
        questions.setdefault((row["bench"], row["id"]), []).append(row)
    kept, fates = [], Counter()
    for responses in questions.values():
        taken: set[str] = set()
        for row in sorted(responses, key=lambda row: row["sample"]):
            fate = _fate(row, taken, per_question, max_tokens)
            fates[fate] += 1
            if fate == "kept":
                taken.add(row["response"])
                kept.append({"input": row["prompt"], "output": row["response"]}
                            | {name: row[name] for name in ("bench", "id", "sample")})  # fmt: skip
    return kept, fates


def _fate(row: dict, taken: set[str], per_question: int | None, max_tokens: int | None) -> str:
    if row["stop_reason"] == "length":
        return "cut"
    if row["verdict"] != "right":
        return row["verdict"]
    if max_tokens is not None and row["tokens"] > max_tokens:
        return "too_long"
    if row["response"] in taken:
        return "duplicate"
    return "enough" if per_question is not None and len(taken) >= per_question else "kept"
