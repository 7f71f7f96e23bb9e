"""Stage 8: questions made by program, in the pipeline's schema: sums, and reasoning-gym's tasks.

A generated row has `meta.generated`: the rules of `exclude` and the N-gram deduplication leave it alone, since its
task was chosen and its questions differ by design in a few words only; it is cleaned and compared exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from openrlhf_orz.data.arithmetic import generate
from openrlhf_orz.data.curate.need import need
from openrlhf_orz.data.sources import DataError

# Seen in reasoning-gym 0.1.25. The first group cannot be graded at all.
UNUSABLE = {
    "game_of_life_halting": "its scorer accepts any answer where the truth is False",
    "prime_factorization": "its scorer fails on answers it cannot read",
    "spell_backward": "its scorer gives partial credit",
    **dict.fromkeys(("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"), "it has no answer"),
}
_GYM_KEYS = {"task", "size", "seed", "config", "verifier"}


def synthesised(item: dict[str, Any], name: str) -> Iterator[dict]:
    """The rows, without id, of an input {"additions": {...}} or {"reasoning_gym": {...}}.

    additions: rows, digits ([lowest, highest]), terms (2), seed (0). reasoning_gym: task, size, seed (0), config
    (the task's own options, such as the difficulty) and verifier: "math" (default), with the answer as the
    reference, or "reasoning_gym", for tasks with many right answers: the reference is then the whole entry as JSON,
    which the verifier of that name scores with the task's own scorer. Raises DataError, naming input and key.
    """
    ((kind, options),) = item.items()
    yield from (_additions if kind == "additions" else _gym)(dict(options), f"inputs ({name}): {kind}")


def _additions(options: dict, where: str) -> Iterator[dict]:
    digits = options.pop("digits", [3, 3])
    try:
        rows = generate(options.pop("rows"), tuple(digits), options.pop("seed", 0), options.pop("terms", 2))
    except KeyError as error:
        raise DataError(f"{where}: give {error}.") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from None
    if options:
        raise DataError(f"{where}: there is no key {sorted(options)[0]!r}; there are digits, rows, seed, terms.")
    for row in rows:
        yield _row(row["question"], row["answer"], row["source"], None, {"generated": "additions"})


def _gym(options: dict, where: str) -> Iterator[dict]:
    unknown = set(options) - _GYM_KEYS
    if unknown or "task" not in options or "size" not in options:
        raise DataError(f"{where}: task and size are needed, and there are {', '.join(sorted(_GYM_KEYS))}.")
    task, verifier = options["task"], options.get("verifier", "math")
    if task in UNUSABLE:
        raise DataError(f"{where}.task {task}: {UNUSABLE[task]}. Choose another task.")
    if verifier not in ("math", "reasoning_gym"):
        raise DataError(f"{where}.verifier {verifier!r}: math or reasoning_gym is expected.")
    gym = need("reasoning_gym", "reasoning-gym", "synthesise")
    try:
        data = gym.create_dataset(
            task, size=options["size"], seed=options.get("seed", 0), **(options.get("config") or {})
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise DataError(f"{where}: reasoning-gym refuses: {error}") from error
    for entry in data:
        if entry["answer"] is None:
            raise DataError(f"{where}.task {task}: it has no answer. Choose another task.")
        answer = str(entry["answer"])
        if verifier == "reasoning_gym":
            answer = json.dumps({key: entry[key] for key in ("question", "answer", "metadata")}, default=_plain)
        difficulty = entry["metadata"].get("difficulty")
        shown = json.dumps(difficulty, sort_keys=True, default=_plain) if difficulty else None
        yield _row(
            entry["question"], answer, f"reasoning_gym/{task}", shown, {"generated": task, "verifier": verifier}
        )


def _plain(value: Any) -> Any:
    """What JSON has no word for, as reasoning-gym's metadata hold it."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _row(question: str, answer: str, source: str, difficulty: str | None, meta: dict) -> dict:
    return {
        "question": question, "answer": answer, "source": source, "difficulty": difficulty, "pass_rate": None,
        "meta": meta,
    }  # fmt: skip
