"""The configuration of a curation run: sections as dataclasses, read from YAML, checked before anything runs."""

from __future__ import annotations

import dataclasses
import importlib
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openrlhf_orz.data.sources import DataError
from openrlhf_orz.report.run_data import open_file

DEEPEST = 50  # levels of brackets in a configuration
STAGES = ("clean", "exclude", "language", "dedup", "decontaminate", "pass_rate")  # between collect and write


@dataclass
class Clean:
    max_question_chars: int = 8000
    max_answer_chars: int = 1000
    figures: bool = True  # reject questions whose figure is missing
    check_answers: bool = True  # by the training grader
    plain_math_verify: bool = False  # check answers by Math-Verify alone


@dataclass
class Exclude:
    multiple_choice: bool = True
    proof: bool = True
    proof_and_answer: bool = True  # a proof besides an answer that can be checked
    open_ended: bool = True
    multi_part: bool = True
    guessable: bool = True  # yes or no, true or false, who wins


@dataclass
class Language:
    keep: list[str] = field(default_factory=lambda: ["english", "chinese"])


@dataclass
class Dedup:
    exact: bool = True
    ngram: bool = True
    same_answer: float = 0.5  # similarity of the words from which two questions with equal answers are duplicates
    other_answer: float = 0.85  # ... and two with different answers
    embedding: bool = False
    embedding_model: str = ""  # a folder or hub name; "": the packaged all-MiniLM-L6-v2
    embedding_similarity: float = 0.85  # cosine from which two questions with equal answers are duplicates
    sources: list[str] = field(default_factory=list)  # best first; []: the order of the inputs


@dataclass
class Decontaminate:
    against: list[str] = field(default_factory=lambda: ["builtin"])
    ngram: int = 8  # words
    overlap: float = 0.6  # share of an evaluation question's N-grams in a row
    embedding: bool = False
    embedding_similarity: float = 0.9


@dataclass
class PassRate:
    rollouts: list[str] = field(default_factory=list)  # run folders, mined without a model
    model: str = ""  # a folder or hub name, sampled with vLLM
    n: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 2048
    max_model_len: int = 0  # 0: the model's own
    dtype: str = "auto"
    template: str = "paper"
    max_rate: float = 1.0  # a rate above it is too high ...
    exclude_one: bool = True  # ... and so is 1.0
    exclude_zero: bool = True
    max_right: int = -1  # right answers allowed; -1: any
    min_n: int = 1  # estimates from fewer answers are ignored
    missing: str = "keep"  # rows without an estimate: keep or drop


@dataclass
class Config:
    """A run. `inputs` are dictionaries as in `inputs.parse_inputs`; a stage whose section is None is left out."""

    inputs: list[dict] = field(default_factory=list)
    output: str = ""
    seed: int = 0
    processes: int = 2
    shard_rows: int = 20_000
    heldout: float = 0.0  # share of the question families that are held out
    shuffle: bool = False
    name: str = "curated"
    clean: Clean | None = field(default_factory=Clean)
    exclude: Exclude | None = field(default_factory=Exclude)
    language: Language | None = field(default_factory=Language)
    dedup: Dedup | None = field(default_factory=Dedup)
    decontaminate: Decontaminate | None = field(default_factory=Decontaminate)
    pass_rate: PassRate | None = None


