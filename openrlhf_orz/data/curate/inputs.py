"""The inputs of a curation: files, data sets with ready entries, and questions made by program."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openrlhf_orz.data.arithmetic import generate_additions
from openrlhf_orz.data.curate.config import import_for_stage
from openrlhf_orz.data.rows import QUESTION_KEYS
from openrlhf_orz.data.sources import READERS, DataError, suffix_of
from openrlhf_orz.reward.verifiers import unsafe_scorer
from openrlhf_orz.reward.workers.gym import SCORERS

_ANSWER_KEYS = ("answer", "label", "ground_truth", "Answer", "expected_answer", "gold", "solution")
_DIFFICULTY_KEYS = ("difficulty", "level")


@dataclass(frozen=True)
class Entry:
    """Where a data set has its fields. Of several keys the first that a row has wins; "a.b" goes into objects.

    `answer_from` says where the answer is in the text: "answer" (all of it), "boxed" (the last box of a worked
    solution), "hashes" (behind the last ####), or "auto" (one of these, by the text). `question_from` "few_shot" takes
    the last of several examples. `where` selects rows: keys with the values allowed, or bounds as {"max": 2023}.
    """

    path: str = ""
    split: str = "train"
    question: tuple[str, ...] = QUESTION_KEYS
    answer: tuple[str, ...] = _ANSWER_KEYS
    source: tuple[str, ...] = ("source", "datasource", "data_source")
    difficulty: tuple[str, ...] = _DIFFICULTY_KEYS
    meta: tuple[str, ...] = ()
    answer_from: str = "auto"
    question_from: str = "question"
    name: str = ""  # the source of rows that name none
    licence: str = ""
    where: dict[str, Any] = field(default_factory=dict)


ENTRIES: dict[str, Entry] = {
    # later years are evaluation sets
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


def ready_entry(name: str, where: str) -> Entry:
    """The ready entry of that name. Raises DataError, naming the configuration key `where`, if there is none."""
    if name not in ENTRIES:
        raise DataError(f"{where}: no source entry is called {name!r}. There are {', '.join(ENTRIES)}.")
    return ENTRIES[name]


# ---- the configuration's inputs

GENERATED = ("additions", "reasoning_gym")  # inputs that are made, not read
_KEYS = {"name", "path", "entry", "split", "question", "answer", "source", "difficulty", "meta", "licence"}
_KEYS |= {"answer_from", "question_from", "where", "select", "limit"}
_WAYS = {"answer_from": ("answer", "boxed", "hashes", "auto"), "question_from": ("question", "few_shot")}


@dataclass(frozen=True)
class Input:
    """A checked element of the configuration's `inputs`."""

    name: str
    path: str
    fields: Entry
    source: str | None  # the same for all rows
    where: dict[str, Any]
    limit: int | None
    generated: dict[str, Any] | None


def parse_inputs(items: list[dict]) -> list[Input]:
    """The inputs of a configuration. Raises DataError, naming element, key and remedy."""
    found = [_parse(item, f"inputs.{i}") for i, item in enumerate(items)]
    names = [item.name for item in found]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise DataError(f"inputs.{i}: a second input is called {name!r}. Give it a `name` of its own.")
    return found


def _parse(item: dict, where: str) -> Input:
    for kind in GENERATED:
        if kind in item:
            unknown = set(item) - {kind, "name"}
            if unknown or not isinstance(item[kind], dict):
                raise DataError(f"{where}: {kind} with its options, and a name, are expected, not {item!r}.")
            name = item.get("name") or (item[kind].get("task") or kind)
            return Input(str(name), "", Entry(), None, {}, None, {kind: item[kind]})
    unknown = set(item) - _KEYS
    if unknown:
        raise DataError(f"{where}.{sorted(unknown)[0]}: there is no such key. There are {', '.join(sorted(_KEYS))}.")
    _check_item(item, where)
    fields = ready_entry(item["entry"], f"{where}.entry") if "entry" in item else Entry()
    changes: dict[str, Any] = {}
    for key in ("question", "answer", "difficulty", "meta"):
        if key in item:
            value = item[key]
            changes[key] = (value,) if isinstance(value, str) else tuple(value or ())
    changes |= {key: item[key] for key in ("split", "answer_from", "question_from", "licence") if key in item}
    fields = dataclasses.replace(fields, **changes)
    path = str(item.get("path") or fields.path)
    if not path:
        raise DataError(f"{where}: give `path`, a file, a folder or a hub name.")
    conditions = {**fields.where, **(item.get("where") or {}), **(item.get("select") or {})}
    name = item.get("name") or item.get("entry") or _stem(path)
    return Input(str(name), path, fields, item.get("source"), conditions, item.get("limit"), None)


def _check_item(item: dict, where: str) -> None:
    """Raises DataError for a value of another type than its key has, or a word that its key does not know."""

    def check(key: str, fine: bool, what: str) -> None:
        if item.get(key) is not None and not fine:
            raise DataError(f"{where}.{key}: {what} is expected, not {item[key]!r}.")

    for key in ("name", "path", "entry", "split", "source", "licence"):
        check(key, isinstance(item.get(key), str), "text")
    for key in ("question", "answer", "difficulty", "meta"):
        names = item.get(key)
        fine = isinstance(names, str) or isinstance(names, list) and all(isinstance(name, str) for name in names)
        check(key, fine, "a key of the rows, or a list of keys,")
    for key in ("where", "select"):
        check(key, isinstance(item.get(key), dict), "keys with the values that are allowed")
    for key, words in _WAYS.items():
        check(key, item.get(key) in words, f"one of {', '.join(words)}")
    limit = item.get("limit")
    check(
        "limit", isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1, "a number of rows, 1 or more,"
    )


def _stem(path: str) -> str:
    return (
        Path(path).name[: -len(suffix_of(Path(path)))]
        if suffix_of(Path(path)) in READERS
        else path.rstrip("/").rsplit("/", 1)[-1]
    )


# ---- questions made by program

# In reasoning-gym 0.1.25; a reason for each.
_UNUSABLE = {
    "game_of_life_halting": "its scorer accepts any answer where the truth is False",
    "prime_factorization": "its scorer fails on answers it cannot read",
    "spell_backward": "its scorer gives partial credit",
    **dict.fromkeys(("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"), "it has no answer"),
}
_GYM_KEYS = {"task", "size", "seed", "config", "verifier"}


def generated_rows(item: dict[str, Any], name: str) -> Iterator[dict]:
    """The rows, without id, of an input {"additions": {...}} or {"reasoning_gym": {...}}.

    Their `meta.generated` tells later stages to clean and compare them exactly, and nothing more: the task was chosen,
    and its questions differ by design in a few words only.

    additions: rows, digits ([lowest, highest]), terms (2), seed (0). reasoning_gym: task, size, seed (0), config
    (the task's own options, such as the difficulty) and verifier: "math" (default), with the answer as the
    reference, or "reasoning_gym", for tasks with several right answers: the reference is then the whole entry as JSON,
    which the verifier of that name scores with the task's own scorer, if that only compares. Raises DataError, naming
    input and key.
    """
    ((kind, options),) = item.items()
    yield from (_additions if kind == "additions" else _gym)(dict(options), f"inputs ({name}): {kind}")


def _additions(options: dict, where: str) -> Iterator[dict]:
    digits = options.pop("digits", [3, 3])
    try:
        rows = generate_additions(options.pop("rows"), tuple(digits), options.pop("seed", 0), options.pop("terms", 2))
    except KeyError as error:
        raise DataError(f"{where}: give {error}.") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from None
    if options:
        raise DataError(f"{where}: there is no key {sorted(options)[0]!r}; there are digits, rows, seed, terms.")
    for row in rows:
        yield curated_row(row["question"], row["answer"], row["source"], None, {"generated": "additions"})


def _gym(options: dict, where: str) -> Iterator[dict]:
    unknown = set(options) - _GYM_KEYS
    if unknown or "task" not in options or "size" not in options:
        raise DataError(f"{where}: task and size are needed, and there are {', '.join(sorted(_GYM_KEYS))}.")
    task, verifier = options["task"], options.get("verifier", "math")
    if task in _UNUSABLE:
        raise DataError(f"{where}.task {task}: {_UNUSABLE[task]}. Choose another task.")
    if verifier not in ("math", "reasoning_gym"):
        raise DataError(f"{where}.verifier {verifier!r}: math or reasoning_gym is expected.")
    if verifier == "reasoning_gym" and task not in SCORERS:
        raise DataError(f"{where}.verifier: {unsafe_scorer(task)}.")
    gym = import_for_stage("reasoning_gym", "reasoning-gym", "synthesise")
    try:
        settings = options.get("config") or {}
        data = gym.create_dataset(task, size=options["size"], seed=options.get("seed", 0), **settings)
    except (ValueError, TypeError, AssertionError) as error:
        raise DataError(f"{where}: reasoning-gym refuses: {error}") from error
    for task_entry in data:
        if task_entry["answer"] is None:
            raise DataError(f"{where}.task {task}: it has no answer. Choose another task.")
        answer = str(task_entry["answer"])
        if verifier == "reasoning_gym":
            answer = json.dumps({key: task_entry[key] for key in ("question", "answer", "metadata")}, default=_plain)
        difficulty = task_entry["metadata"].get("difficulty")
        shown = json.dumps(difficulty, sort_keys=True, default=_plain) if difficulty else None
        meta = {"generated": task, "verifier": verifier}
        yield curated_row(task_entry["question"], answer, f"reasoning_gym/{task}", shown, meta)


def _plain(value: Any) -> Any:
    """A value of reasoning-gym's metadata for which JSON has no type."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def curated_row(question: str, answer: str, source: str, difficulty: str | None, meta: dict) -> dict:
    """A row of the pipeline's schema (see `collect`), without id and pass rate."""
    return {
        "question": question,
        "answer": answer,
        "source": source,
        "difficulty": difficulty,
        "pass_rate": None,
        "meta": meta,
    }
