"""Rows for supervised fine-tuning (SFT) in the ORZ format, from worked solutions or from a reasoner's responses.

Worked solutions, such as GSM8K's, teach a model that was never tuned for reasoning where the answer goes; the other
rows are for reinforcement learning. A reasoner's graded responses teach a smaller model.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from openrlhf_orz.data.prompts import render
from openrlhf_orz.data.rows import MISSING, QUESTION_KEYS, value_at
from openrlhf_orz.data.sources import DataError, records

_ANSWER_KEYS = ("answer", "label")
_SOLUTION_KEYS = ("solution", "answer")  # GSM8K itself has "worked solution #### answer" under one key
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's marks: 48/2 = <<48/2=24>>24
_RESPONSE_FIELDS: dict[str, type] = {
    "bench": str,
    "id": str,
    "sample": int,
    "prompt": str,
    "response": str,
    "verdict": str,
    "stop_reason": str,
    "tokens": int,
}

# ---- worked solutions


@dataclass(frozen=True)
class Worked:
    """A question, a worked solution without the final answer's mark-up, and the answer alone."""

    question: str
    solution: str
    answer: str


def worked_response(worked: Worked) -> str:
    """What the model should write after ``<think>``: ends where generation stops, boxed as the reward wants it."""
    return f" {worked.solution} </think> <answer> \\boxed{{{worked.answer}}} </answer>"


def sft_row(worked: Worked, template: str = "paper") -> dict[str, str]:
    """A row for OpenRLHF's SFT trainer: input key ``input``, output key ``output``, no input template."""
    return {"input": render(template, worked.question), "output": worked_response(worked)}


def read_worked(
    spec: str,
    input_key: str | None = None,
    label_key: str | None = None,
    solution_key: str | None = None,
    split: str = "train",
    log: Callable[[str], None] = print,
) -> list[Worked]:
    """Every row of ``spec`` (as in `rows.read_dataset`) that has a question, a worked solution and an answer.

    A key that is None is found in the first row. An answer as in GSM8K, "solution #### answer", is taken apart. Raises
    DataError, naming the key, if no row can be used.
    """
    given = {"INPUT_KEY": input_key, "LABEL_KEY": label_key, "SOLUTION_KEY": solution_key}
    tried = {"INPUT_KEY": QUESTION_KEYS, "LABEL_KEY": _ANSWER_KEYS, "SOLUTION_KEY": _SOLUTION_KEYS}
    columns = {key for keys in tried.values() for key in keys} | {key for key in given.values() if key}
    found_rows = [record for _, _, record in records(spec, split, columns)]
    rows, read = [record for record in found_rows if isinstance(record, dict)], len(found_rows)
    if not rows:
        raise DataError(f"{spec}: no rows with keys. Give JSONL, JSON or Parquet with question, answer and solution.")
    keys = {}
    for name, choices in tried.items():
        keys[name] = given[name] or next((key for key in choices if rows[0].get(key) is not None), choices[0])
    worked = [found for row in rows if (found := _worked(row, *keys.values()))]
    if left := read - len(worked):
        log(f"{spec}: {left} of {read} rows have no question, answer and solution, and are left out")
    if not worked:
        raise DataError(
            f"{spec}: no row has question, answer and solution under "
            + ", ".join(f"{name}={key}" for name, key in keys.items())
            + f". Keys seen: {', '.join(rows[0])}. Set those variables."
        )
    return worked


def _worked(row: dict, input_key: str, label_key: str, solution_key: str) -> Worked | None:
    found = (value_at(row, key) for key in (input_key, label_key, solution_key))
    question, answer, solution = ("" if value in (None, MISSING) else str(value) for value in found)
    solution, answer = solution.split("####")[0], answer.split("####")[-1]
    solution = _CALCULATOR.sub("", solution).strip()
    if solution_key == label_key and solution == answer.strip():  # an answer alone is no solution
        return None
    worked = Worked(question.strip(), solution, answer.strip())
    return worked if all((worked.question, worked.solution, worked.answer)) else None


def split_worked(
    rows: list[Worked],
    count_tokens: Callable[[list[str]], list[int]],
    n_sft: int,
    max_solution_tokens: int,
    max_tokens: int,
    seed: int = 0,
) -> tuple[list[Worked], list[Worked]]:
    """(rows for SFT, rows for reinforcement learning) in a seeded order; no question is in both.

    Both take only rows with at most ``max_solution_tokens`` in the solution and ``max_tokens`` in prompt and response:
    short problems are cheap and the easiest. ``count_tokens`` gives the number of tokens of each text of a list.
    Raises DataError if fewer than ``n_sft`` + 1 rows are so short.
    """
    unique = list({worked.question: worked for worked in rows}.values())
    solutions = count_tokens([worked.solution for worked in unique])
    unique = [worked for worked, n in zip(unique, solutions) if n <= max_solution_tokens]
    totals = count_tokens([render("paper", worked.question) + worked_response(worked) for worked in unique])
    short = [worked for worked, n in zip(unique, totals) if n <= max_tokens]
    if len(short) <= n_sft:
        raise DataError(
            f"{len(short)} rows have a solution of at most {max_solution_tokens} tokens and at most {max_tokens} in "
            f"all, but the warm-up alone takes {n_sft}. Set a smaller SFT_ROWS, or give more data."
        )
    random.Random(seed).shuffle(short)
    return short[:n_sft], short[n_sft:]


# ---- responses of a reasoner


def select_responses(
    rows: Iterable[dict], per_question: int | None = None, max_tokens: int | None = None
) -> tuple[list[dict], Counter[str]]:
    """(rows for SFT, number of responses by what became of them); the rows are counted as "kept".

    ``rows`` are lines of an evaluation's responses.jsonl. A response is kept if its verdict is right, it ended by
    itself, it has at most ``max_tokens`` tokens, no equal response to its question was kept, and fewer than
    ``per_question`` were (None: no bound). Responses come in the order of their samples. Rows for SFT have ``input``
    (the prompt as it was rendered) and ``output`` (the response with its stop string), besides ``bench``, ``id`` and
    ``sample``. Raises DataError, naming the row, if a field is missing or of another type.
    """
    questions: dict[str, list[dict]] = {}  # by the prompt: files of several evaluations may number theirs alike
    for number, row in enumerate(rows, 1):
        for name, kind in _RESPONSE_FIELDS.items():
            if not isinstance(row.get(name), kind) or isinstance(row[name], bool):
                raise DataError(
                    f"--responses, row {number}: no {name} ({kind.__name__}): give a responses.jsonl of"
                    " python -m openrlhf_orz.cli.evaluate"
                )
        questions.setdefault(row["prompt"], []).append(row)
    kept: list[dict] = []
    fates: Counter[str] = Counter()
    for responses in questions.values():
        taken: set[str] = set()
        for row in sorted(responses, key=lambda row: row["sample"]):
            fate = _fate(row, taken, per_question, max_tokens)
            fates[fate] += 1
            if fate == "kept":
                taken.add(row["response"])
                origin = {name: row[name] for name in ("bench", "id", "sample")}
                kept.append({"input": row["prompt"], "output": row["response"], **origin})
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