def load_config(
    path: Path | None,
    overrides: typing.Sequence[str] = (),
    values: typing.Mapping[str, Any] = types.MappingProxyType({}),
) -> Config:
    """The configuration of a YAML file (or the defaults), changed by ``values`` by key, as they are, and then by
    overrides like "dedup.embedding=true", whose values are YAML.

    Raises DataError, naming the file or the key and what is wrong with it.
    """
    import yaml

    found: Any = {}
    if path is not None:
        try:
            with open_file(path) as stream:
                text = stream.read().decode("utf-8")
            if _levels(text) > DEEPEST:
                raise yaml.YAMLError(f"it is nested in more than {DEEPEST} levels")
            found = yaml.safe_load(text) or {}
        except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
            raise DataError(f"--config {path}: {error}. Give a YAML file, as docs/data.md shows.") from error
        if not isinstance(found, dict):
            raise DataError(f"--config {path}: a mapping of keys is expected, not {type(found).__name__}.")
    for key, value in values.items():
        _put(found, key.split("."), value, f"{key}={value}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise DataError(f"--set {override}: write KEY=VALUE, such as dedup.embedding=true.")
        try:
            _put(found, key.split("."), yaml.safe_load(text), override)
        except yaml.YAMLError as error:
            raise DataError(f"--set {override}: {error}") from error
    config = _build(Config, found, "")
    _check(config)
    return config


def _levels(text: str) -> int:
    """The deepest nesting of brackets; YAML's parser takes minutes for some thousand."""
    level = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        level += 1 if bracket in "[{" else -1
        deepest = max(deepest, level)
    return deepest


def _put(node: Any, keys: list[str], value: Any, override: str) -> None:
    *path, last = keys
    for key in path:
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise DataError(f"--set {override}: the list has no element {key}.")
            node = node[int(key)]
        else:
            if not isinstance(node.get(key), (dict, list)):
                node[key] = {}
            node = node[key]
    if isinstance(node, list):
        raise DataError(f"--set {override}: {last} names no key of an element.")
    node[last] = value


def _build(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise DataError(f"{where or 'the configuration'}: keys and values are expected, not {values!r}.")
    hints = typing.get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}
    result = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise DataError(f"{name}: there is no such key. There are {', '.join(sorted(known))}.")
        result[key] = _value(hints[key], value, name)
    return kind(**result)


def _value(hint: Any, value: Any, name: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    section: Any = next((option for option in options if dataclasses.is_dataclass(option)), None)
    if section is not None:
        if value in (None, False):
            return None
        return _build(section, {} if value is True else value, name)
    origin = typing.get_origin(hint)
    if origin is list:
        value = [value] if isinstance(value, (str, dict)) else value
        inner = typing.get_args(hint)[0]
        if not isinstance(value, list) or not all(isinstance(item, inner) for item in value):
            raise DataError(f"{name}: a list of {inner.__name__} is expected, not {value!r}.")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise DataError(f"{name}: {hint.__name__} is expected, not {value!r}.")
    return value


def _check(config: Config) -> None:
    def check(fine: bool, key: str, what: str) -> None:
        if not fine:
            raise DataError(f"{key}: {what}.")

    check(bool(config.output), "output", "give the folder for the results (or --output)")
    check(bool(config.inputs), "inputs", "give at least one input (or --input)")
    check(0 <= config.heldout < 1, "heldout", "a share from 0 up to, but not, 1 is expected")
    check(config.processes >= 1 and config.shard_rows >= 1, "processes, shard_rows", "1 or more is expected")
    names = []
    for i, item in enumerate(config.inputs):
        check(isinstance(item, dict), f"inputs.{i}", "keys and values are expected")
        names.append(item.get("name"))
    given = [name for name in names if name is not None]
    check(len(set(given)) == len(given), "inputs", f"every name may be used once, not {given}")
    if config.dedup:
        for key in ("same_answer", "other_answer", "embedding_similarity"):
            check(0 < getattr(config.dedup, key) <= 1, f"dedup.{key}", "a number above 0, up to 1, is expected")
    if config.decontaminate:
        check(config.decontaminate.ngram >= 2, "decontaminate.ngram", "2 or more is expected")
        check(0 < config.decontaminate.overlap <= 1, "decontaminate.overlap", "above 0, up to 1, is expected")
    if config.language:
        bad = set(config.language.keep) - {"english", "chinese", "other"}
        check(not bad, "language.keep", f"english, chinese and other are known, not {', '.join(sorted(bad))}")
    if config.pass_rate:
        rate = config.pass_rate
        check(bool(rate.model) != bool(rate.rollouts), "pass_rate", "give either model or rollouts")
        check(rate.missing in ("keep", "drop"), "pass_rate.missing", "keep or drop is expected")
        check(rate.n >= 1 and rate.min_n >= 1, "pass_rate.n, min_n", "1 or more is expected")
        check(0 < rate.max_rate <= 1, "pass_rate.max_rate", "above 0, up to 1, is expected")


def import_for_stage(module: str, package: str, stage: str) -> Any:
    """A module that only this stage needs. Raises DataError, naming stage, package and remedy, if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"the stage {stage!r} needs the package {package} ({error}). Install it: bash tools/setup.sh"
        ) from error
