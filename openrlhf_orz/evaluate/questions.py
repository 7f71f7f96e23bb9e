"""The questions of an evaluation, from files or named benchmarks: each with an id, a text and a reference.

No question is dropped. Sizes of named benchmarks are checked on load. Revisions are branch names of the hub; what they
pointed to is in results.json.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_orz.data.json_lines import Broken
from openrlhf_orz.data.options import BadChoices, lettered, with_options
from openrlhf_orz.data.rows import BadValue, answer_of, asked, row_verifier
from openrlhf_orz.data.sources import DataFlags, records
from openrlhf_orz.reward.verifiers import VERIFIERS

_QUESTION_KEYS = ("question", "prompt", "problem", "Question", "Problem")
_ANSWER_KEYS = ("answer", "label", "Answer", "Correct Answer")
DATA_FLAGS = DataFlags("--data", "--data")


class EvaluationError(ValueError):
    """An evaluation cannot start or continue; the message names flag, file or row, and the remedy."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark on the hub.

    ``question`` and ``answer`` name fields of its rows. For multiple choice, ``answer`` is the field with the right
    option's text and ``wrong`` are the fields of the other options.
    """

    name: str
    hub: str
    config: str | None
    revision: str
    split: str
    rows: int
    licence: str
    question: str
    answer: str
    wrong: tuple[str, ...] = ()


MAA = "problems (c) Mathematical Association of America; see the dataset's own page"

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("aime2024", "HuggingFaceH4/aime_2024", None, "main", "train", 30, MAA, "problem", "answer"),
        Benchmark("aime2025", "yentinglin/aime_2025", None, "main", "train", 30, MAA, "problem", "answer"),
        Benchmark("amc", "math-ai/amc23", None, "main", "test", 40, MAA, "question", "answer"),
        Benchmark("math500", "HuggingFaceH4/MATH-500", None, "main", "test", 500, "MIT (MATH)", "problem", "answer"),
        Benchmark("gpqa_diamond", "Idavidrein/gpqa", "gpqa_diamond", "main", "train", 198,
                  "CC-BY-4.0; gated: accept its terms on the hub, and do not publish its questions",
                  "Question", "Correct Answer", ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")),
    )
}  # fmt: skip

# Benchmarks that lighteval loads, prompts and grades: its task, whether it runs code, and the licence
HARNESS = {
    "livecodebench": ("lcb:codegeneration_v6", True, "CC-BY-4.0"),
    "mmlu": ("mmlu", False, "MIT"),
    "mmlu_pro": ("mmlu_pro", False, "MIT"),
    "ifeval": ("ifeval", False, "Apache-2.0"),
}


@dataclass(frozen=True)
class Question:
    """One question. The template is put around ``text``; ``verifier`` names one of reward.verifiers, or none."""

    bench: str
    id: str
    text: str
    reference: str
    verifier: str | None = None


def sample_seed(seed: int, bench: str, question_id: str, sample: int) -> int:
    """The sampling seed of one response (31 bits); it does not depend on what else is generated."""
    digest = hashlib.sha256(f"{seed}|{bench}|{question_id}|{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def read_file(path: Path) -> list[dict]:
    """The rows of a file of any kind that training reads. EvaluationError names the line that is broken."""
    rows = []
    for _, number, record in records(str(path), "train", None, DATA_FLAGS):
        if isinstance(record, Broken):
            raise EvaluationError(f"--data: {path}:{number}: {record.reason}: {record.detail}. Mend or remove it")
        if not isinstance(record, dict):
            raise EvaluationError(f"--data: {path}:{number} is not an object with a question and an answer")
        rows.append(record)
    if not rows:
        raise EvaluationError(f"--data: {path} has no rows")
    return rows


def questions_of(
    rows: Iterable[dict], bench: str, seed: int, where: str, spec: Benchmark | None = None
) -> list[Question]:
    """Questions, each text or one user's message, from raw rows. EvaluationError names the row it cannot take.

    A row is multiple choice if it has ``choices`` (the options, or an object of labels and options; ``answer`` is a
    letter or label, an index from 0 or an option's text), or if its benchmark has fields of wrong options.
    """
    questions: list[Question] = []
    taken: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):

        def field(keys: Sequence[str], what: str, row: dict = row) -> Any:
            value = next((row[key] for key in keys if row.get(key) not in (None, "")), None)
            if value is None:
                raise BadValue(f"no_{what}", f"no {what} (looked for {', '.join(keys)})")
            return value

        identity = str(number if row.get("id") in (None, "") else row["id"])
        taken[identity] += 1
        if taken[identity] > 1:
            identity += f"#{taken[identity]}"
        verifier = _verifier(row, f"{where}, row {number}")
        try:
            text = asked(field((spec.question,) if spec else _QUESTION_KEYS, "question"), "the question")
            if not isinstance(text, str):
                roles = ", ".join(turn["role"] for turn in text)
                raise BadValue("several_turns", f"messages of {roles}: the questions here are one user's message")
            given = field((spec.answer,) if spec else _ANSWER_KEYS, "answer")
            # an object is a reasoning-gym entry
            answer = json.dumps(given) if isinstance(given, dict) else answer_of(given, "the answer")
            if spec and spec.wrong:
                wrong = [answer_of(field((key,), "option"), "an option") for key in spec.wrong]
                text, answer = lettered(text, answer, wrong, seed, f"{bench}|{identity}")
                verifier = "letter"
            elif row.get("choices"):
                number_given = not isinstance(given, str)
                text, answer = with_options(text, row["choices"], answer, seed, f"{bench}|{identity}", number_given)
                verifier = "letter"
        except (BadChoices, BadValue) as error:
            raise EvaluationError(f"{where}, row {number}: {error.args[-1]}") from None
        questions.append(Question(bench, identity, text, answer, verifier))
    return questions


def _verifier(row: dict, where: str) -> str | None:
    """The name of the row's verifier, if it has one. EvaluationError names the row of an unknown one."""
    try:
        name = row_verifier(row)
    except BadValue as error:
        raise EvaluationError(f"{where}: {error.args[1]}") from None
    if name is not None and name not in VERIFIERS:
        raise EvaluationError(f"{where}: no verifier is called {name!r}; there are {', '.join(sorted(VERIFIERS))}")
    return name


def load_hub(spec: Benchmark) -> tuple[list[dict], str]:
    """The rows of a named benchmark from the hub, and their fingerprint."""
    from datasets import load_dataset

    try:
        data = load_dataset(spec.hub, spec.config, split=spec.split, revision=spec.revision)
    except Exception as error:  # the hub's library has no common class for network, access and format
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise EvaluationError(
            f"--bench {spec.name}: {spec.hub} cannot be loaded from the hub ({reason}). "
            f"Give its rows as a file: --data {spec.name}=FILE"
        ) from None
    return list(data), getattr(data, "_fingerprint", "")


def load_questions(
    data: list[str], benches: list[str], seed: int, limit: int | None, log: Callable[[str], None] = print
) -> tuple[list[Question], dict[str, dict]]:
    """All questions of ``--data FILE``, ``--data NAME=FILE`` and ``--bench NAME``, and the source of each set.

    Row counts of named benchmarks are checked, also when they come from a file. ``limit`` keeps the first rows of each
    set. Raises EvaluationError.
    """
    wanted: list[tuple[str, Path | None]] = []
    for item in data:
        name, _, file = item.rpartition("=") if not Path(item).exists() else ("", "", item)
        wanted.append((name or Path(file).stem.removeprefix("eval_"), Path(file)))
    for name in benches:
        if name not in BENCHMARKS:
            raise EvaluationError(f"--bench {name} is none of {', '.join(BENCHMARKS)}: give a file with --data")
        wanted.append((name, None))
    double = [name for name, count in Counter(name for name, _ in wanted).items() if count > 1]
    if double:
        raise EvaluationError(f"two sets are called {double[0]}: name them, --data {double[0]}_2=FILE")
    questions: list[Question] = []
    sources: dict[str, dict] = {}
    for name, path in wanted:
        spec = BENCHMARKS.get(name)
        if path is None:
            hub = BENCHMARKS[name]
            rows, fingerprint = load_hub(hub)
            found = questions_of(rows, name, seed, hub.hub, hub)
            sources[name] = {"hub": hub.hub, "revision": hub.revision, "fingerprint": fingerprint}
        else:
            if not path.is_file():
                raise EvaluationError(f"--data: there is no file {path}")
            rows = read_file(path)
            own = spec if spec and spec.question in rows[0] and spec.answer in rows[0] else None
            found = questions_of(rows, name, seed, str(path), own)
            sources[name] = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        if spec and len(found) != spec.rows:
            log(f"note: {name} has {len(found)} rows here, {spec.rows} are expected ({spec.hub}, {spec.split})")
        repeated = sum(count - 1 for count in Counter(question.text for question in found).values())
        if repeated:
            log(f"note: {name} asks {repeated} of its {len(found)} questions more than once; all are kept")
        sources[name] |= {"rows": len(found), "licence": spec.licence if spec else None}
        questions += found[:limit]
    return questions, sources
