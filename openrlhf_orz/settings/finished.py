"""Finished settings cannot change; what a run finds out when it starts are ``RunFacts`` beside them.

``parse`` returns finished settings. The driver looks at data, checkpoints and Ray, puts what it finds into a RunFacts
and starts OpenRLHF with ``for_openrlhf(args, run)``, so that ``args.run`` is there in every process of the run.
"""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class Settings(SimpleNamespace):
    """OpenRLHF's nested arguments, read-only. ``changed`` makes others of them."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"settings are finished: {name} cannot be set; settings.finished.changed makes others")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"settings are finished: {name} cannot be deleted")


@dataclass(frozen=True)
class RunFacts:
    """What a run finds out about itself before Ray starts.

    Args:
        prompts: prompts to train on.
        policy_steps: policy steps of the whole run.
        data: ``data.*`` and ``eval.*`` settings that point OpenRLHF at the prepared prompts.
        template: that of the prompts, by which saved models ask; None: the tokenizer's own chat template.
        prompts_sha256: fingerprint of the prepared prompts.
        recorded_flags: what a checkpoint keeps of the flags, to compare on resume.
        checkpoints: folder of the checkpoints (``--ckpt.path``).
        save_steps: a checkpoint every so many steps (``--ckpt.save_steps``; -1: none).
        last_step: at which ``--orz.replay`` ends; None: that of the data.
        resume_from, start_step: the checkpoint to resume from and its step; None and 0 for a new run.
        universal: the folder that DeepSpeed loads instead (runtime/universal.py); None: the checkpoint itself.
        restarts: how often ``--orz.max_restarts`` has started it again.
        own_ray: Ray is started for this run, on loopback, and ends with it.
        shared: folders that all machines of the run must see, with the driver's mark in each (runtime/nodes.py).
        scratch: the private folder (runtime/private.py), with a slash at its end, of the files that its processes
            leave to each other, in shared memory where there is any.
        worker_python: the command that Ray starts workers with (runtime/fork_server.py); None: this Python.
    """

    checkpoints: str
    scratch: str
    save_steps: float = -1
    prompts: int = 0
    policy_steps: int = 1
    data: dict[str, Any] = field(default_factory=dict)
    template: str | None = "paper"
    prompts_sha256: str | None = None
    recorded_flags: Any = None
    resume_from: str | None = None
    start_step: int = 0
    universal: str | None = None
    last_step: int | None = None
    restarts: int = 0
    own_ray: bool = True
    shared: dict[str, str] = field(default_factory=dict)
    worker_python: str | None = None


def finished(args: SimpleNamespace | Namespace) -> Settings:
    """A read-only copy of nested arguments."""
    return Settings(
        **{
            name: finished(value) if isinstance(value, (SimpleNamespace, Namespace)) else value
            for name, value in vars(args).items()
        }
    )


def changed(args: SimpleNamespace, changes: dict[str, Any]) -> Settings:
    """A read-only copy with ``changes``, by dotted name: ``changed(args, {"ckpt.save_steps": 5})``."""
    copy = finished(args)
    for name, value in changes.items():
        *groups, last = name.split(".")
        node = copy
        for group in groups:
            node = getattr(node, group)
        vars(node)[last] = value
    return copy


def warmup_ratio(steps: int, max_steps: int) -> float:
    """The ratio for which OpenRLHF's ceil(max_steps * ratio) is ``steps``, safe against rounding."""
    return max(0.0, steps - 0.5) / max(1, max_steps)


def rollouts_of(args: SimpleNamespace, prompts: int) -> int:
    """Rollouts, which are steps, of a run over ``prompts`` prompts; a partial last one counts as a whole one."""
    return math.ceil(prompts / args.rollout.batch_size) * args.train.num_episodes


def policy_steps(args: SimpleNamespace, prompts: int) -> int:
    """The policy's optimizer steps in them."""
    return rollouts_of(args, prompts) * args.train.max_epochs * args.orz.policy_updates


def critic_steps(args: SimpleNamespace, policy_steps: int) -> int:
    """The critic's steps in as many rollouts as ``policy_steps`` policy steps take."""
    return policy_steps // args.orz.policy_updates * args.orz.critic_updates * args.orz.critic_epochs


def for_openrlhf(args: SimpleNamespace, run: RunFacts) -> Settings:
    """The settings that OpenRLHF is started with: ``args`` with ``run``, less what OpenRLHF must leave to us."""
    changes: dict[str, Any] = {
        "run": run,
        **run.data,
        # OpenRLHF would save inside of its logging, where a full disk ends the run: trainer/checkpoints.py saves
        "ckpt.save_steps": float("inf"),
        # OpenRLHF reads from ckpt.path; where it writes to is checkpoint_path of the model actors
        "ckpt.load_enable": run.resume_from is not None,
        "ckpt.path": run.universal or run.resume_from or args.ckpt.path,
        "ds.use_universal_ckpt": run.universal is not None,
        "train.enable_ema": False,  # OpenRLHF would average in the model's dtype: trainer/saving.py does in float32
    }
    if args.orz.replay:  # nothing is generated
        changes |= {"vllm.num_engines": 0, "vllm.enable_sleep": False}
    if args.eval.steps == -1:
        changes["eval.steps"] = float("inf")
    if args.algo.advantage.estimator not in ("gae", "reinforce"):
        changes["algo.advantage.gamma"] = 1.0  # OpenRLHF's own rule, which it would write into the arguments later
    steps = {"actor": run.policy_steps, "critic": critic_steps(args, run.policy_steps)}
    for role, warmup in (("actor", args.orz.actor_warmup_steps), ("critic", args.orz.critic_warmup_steps)):
        if warmup is not None:
            changes[f"{role}.lr_warmup_ratio"] = warmup_ratio(warmup, steps[role])
    return changed(args, changes)
