"""Fits a critic to the returns of stored rollouts, before any reinforcement learning (cli/pretrain_critic.py).

One process holds one rank of the run's own critic (``OrzCriticModelActor``). A round is what its training step is:
some thousands of responses in ``--orz.critic_updates`` mini-batches. After each the held-out responses are valued.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_orz.algo.advantages import discounted_sum
from openrlhf_orz.algo.value_fit import FitTable
from openrlhf_orz.data.stored_rollouts import StoredResponse
from openrlhf_orz.runtime import checkpoints
from openrlhf_orz.runtime.files import append_json_line, write_json_lines
from openrlhf_orz.runtime.resume import read_trainer
from openrlhf_orz.runtime.run_dir import stack_versions
from openrlhf_orz.trainer.critic import OrzCriticModelActor
from openrlhf_orz.trainer.experience_maker import OrzExperienceMaker

CHUNK = 1024  # held-out responses that are tensors at once


@dataclass(frozen=True)
class Schedule:
    """How long to fit: ``responses`` of a round, at most ``rounds``, ``patience`` rounds without a better fit."""

    responses: int
    rounds: int
    patience: int


class StoredExperiences(OrzExperienceMaker):
    """Cuts packs as the trainer does, without Ray and models. ``pad``: the padding token's id."""

    def __init__(self, args: SimpleNamespace, pad: int):
        self.args, self.tokenizer = args, SimpleNamespace(pad_token_id=pad)

    def packs(self, responses: list[StoredResponse]) -> list[Experience]:
        """Batches for the forward, with ``index`` into ``responses``."""
        return self.split_rollout_samples([self.of(response) for response in responses])

    def of(self, response: StoredResponse) -> Experience:
        """One response as a sample with its returns: (1, S) tokens, (1, S - 1) mask and returns."""
        prompt, length = len(response.prompt_ids), len(response.ids)
        tokens = torch.from_numpy(np.concatenate([response.prompt_ids, response.ids]).astype(np.int64))[None]
        mask = torch.zeros(1, prompt + length - 1, dtype=torch.long)
        mask[:, prompt - 1 :] = 1
        rewards = torch.zeros(mask.shape)
        rewards[:, -1] = response.reward
        return Experience(
            sequences=tokens, attention_mask=torch.ones_like(tokens), action_mask=mask,
            returns=discounted_sum(rewards, self.args.algo.advantage.gamma) * mask,
            total_length=torch.tensor([prompt + length]), response_length=torch.tensor([length]),
            info={"reward": torch.tensor([response.reward])},
        )  # fmt: skip


