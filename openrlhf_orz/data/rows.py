"""Questions with reference answers from any kind of file or dataset; bad rows are returned with their reasons."""

from __future__ import annotations

import contextlib
import decimal
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_orz.data.json_lines import Broken
from openrlhf_orz.data.options import BadChoices, with_options
from openrlhf_orz.data.sources import EVAL_FLAGS, READERS, TRAIN_FLAGS, DataError, DataFlags, records, suffix_of
from openrlhf_orz.reward.extract import reference_text
from openrlhf_orz.reward.verifiers import VerifierSet

QUESTION_KEYS = ("question", "prompt", "problem", "Question", "Problem")  # where a question stands if no key is given
MISSING = object()


@dataclass(frozen=True)
class Row:
    """One question. `question` is as it was found, `answer` (the reference) stripped.

    `question` is text, or messages of a dialogue of several turns: role and content of each, the user's last.
    `answer` is text; for a reward of one's own any JSON value. `row` is the line number in a JSONL file, else the
    number of the row, both from 1; `source` is the row's `datasource` if it has one, else the name of the file
    (without suffix) or dataset. `verifier` is the name of the row's own verifier.
    """

    question: str | list[dict[str, str]]
    answer: Any
    source: str
    file: str
    row: int
    verifier: str | None = None


@dataclass(frozen=True)
class BadRow:
    """One row that can't be trained on.

    `reason` is one of broken_json, broken_csv, duplicate_key, not_utf8, not_an_object, bad_dialogue, bad_messages,
    no_question, no_answer (missing, null or empty), question_not_text, answer_not_text, unknown_verifier, bad_choices.
    `prepare` adds prompt_too_long, several_turns and reference_unparsable.
    """

    file: str
    row: int
    reason: str
    detail: str


class BadValue(Exception):
    """A bad row was found; `args` are (reason, detail) as in `BadRow`."""


@dataclass(frozen=True)
class AnswerRules:
    """Which answers a row may have.

    With `verifiers` those that the row's verifier, or the default one, reads; without, text and numbers. With
    `own_reward` any JSON value, and none (None): numbers become text, so that a column of them is of one type.
    `label_key_given` says that no answer at all under the key is a mistake even then.
    """

    verifiers: VerifierSet | None = None
    own_reward: bool = False
    label_key_given: bool = True


def read_dataset(
    spec: str,
    input_key: str,
    label_key: str | None,
    split: str = "train",
    max_rows: int | None = None,
    *,
    flags: DataFlags = TRAIN_FLAGS,
    answers: AnswerRules = AnswerRules(),
    log: Callable[[str], None] = print,
) -> tuple[list[Row], list[BadRow]]:
    """Read the questions and reference answers of one dataset, in order.

    `spec` is a .jsonl or .jsonl.gz file, a .json file (a list of objects, or one object a line), a .csv or .parquet
    file, a folder of these or one written by `Dataset.save_to_disk`, or a hub dataset "name" or "name@folder". The
    question stands under `input_key` and the answer under `label_key`; "a.b" goes into objects. A question is text or
    a list of messages with role and content. A row's own verifier stands under "verifier" or "meta.verifier", as
    curation writes it. A row that is a two-turn dialogue as in the ORZ release (`[{"from": "human", "value": ...},
    {"from": "assistant", "ground_truth": {"value": ...}}]`) needs no keys. In a folder, files whose names carry
    another split are left out. A row with `choices` becomes a question with lettered options (data/options.py).
    `max_rows` bounds the rows read, good and bad. `flags` are named in errors. A bad row
    never raises. Raises DataError when there is nothing to read at `spec`, or when no row has `input_key` or
    `label_key`.
    """
    columns = {"datasource", "0", "1", "verifier", "meta", "choices"}
    columns |= {part for key in (input_key, label_key) if key for part in (key, key.split(".")[0])}
    rows: list[Row] = []
    bad: list[BadRow] = []
    unused = 0  # rows that ask for more than a reward of one's own is told
    keys: dict[str, None] = {}  # seen in rows that are objects; a dict for its order
    found_keys: set[str | None] = set()  # of input_key and label_key, those that a row has
    for file, number, record in itertools.islice(records(spec, split, columns, flags), max_rows):
        unused += answers.own_reward and asks_for_more(record)
        try:
            dialogue = as_dialogue(record)
            if dialogue is None and isinstance(record, dict):
                keys |= dict.fromkeys(record)
                found_keys |= {key for key in (input_key, label_key) if key and value_at(record, key) is not MISSING}
            question, answer, verifier = _read_row(record, dialogue, input_key, label_key, answers)
            rows.append(Row(question, answer, _source(record, file), file, number, verifier))
        except BadValue as found:
            bad.append(BadRow(file, number, *found.args))
    needs_label = answers.label_key_given or not answers.own_reward
    if keys and (not rows or (answers.own_reward and needs_label)):
        _check_keys(keys, found_keys, spec, input_key, label_key, needs_label, flags)
    if unused:
        log(
            f"data: {spec}: {unused} rows have a verifier or choices of their own, which are not used: your reward or"
            " agent judges, by the question and the label alone"
        )
    return rows, bad


