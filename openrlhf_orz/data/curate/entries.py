"""Ready source entries: how well-known data sets spell question, answer, source and difficulty."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from openrlhf_orz.data.sources import DataError
from openrlhf_orz.reward.extract import boxes

QUESTION_KEYS = ("question", "prompt", "problem", "Question", "Problem")
ANSWER_KEYS = ("answer", "label", "ground_truth", "Answer", "expected_answer", "gold", "solution")
DIFFICULTY_KEYS = ("difficulty", "level")


@dataclass(frozen=True)
class Entry:
    """A field map. Keys may be alternatives, the first that a row has wins; "a.b" goes into objects.

    `answer_from` says what the answer's text is: "answer" itself, "boxed" (the last box of a worked solution),
    "hashes" (what stands behind the last ####), or "auto": by what is there.
    `question_from` "few_shot" takes the last of several examples.
    `where` holds what a row must have: a key and the values allowed, or a largest one as {"max": 2023}.
    """

    path: str = ""
    split: str = "train"
    question: tuple[str, ...] = QUESTION_KEYS
    answer: tuple[str, ...] = ANSWER_KEYS
    source: tuple[str, ...] = ("source", "datasource", "data_source")
    difficulty: tuple[str, ...] = DIFFICULTY_KEYS
    meta: tuple[str, ...] = ()
    answer_from: str = "auto"
    question_from: str = "question"
    name: str = ""  # the source of rows that name none
    licence: str = ""
    where: dict[str, Any] = field(default_factory=dict)


ENTRIES: dict[str, Entry] = {
    # year, part and number are columns; later years are evaluation sets
    "aime": Entry(
        path="di-zhang-fdu/AIME_1983_2024", question=("Question", "problem"), answer=("Answer", "answer"),
        source=(), difficulty=(), meta=("ID", "Year", "Part", "Problem Number"), name="aime",
        where={"Year": {"max": 2023}}, licence="not stated",
    ),
    "math": Entry(
        path="EleutherAI/hendrycks_math", question=("problem",), answer=("solution",), answer_from="boxed",
        source=(), meta=("type",), name="math", licence="MIT",
    ),
    "numina_cot": Entry(
        path="AI-MO/NuminaMath-CoT", question=("problem",), answer=("solution",), answer_from="boxed",
        difficulty=(), name="numina", licence="Apache-2.0",
    ),
    "numina_1.5": Entry(
        path="AI-MO/NuminaMath-1.5", question=("problem",), answer=("answer",), difficulty=(),
        meta=("problem_type", "question_type", "problem_is_valid", "solution_is_valid", "synthetic"),
        name="numina", licence="Apache-2.0",
    ),
    "tulu3_math": Entry(
        path="allenai/RLVR-MATH", question=("messages",), answer=("ground_truth",), question_from="few_shot",
        source=(), difficulty=(), name="tulu3_math", licence="see its card",
    ),
    "openr1_math": Entry(
        path="open-r1/OpenR1-Math-220k", question=("problem",), answer=("answer",), difficulty=(),
        meta=("uuid", "problem_type", "question_type", "correctness_count"), name="openr1_math",
        licence="Apache-2.0",
    ),
    "gsm8k": Entry(
        path="openai/gsm8k@main", question=("question",), answer=("answer",), answer_from="hashes",
        source=(), difficulty=(), name="gsm8k", licence="MIT",
    ),
    "orz": Entry(question=("prompt", "question"), name="orz", licence="MIT"),  # two-turn dialogues need no keys
}  # fmt: skip


def entry(name: str, where: str) -> Entry:
    """The ready entry of that name; DataError, naming the configuration key `where`, when there is none."""
    if name not in ENTRIES:
        raise DataError(f"{where}: no source entry is called {name!r}. There are {', '.join(ENTRIES)}.")
    return ENTRIES[name]


def look(record: dict, keys: tuple[str, ...]) -> tuple[str | None, Any]:
    """The first of `keys` that the record has, not null, and its value; (None, None) when it has none."""
    for key in keys:
        value: Any = record
        for part in [key] if key in record else key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return key, value
    return None, None


def question_text(value: Any, how: str) -> Any:
    """The question in what stands under its key: text, or the user's turn of a list of messages."""
    if isinstance(value, list):  # messages
        turns = [turn for turn in value if isinstance(turn, dict) and turn.get("role") in ("user", "human")]
        value = turns[-1].get("content") if turns else None
    if how == "few_shot" and isinstance(value, str):
        value = re.split(r"(?:^|\n)\s*Question:", value)[-1]
        value = re.sub(r"\s*Answer:\s*$", "", value).strip()
    return value


def answer_text(value: Any, how: str, key: str = "answer") -> Any:
    """The final answer in what stands under `key`; None when the text has none."""
    if not isinstance(value, str):
        return value
    if how == "auto":
        how = "hashes" if "#### " in value else "boxed" if key == "solution" else "answer"
    if how == "boxed":
        found = boxes(value)
        return found[-1] if found else None
    if how == "hashes":
        return value.rsplit("####", 1)[1] if "####" in value else None
    return value