def values_of(
    actor: OrzCriticModelActor, maker: StoredExperiences, responses: list[StoredResponse]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each response, in an order of packs: (values, returns), (A,) both."""
    for start in range(0, len(responses), CHUNK):
        packs = maker.packs(responses[start : start + CHUNK])
        data = {name: [getattr(p, name) for p in packs] for name in ("sequences", "action_mask", "attention_mask")}
        for pack, values_BA in zip(packs, actor.execute_batch("forward", data, 0, len(packs))):
            for mask, values, returns in zip(pack.action_mask.bool(), values_BA.float().cpu(), pack.returns):
                yield values[mask].numpy(), returns[mask].numpy()


def fit_of(
    actor: OrzCriticModelActor, maker: StoredExperiences, responses: list[StoredResponse], limits: tuple[float, float]
) -> dict:
    """``FitTable.summary`` of the critic as it is."""
    table = FitTable(*limits)
    for values, returns in values_of(actor, maker, responses):
        table.add(values, returns)
    return table.summary()


def rounds_of(responses: int, wanted: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of each round, without an end: every pass shuffled anew and cut into rounds of about ``wanted``."""
    number = 0
    while True:
        order = list(range(responses))
        random.Random(f"{seed}-{number}").shuffle(order)
        yield from np.array_split(np.array(order), max(1, round(responses / wanted)))
        number += 1


def better(row: dict, best: dict | None) -> bool:
    """Whether the held-out explained variance of ``row`` is above that of ``best``."""
    return best is None or row["explained_variance"] > best["explained_variance"]


class Pretraining:
    """The rounds, from the start or from the newest checkpoint.

    Args:
        args: settings with ``args.run``, as a critic's rank gets them.
        cls: the critic's class.
        train, held_out: responses.
        limits: the range of returns.
        schedule: how long to fit.
        say: for a line on the console.
    """

    def __init__(
        self,
        args: SimpleNamespace,
        cls: type[OrzCriticModelActor],
        train: list[StoredResponse],
        held_out: list[StoredResponse],
        limits: tuple[float, float],
        schedule: Schedule,
        say: Callable[[str], object],
    ):
        from openrlhf.utils import get_strategy

        self.args, self.schedule, self.say, self.limits = args, schedule, say, limits
        self.train, self.held_out = train, held_out
        self.actor = cls(1, 0, "127.0.0.1", None)
        self.actor.init_model_from_pretrained(
            get_strategy(args), args.critic.model_name_or_path, args.run.policy_steps
        )
        self.maker = StoredExperiences(args, self.actor.tokenizer.pad_token_id)
        self.history: list[dict] = []
        if args.run.resume_from is not None:
            self.history = read_trainer(Path(args.run.resume_from))["history"]
        write_json_lines(Path(args.orz.run_dir) / "rounds.jsonl", self.history)  # less what a kill has cut off
        self.best = max(self.history, key=lambda row: row["explained_variance"], default=None)

    def run(self) -> None:
        """Rounds until the fit stops improving, or there have been enough."""
        rounds = rounds_of(len(self.train), self.schedule.responses, self.args.train.seed)
        if not self.history:
            self.finish_round({"round": 0, **self.held_out_fit()}, time.monotonic())
        for number in range(1, self.schedule.rounds + 1):
            chosen = next(rounds)
            if number <= self.history[-1]["round"]:
                continue  # done before the stop
            if self.done():
                break
            start = time.monotonic()
            for index in chosen:
                self.actor.append(self.maker.of(self.train[index]))
            status = self.actor.fit()
            kept = {key: status[key] for key in ("critic_loss", "critic_updates", "critic_lr") if key in status}
            self.finish_round({"round": number, **kept, **self.held_out_fit()}, start)
            self.checkpoint(number)

    def done(self) -> bool:
        """Whether ``patience`` rounds have brought no better fit."""
        assert self.best is not None
        return self.history[-1]["round"] - self.best["round"] >= self.schedule.patience

    def held_out_fit(self) -> dict:
        """The fit of the held-out responses; refuses one that is not a number."""
        fit = fit_of(self.actor, self.maker, self.held_out, self.limits)
        if fit["explained_variance"] is None or not math.isfinite(fit["explained_variance"]):
            raise FloatingPointError("the critic's values are no numbers: lower --critic.adam.lr")
        return fit

    def finish_round(self, row: dict, start: float) -> None:
        """Keep the model if it is the best so far, and say how the round went."""
        row["seconds"] = round(time.monotonic() - start, 2)
        self.history.append(row)
        if better(row, self.best):
            self.best, self.actor.saved = row, False
            if error := self.actor.try_save_model():
                raise OSError(error)
        append_json_line(Path(self.args.orz.run_dir) / "rounds.jsonl", row)
        loss = f"loss {row['critic_loss']:.4f}, " if "critic_loss" in row else ""
        self.say(
            f"round {row['round']}/{self.schedule.rounds}: {loss}held-out explained variance"
            f" {row['explained_variance']:.4f} (best {self.best['explained_variance']:.4f}, round"
            f" {self.best['round']}), calibration error {row['calibration_error']:.4f}, {row['seconds']:.1f} s"
        )

    def checkpoint(self, number: int) -> None:
        """Write what the next start goes on from, and delete the one before."""
        run, tag = self.args.run, f"global_step{number}"
        self.actor.save_checkpoint(tag)
        partial = checkpoints.partial_path(run.checkpoints, tag)
        state = {
            "global_step": number, "history": self.history, "flags": run.recorded_flags,
            "prompts_sha256": run.prompts_sha256, "versions": stack_versions(),
        }  # fmt: skip
        (partial / checkpoints.TRAINER).write_text(json.dumps(state, default=str))
        torch.save({}, partial / checkpoints.STATE)  # no generator's state: rounds are drawn by their numbers
        checkpoints.commit(partial)
        checkpoints.rotate(run.checkpoints, 1, math.inf)


def finish(best: Path, output: Path, report: dict, work: Path) -> None:
    """Copy the best critic into ``output``, write the report beside it, remove what only a new start would need."""
    for file in sorted(best.iterdir(), key=lambda file: file.name == "config.json"):  # which makes it a model
        shutil.copyfile(file, output / file.name)
    (output / "pretraining.json").write_text(json.dumps(report, indent=1) + "\n")
    shutil.rmtree(work)