def _read_row(
    record: Any, dialogue: list | None, input_key: str, label_key: str | None, answers: AnswerRules
) -> tuple[str | list[dict[str, str]], Any, str | None]:
    """Question, answer and verifier of a record. Raises BadValue."""
    if dialogue is not None:
        return *from_dialogue(dialogue), None
    if isinstance(record, Broken):
        raise BadValue(record.reason, record.detail)
    if not isinstance(record, dict):
        raise BadValue("not_an_object", f"{_kind(record)}, not an object with question and answer")
    question = asked(value_at(record, input_key), f"key {input_key!r}")
    answer = MISSING if label_key is None else value_at(record, label_key)
    where = f"key {label_key!r}"
    if answers.own_reward:
        return question, _any_answer(answer, where), None
    if record.get("choices"):
        number = not isinstance(answer, str)
        return *_with_options(record["choices"], question, answer_of(answer, where), number), "letter"
    name = row_verifier(record)
    if answers.verifiers is None:
        return question, answer_of(answer, where), name
    try:
        verifier = answers.verifiers.named(name)
    except ValueError as error:
        raise BadValue("unknown_verifier", str(error)) from None
    if isinstance(answer, dict):
        try:
            return question, verifier.read_reference(answer), name
        except TypeError:
            raise BadValue("answer_not_text", f"{where} is an object: only reasoning_gym's entries may be") from None
    return question, answer_of(answer, where), name


def _with_options(choices: Any, question: str | list, answer: str, number: bool) -> tuple[str, str]:
    """Question and right letter of a multiple-choice row; the question itself fixes the order of its options."""
    try:
        if not isinstance(question, str):
            raise BadChoices("its choices go with a question of one turn")
        return with_options(question, choices, answer, 0, question, number)
    except BadChoices as error:
        raise BadValue("bad_choices", str(error)) from None


def asks_for_more(record: Any) -> bool:
    """Whether a row has a verifier or choices, of which a reward of one's own learns nothing."""
    if not isinstance(record, dict):
        return False
    with contextlib.suppress(BadValue):
        return bool(row_verifier(record) or record.get("choices"))
    return True


def row_verifier(record: dict) -> str | None:
    """The name of the verifier that a row asks for, under "verifier" or "meta.verifier"; None for the default.

    Raises BadValue for a name that is no text.
    """
    name = record.get("verifier")
    meta = record.get("meta")
    if name is None and isinstance(meta, str) and '"verifier"' in meta:  # curation's Parquet has meta as JSON
        with contextlib.suppress(ValueError):
            meta = json.loads(meta)
    if name is None and isinstance(meta, dict):
        name = meta.get("verifier")
    if name is not None and not isinstance(name, str):
        raise BadValue("unknown_verifier", f"verifier is {_kind(name)}, not a name")
    return name or None


def value_at(record: dict, key: str) -> Any:
    """The value under `key`, else `MISSING`; "a.b" goes into objects, unless the record has that very key."""
    if key in record:
        return record[key]
    value: Any = record
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return MISSING
        value = value[part]
    return value


def asked(value: Any, where: str) -> str | list[dict[str, str]]:
    """The question that a row asks, text or messages. Raises BadValue, which says ``where`` it stood."""
    value = _decoded(value)
    return _messages(value, where) if isinstance(value, list) else question_of(value, where)


