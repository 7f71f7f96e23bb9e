"""Worked solutions as supervised rows in the ORZ format, kept apart from the rows left for reinforcement learning.

A warm-up on these teaches a model that was never tuned for reasoning where the answer goes; GSM8K has what it needs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from openrlhf_orz.data.prompts import render
from openrlhf_orz.data.sources import DataError, records

QUESTION_KEYS = ("question", "prompt", "problem")
ANSWER_KEYS = ("answer", "label")
SOLUTION_KEYS = ("solution", "answer")  # GSM8K itself: "worked solution #### answer" under one key
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's marks: 48/2 = <<48/2=24>>24


@dataclass(frozen=True)
class Worked:
    """A question, a worked solution without the final answer's mark-up, and the answer alone."""

    question: str
    solution: str
    answer: str


def response(worked: Worked) -> str:
    """What the model should write after ``<think>``: ends where generation stops, boxed as the reward wants it."""
    return f" {worked.solution} </think> <answer> \\boxed{{{worked.answer}}} </answer>"


def sft_row(worked: Worked, template: str = "paper") -> dict[str, str]:
    """A row for OpenRLHF's SFT trainer: input key ``input``, output key ``output``, no input template."""
    return {"input": render(template, worked.question), "output": response(worked)}


def read_worked(
    spec: str,
    input_key: str | None = None,
    label_key: str | None = None,
    solution_key: str | None = None,
    split: str = "train",
) -> list[Worked]:
    """Every row of ``spec`` (as in `rows.read_rows`) that has a question, a worked solution and an answer.

    Keys that are None are found in the first row: QUESTION_KEYS, ANSWER_KEYS, SOLUTION_KEYS, in this order. An answer
    of GSM8K's own shape, "solution #### answer", is taken apart. Raises DataError, naming the key, if none can be used.
    """
    given = {"INPUT_KEY": input_key, "LABEL_KEY": label_key, "SOLUTION_KEY": solution_key}
    tried = {"INPUT_KEY": QUESTION_KEYS, "LABEL_KEY": ANSWER_KEYS, "SOLUTION_KEY": SOLUTION_KEYS}
    columns = {key for keys in tried.values() for key in keys} | {key for key in given.values() if key}
    rows = [record for _, _, record in records(spec, split, columns) if isinstance(record, dict)]
    if not rows:
        raise DataError(f"{spec}: no rows with keys. Give JSONL, JSON or Parquet with question, answer and solution.")
    keys = {}
    for name, candidates in tried.items():
        keys[name] = given[name] or next((key for key in candidates if rows[0].get(key) is not None), candidates[0])
    worked = [found for row in rows if (found := _worked(row, *keys.values()))]
    if not worked:
        raise DataError(
            f"{spec}: no row has question, answer and solution under "
            + ", ".join(f"{name}={key}" for name, key in keys.items())
            + f". Keys seen: {', '.join(rows[0])}. Set those variables."
        )
    return worked


def _worked(row: dict, input_key: str, label_key: str, solution_key: str) -> Worked | None:
    question, answer, solution = (
        "" if row.get(key) is None else str(row[key]) for key in (input_key, label_key, solution_key)
    )
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
    """(rows for the warm-up, rows for reinforcement learning), disjoint also by question, in a seeded order.

    Both take only rows with at most ``max_solution_tokens`` in the solution and ``max_tokens`` in prompt and response:
    short problems are cheap and the easiest. ``count_tokens`` gives the tokens of each of some texts. Raises DataError
    if fewer than ``n_sft`` + 1 rows are so short.
    """
    unique = list({worked.question: worked for worked in rows}.values())
    solutions = count_tokens([worked.solution for worked in unique])
    unique = [worked for worked, n in zip(unique, solutions) if n <= max_solution_tokens]
    totals = count_tokens([render("paper", worked.question) + response(worked) for worked in unique])
    short = [worked for worked, n in zip(unique, totals) if n <= max_tokens]
    if len(short) <= n_sft:
        raise DataError(
            f"{len(short)} rows have a solution of at most {max_solution_tokens} tokens and at most {max_tokens} in "
            f"all, but the warm-up alone takes {n_sft}. Set a smaller SFT_ROWS, or give more data."
        )
    random.Random(seed).shuffle(short)
    return short[:n_sft], short[n_sft:]
