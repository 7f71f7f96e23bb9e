"""A bounded sample of a run's rollouts for the page: steps and kinds of responses spread over the run."""

import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from openrlhf_orz.algo.text_stats import reflects
from openrlhf_orz.algo.value_fit import PARTS, FitTable
from openrlhf_orz.report.run_data import Run, number_or_none, read_objects

MAX_STEPS = 40  # steps whose rollout files are read
MAX_READ = 400  # responses taken from one file
MAX_RESPONSE_CHARS = 120_000  # a longer response is cut in its middle
FITS = 3  # parts of the run whose critic is shown by position
TEXT_KEYS = ("prompt", "response", "extracted", "reference", "verdict", "rule", "stop_reason")


@dataclass
class Sample:
    """The rollouts of a run that the page shows. ``left_out`` says in words, with counts, what it does not show."""

    rows: list[dict] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)  # each once; a row's "prompt" is an index into this
    left_out: str = ""
    fit: dict = field(default_factory=dict)  # of ``fit_by_position``


def evenly_spaced(values: list, count: int) -> list:
    """``count`` of ``values`` at equal distances, with the first and the last; all of them if there are not more."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)] if count > 1 else values[-1:]


def page_row(row: dict, step: int, place: int) -> dict:
    """The keys of a response that the page uses, with the right types whatever wrote the row."""
    texts = {key: "" if row.get(key) is None else str(row[key]) for key in TEXT_KEYS}
    response = texts["response"]
    cut = len(response) - MAX_RESPONSE_CHARS
    if cut > 0:
        half = MAX_RESPONSE_CHARS // 2
        texts["response"] = (
            f"{response[:half]}\n[... {cut} characters are left out of this page ...]\n{response[-half:]}"
        )
    by_token = token_columns(row) if cut <= 0 else {}
    reward, trained, tokens = number_or_none(row.get("reward")), row.get("reward_trained"), row.get("tokens")
    right = row.get("right")  # older runs, whose rewards are 0 and 1, do not say it
    reflection = row.get("reflection")
    return {
        **texts,
        "step": step,
        "place": place,
        "reward": reward,
        "right": right if isinstance(right, bool) else reward is not None and reward > 0,
        "trained": number_or_none(trained),
        "tokens": number_or_none(tokens),
        "reflection": reflection if isinstance(reflection, bool) else reflects(response),
        **by_token,
    }


def token_columns(row: dict) -> dict:
    """``pieces``, ``values`` and ``advantages`` of a row that was written by token, and whole; else nothing."""
    pieces, numbers = row.get("token_texts"), {key: row.get(key) for key in ("values", "advantages")}
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        return {}
    if "".join(pieces) != row.get("response") or not pieces:
        return {}
    if not all(isinstance(column, list) and len(column) == len(pieces) for column in numbers.values()):
        return {}
    short = {key: [number_or_none(x) for x in column] for key, column in numbers.items()}
    return {"pieces": pieces, **short} if any(x is not None for x in short["values"]) else {}


def fit_by_position(rows: list[dict], gamma: float) -> dict:
    """How well values fit returns in each tenth of the responses, in up to three parts of the steps of ``rows``.

    Returns ``position`` (per cent, the middles of the tenths), ``labels`` of the parts, and for part i ``variance_i``
    (explained), ``calibration_i`` (error), ``value_i`` and ``return_i`` (means); nothing where no row has values.
    """
    rows = [row for row in rows if "values" in row and (row["trained"] is not None or row["reward"] is not None)]
    steps = sorted({row["step"] for row in rows})
    if not steps:
        return {}
    rewards = {id(row): row["reward"] if row["trained"] is None else row["trained"] for row in rows}
    limits = min([0.0, *rewards.values()]), max([1.0, *rewards.values()])
    result: dict = {"position": [round(100 * (i + 0.5) / PARTS, 1) for i in range(PARTS)], "labels": []}
    for number, part in enumerate(np.array_split(np.array(steps), min(FITS, len(steps)))):
        table = FitTable(*limits)
        for row in rows:
            if part[0] <= row["step"] <= part[-1]:
                values = [value for value in row["values"] if value is not None]
                table.add(np.array(values), rewards[id(row)] * gamma ** np.arange(len(values))[::-1])
        fit = table.summary()["by_position"]
        first, last = int(part[0]), int(part[-1])
        result["labels"].append(f"steps {first} to {last}" if last > first else f"step {first}")
        for name, key in (("variance", "explained_variance"), ("calibration", "calibration_error"),
                          ("value", "value_mean"), ("return", "return_mean")):  # fmt: skip
            result[f"{name}_{number}"] = [number_or_none(place[key]) for place in fit]
    return result


def gamma_of(run: Run) -> float:
    """The run's discount; 1 where its configuration does not say."""
    try:
        return float(run.config["flags"]["algo"]["advantage"]["gamma"])
    except (KeyError, TypeError, ValueError):
        return 1.0


