"""Responses of earlier runs, read from their rollouts/step_N.jsonl as token ids and returns' rewards."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openrlhf_orz.data.sources import DataError
from openrlhf_orz.report.run_data import RunError, load_run, read_objects

LOOKED_AT = 32  # responses of each file whose text is compared with that of their tokens


@dataclass(frozen=True)
class StoredResponse:
    """``prompt_ids`` and ``ids`` of the response: int32. ``reward`` is the one that was trained on."""

    prompt: str
    prompt_ids: np.ndarray
    ids: np.ndarray
    reward: float


class RolloutReader:
    """Reads rollouts with a tokenizer that must be that of the runs.

    ``left_out`` counts by reason the rows that cannot be used.

    Args:
        encode, decode: of the tokenizer, without special tokens added, with them kept.
        vocabulary: how many tokens the model knows.
    """

    def __init__(self, encode: Callable[[str], list[int]], decode: Callable[[list[int]], str], vocabulary: int):
        self.encode, self.decode, self.vocabulary = encode, decode, vocabulary
        self.left_out: Counter[str] = Counter()
        self.prompts: dict[str, np.ndarray] = {}
        self.notes: list[str] = []
        self.retokenised = 0  # rows of an older version, without token ids

    def read(self, folder: str | Path, first: int = 0, last: float = math.inf) -> list[StoredResponse]:
        """The responses of the steps from ``first`` to ``last`` of a run. Raises DataError, naming what is wrong."""
        try:
            run = load_run(folder)
        except RunError as error:
            raise DataError(f"--rollouts: {error}") from None
        _check_rewards(folder, run.config)
        found = []
        files = {step: file for step, file in run.rollout_files.items() if first <= step <= last}
        if not files:
            raise DataError(f"--rollouts: {folder} has no rollouts/step_N.jsonl of the steps wanted")
        for file in files.values():
            for place, row in enumerate(read_objects(file, self.notes)):
                response = self._response(row, file, place < LOOKED_AT)
                if isinstance(response, str):
                    self.left_out[response] += 1
                else:
                    found.append(response)
        return found

    def _response(self, row: dict, file: Path, look: bool) -> StoredResponse | str:
        """The row's response, or why it is left out."""
        prompt, text, ids = row.get("prompt"), row.get("response"), row.get("token_ids")
        reward = row.get("reward_trained", row.get("reward"))
        if not isinstance(prompt, str) or not isinstance(text, str):
            return "no prompt or no response"
        if isinstance(reward, bool) or not isinstance(reward, (int, float)) or not math.isfinite(reward):
            return "no reward"
        if "between" in row:
            return "several turns: tokens of others stand between the response's"
        if prompt not in self.prompts:
            self.prompts[prompt] = np.array(self.encode(prompt), np.int32)
        prompt_ids = self.prompts[prompt]
        if ids is None:
            ids = self.encode(text)
            self.retokenised += 1
            if len(ids) != row.get("tokens"):
                return "no token ids, and the text gives another number of tokens than were sampled"
        elif not isinstance(ids, list) or not all(type(i) is int for i in ids):
            return "token_ids are no list of numbers"
        elif look and self.decode(ids) != text:
            raise DataError(f"{file}: its tokens are not those of this model's tokenizer: give the run's model")
        if row.get("prompt_tokens", len(prompt_ids)) != len(prompt_ids):
            return "the prompt has another number of tokens than in its run"
        if not ids or not len(prompt_ids):
            return "empty"
        if not all(0 <= i < self.vocabulary for i in (min(ids), max(ids), int(prompt_ids.max()))):
            raise DataError(f"{file}: token {max(ids)} is beyond the model's {self.vocabulary}: give the run's model")
        return StoredResponse(prompt, prompt_ids, np.array(ids, np.int32), float(reward))


def _check_rewards(folder: str | Path, config: dict) -> None:
    """A return is taken as the discounted reward, which it was not where KL was part of it."""
    try:
        kl = config["flags"]["algo"]["kl"]
        penalised = kl["init_coef"] > 0 and not kl["use_loss"]
    except (KeyError, TypeError):
        return
    if penalised:
        raise DataError(f"--rollouts: rewards of {folder} had a KL penalty by token, which its rollouts do not hold")


def split_by_prompt(
    responses: list[StoredResponse], share: float, seed: int
) -> tuple[list[StoredResponse], list[StoredResponse]]:
    """(to train on, held out): ``share`` of the prompts, at least one, with all their responses.

    Raises DataError unless both parts have rewards that differ.
    """
    prompts = sorted({response.prompt for response in responses})
    random.Random(seed).shuffle(prompts)
    held = set(prompts[: max(1, round(share * len(prompts)))])
    parts = [r for r in responses if r.prompt not in held], [r for r in responses if r.prompt in held]
    for part, name in zip(parts, ("to train on", "held out")):
        if len({r.reward for r in part}) < 2:
            raise DataError(
                f"--rollouts: all {len(part)} responses {name} ({len(prompts)} prompts in all) have the same reward:"
                " there is nothing to explain. Give more rollouts, or another --held_out"
            )
    return parts


def digest(responses: list[StoredResponse]) -> str:
    """sha256 of what is trained and tested on, in its order."""
    found = hashlib.sha256()
    for response in responses:
        for part in (response.prompt_ids.tobytes(), b"|", response.ids.tobytes(), repr(response.reward).encode()):
            found.update(part)
    return found.hexdigest()