def _decoded(value: Any) -> Any:
    """Messages that stand as JSON in a text, as a CSV file has them; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if all(isinstance(turn, dict) and "role" in turn for turn in found) else value


def _messages(turns: list, where: str) -> str | list[dict[str, str]]:
    """The messages of a dialogue; of one that is a user's message alone, its text."""
    found = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise BadValue("bad_messages", f"{where}: message {i} has no role")
        found.append({"role": turn["role"], "content": question_of(turn.get("content"), f"{where}, message {i}")})
    if not found or found[-1]["role"] != "user":
        last = f"the last message is of {found[-1]['role']!r}" if found else "there is no message"
        raise BadValue("bad_messages", f"{where}: {last}, and a question is the user's")
    return found[0]["content"] if len(found) == 1 else found


def _any_answer(value: Any, where: str) -> Any:
    """The answer for a reward of one's own: text stripped, a number as text, else any JSON value; None without one."""
    if value is MISSING or value is None:
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, (int, float, decimal.Decimal)) and not isinstance(value, bool):
        return answer_of(value, where)
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadValue("answer_not_text", f"{where} is no JSON value: {error}") from None


def _check_keys(
    keys: dict[str, None],
    found: set[str | None],
    spec: str,
    input_key: str,
    label_key: str | None,
    needs_label: bool,
    flags: DataFlags,
) -> None:
    seen = ", ".join(sorted(map(str, keys)))
    remedy = "Name one of them." if flags is not EVAL_FLAGS else (
        f"{flags.dataset} is read by the keys of --data.prompt_dataset: give its rows the same."
    )  # fmt: skip
    if input_key not in found:
        raise DataError(f"{flags.input_key} {input_key}: no row of {spec} has it. Keys seen: {seen}. {remedy}")
    if needs_label and label_key not in found:
        asked = f"{flags.label_key} {label_key}"
        missing = f"{asked}: no row of {spec} has it." if label_key else f"{flags.label_key} is not given."
        remedy = remedy.replace("one of them", "the one with the reference answers")
        raise DataError(f"{missing} Keys seen in {spec}: {seen}. {remedy}")


def as_dialogue(record: Any) -> list | None:
    """The turns of an ORZ dialogue, or None for another record. The hub makes each turn a column "0", "1"."""
    if isinstance(record, dict) and "0" in record and "1" in record:
        record = [record["0"], record["1"]]
    if isinstance(record, list) and record and isinstance(record[0], dict) and "from" in record[0]:
        return record
    return None


def from_dialogue(turns: list) -> tuple[str, str]:
    """Question and answer of a dialogue's turns. Raises BadValue when one is missing."""
    if len(turns) != 2 or not isinstance(turns[1], dict):
        raise BadValue("bad_dialogue", f"{len(turns)} turns, not a question and a ground truth")
    truth = turns[1].get("ground_truth")
    truth = truth if isinstance(truth, dict) else {}
    question = question_of(turns[0].get("value", MISSING), "value")
    return question, answer_of(truth.get("value", MISSING), "ground_truth.value")


def question_of(value: Any, where: str) -> str:
    """The question as it is. Raises BadValue, which says `where` it stood, for anything but text."""
    return _text(value, where, "question")


def answer_of(value: Any, where: str) -> str:
    """The answer, text or a number, as text. Raises BadValue, which says `where` it stood, for anything else."""
    number = isinstance(value, (int, float, decimal.Decimal)) and not isinstance(value, bool)
    if number and (isinstance(value, int) or math.isfinite(value)):  # an integer may be beyond any float
        try:
            value = reference_text(value)
        except ValueError as error:  # an integer of thousands of digits
            raise BadValue("answer_not_text", f"{where}: {error}") from None
    return _text(value, where, "answer").strip()


def _text(value: Any, where: str, what: str) -> str:
    if value is MISSING:
        raise BadValue(f"no_{what}", f"{where} is missing")
    if value is None:
        raise BadValue(f"no_{what}", f"{where} is null")
    if not isinstance(value, str):
        raise BadValue(f"{what}_not_text", f"{where} is {_kind(value)}")
    if not value.strip():
        raise BadValue(f"no_{what}", f"{where} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # a lone surrogate, which no tokenizer takes
        raise BadValue("not_utf8", f"{where}: {error}") from None
    return value


def _kind(value: Any) -> str:
    if isinstance(value, (float, decimal.Decimal)) and not math.isfinite(value):
        return f"{value}, not a finite number"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")


def _source(record: Any, file: str) -> str:
    given = record.get("datasource") if isinstance(record, dict) else None
    if isinstance(given, str) and given.strip():
        return given.strip().encode("utf-8", "replace").decode()
    suffix = suffix_of(Path(file))
    return Path(file).name[: -len(suffix)] if suffix in READERS else file.rstrip("/")