def kind(row: dict) -> tuple:
    """The features by which a reader tells responses apart: step, outcome, cut or not, reflecting or not, by token."""
    cut = row["stop_reason"] == "length"
    return row["step"], row["reward"], row["verdict"], cut, row["reflection"], "pieces" in row


def order(rows: list[dict], seed: int) -> list[dict]:
    """The rows in an order whose every beginning holds many kinds; prompts seen at several steps come first."""
    rng = random.Random(seed)
    rows = rows.copy()
    rng.shuffle(rows)
    steps_of: dict[str, set] = {}
    for row in rows:
        steps_of.setdefault(row["prompt"], set()).add(row["step"])
    rows.sort(key=lambda row: -min(len(steps_of[row["prompt"]]), 2))  # stable: each part stays shuffled
    turns: dict[tuple, int] = {}
    ranked = []
    for row in rows:
        turns[kind(row)] = turns.get(kind(row), 0) + 1
        ranked.append((turns[kind(row)], row))
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])]


def sample_rollouts(run: Run, budget: int, seed: int = 0) -> Sample:
    """Choose responses that take at most about ``budget`` bytes when compressed.

    Damaged lines are added to ``run.notes``.
    """
    files = run.rollout_files
    chosen = evenly_spaced(list(files), MAX_STEPS)
    rows, found = [], 0
    for step in chosen:
        try:
            lines = read_objects(files[step], run.notes)
        except OSError as error:
            run.notes.append(f"{files[step].name} cannot be read: {error.strerror}")
            continue
        found += len(lines)
        places: Sequence[int] = range(len(lines))
        if len(lines) > MAX_READ:
            by_token = [place for place in places if "values" in lines[place]][:MAX_READ]
            some = random.Random(f"{seed}-{step}").sample(places, MAX_READ - len(by_token))
            places = sorted({*some, *by_token})
        rows += [page_row(lines[place], step, place) for place in places]
    packer, size, kept = zlib.compressobj(6), 0, []
    prompts: dict[str, int] = {}
    for row in order(rows, seed):
        prompt = row["prompt"]
        text = json.dumps(row | {"prompt": prompt if prompt not in prompts else 0})
        size += len(packer.compress(text.encode())) + len(packer.flush(zlib.Z_SYNC_FLUSH))
        if size > budget:
            break
        kept.append(row | {"prompt": prompts.setdefault(prompt, len(prompts))})
    kept.sort(key=lambda row: (row["step"], row["place"]))
    sample = Sample(kept, list(prompts), fit=fit_by_position(rows, gamma_of(run)))
    if not files:
        sample.left_out = "This run has no rollout files."
    else:
        parts = [f"{len(kept):,} of {found:,} responses of {len(chosen)} steps are in this page"]
        if len(files) > len(chosen):
            parts.append(f"{len(files) - len(chosen):,} more steps have rollouts that were not read")
        if len(kept) < found:
            parts.append("chosen so that every kind of outcome of every step read is here, as far as the space goes")
        sample.left_out = "; ".join(parts) + f". All of them: {run.name}/rollouts/."
    return sample
