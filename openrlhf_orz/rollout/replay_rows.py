"""The rollouts of an earlier run, read back for ``--orz.replay``. A row that is not what was trained on is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from openrlhf_orz.runtime.files import read_json_lines
from openrlhf_orz.settings.checks import ConfigError

OTHER = "give the data, template, seed and sizes of that run"


@dataclass(frozen=True)
class ReplayedRow:
    """A response: ``token_ids`` of prompt and response, and the [start, stop) in it that the policy has sampled."""

    place: str  # file and line
    token_ids: list[int]
    actions: list[tuple[int, int]]
    row: dict


def rollout_file(run: str | Path, step: int) -> Path:
    return Path(run) / "rollouts" / f"step_{step}.jsonl"


def last_replayable(run: str | Path, first: int) -> int:
    """The last step to which, from ``first``, each has its rollout in the directory ``run``. Raises ConfigError."""
    step = first
    while rollout_file(run, step).is_file():
        step += 1
    if step == first:
        raise ConfigError(f"{rollout_file(run, first)} is not there: name a run that has dumped this step")
    return step - 1


def read_rollout(run: str | Path, step: int) -> list[tuple[str, dict]]:
    """The rows of a step's rollout with their places. Raises ConfigError for a line that is no response."""
    path, rows = rollout_file(run, step), []
    try:
        for number, row in read_json_lines(path):
            texts = row is not None and all(isinstance(row.get(key), str) for key in ("prompt", "response"))
            reward = row.get("reward") if row else None
            if row is None or not texts or isinstance(reward, bool) or not isinstance(reward, (int, float)):
                raise ConfigError(f"{path}:{number} is no response with prompt, response and reward")
            rows.append((f"{path}:{number}", row))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not rows:
        raise ConfigError(f"{path} holds no response: name a run that has dumped this step")
    return rows


def check_prompts(rows: list[tuple[str, dict]], prompts: Iterable[str], samples: int) -> None:
    """Raise ConfigError unless ``rows`` are ``samples`` responses to each of ``prompts``, in their order."""
    wanted = [prompt for prompt in prompts for _ in range(samples)]
    for (place, row), prompt in zip(rows, wanted):
        if row["prompt"] != prompt:
            raise ConfigError(f"{place} answers another prompt than this run asks here: {OTHER}")
    if len(rows) != len(wanted):
        where = rows[0][0].rpartition(":")[0] if rows else "the rollout"
        raise ConfigError(
            f"{where} holds {len(rows)} responses, this run's rollout has {len(wanted)}: {OTHER}, and one that was"
            " dumped whole (no --orz.rollout_dump_max)"
        )


def read_tokens(place: str, row: dict, encode: Callable[[str], list[int]], decode: Callable[[list[int]], str]):
    """The tokens of a row: those recorded, or of older runs those of its text, if they are sure to be the same.

    Raises ConfigError if the numbers of tokens, or the text, are not those of the row.
    """
    prompt, ids = encode(row["prompt"]), row.get("token_ids")
    if ids is None:
        ids = encode(row["response"])
        if len(ids) != row.get("tokens") or decode(ids) != row["response"]:
            raise ConfigError(
                f"{place} has no token_ids, and its text does not give back its {row.get('tokens')} tokens: dump the"
                " rollouts anew with this version"
            )
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise ConfigError(f"{place}: token_ids are no list of numbers")
    if row.get("prompt_tokens", len(prompt)) != len(prompt):
        raise ConfigError(
            f"{place}: its prompt had {row['prompt_tokens']} tokens and has {len(prompt)} here: give the model and"
            " --data.max_len of that run"
        )
    actions, start = [], 0
    for begin, end in row.get("between") or []:
        actions.append((len(prompt) + start, len(prompt) + begin))
        start = end
    actions.append((len(prompt) + start, len(prompt) + len(ids)))
    if sum(stop - begin for begin, stop in actions) != row.get("tokens"):
        raise ConfigError(f"{place}: {len(ids)} token_ids are not the {row.get('tokens')} tokens of the row")
    return ReplayedRow(place, prompt + ids, actions, row)
