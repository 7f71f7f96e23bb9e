"""A rank's part of a checkpoint: DeepSpeed's state by OpenRLHF's own code, and what that leaves out."""

import os
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed as dist

from openrlhf_orz.runtime.checkpoints import partial_path
from openrlhf_orz.runtime.memory import MemoryByPhase
from openrlhf_orz.runtime.processes import Family
from openrlhf_orz.trainer import random_state


@contextmanager
def checkpoint_path(args, path: str | Path):
    """Within it OpenRLHF writes to and reads from ``path``."""
    before, args.ckpt.path = args.ckpt.path, str(path)
    try:
        yield
    finally:
        args.ckpt.path = before


class RankState:
    """Mixed into a model actor: checkpoints go into one directory for the whole run, and hold the random states."""

    role: str  # "_actor" or "_critic", OpenRLHF's names
    resumed_steps = 0  # DeepSpeed's optimizer steps in the checkpoint that was loaded

    @cached_property
    def memory(self) -> MemoryByPhase:
        return MemoryByPhase(self.role.lstrip("_"))

    def ds_engine(self):
        """DeepSpeed's engine."""
        raise NotImplementedError

    def init_model_from_pretrained(self, strategy, *args, **kwargs):
        Family(f"{strategy.args.orz.scratch}rank-{os.getpid()}").record()  # for whoever ends a run in which this hangs
        # full determinism would fill every new tensor, too, for code that reads what it has not written
        torch.utils.deterministic.fill_uninitialized_memory = False
        resume = strategy.args.orz.resume_from
        if resume is None:
            strategy.args.ckpt.load_enable = False  # there is nothing, or nothing good, to load
            super().init_model_from_pretrained(strategy, *args, **kwargs)
            return
        with checkpoint_path(strategy.args, resume):
            super().init_model_from_pretrained(strategy, *args, **kwargs)
        state = torch.load(self._state_file(resume), weights_only=True)
        if self.ds_engine().global_steps != state["global_steps"]:
            raise RuntimeError(f"{resume}: DeepSpeed has not loaded {self.role}; see its log")
        self.trainer.replay_buffer.rollouts = state["rollouts"]
        random_state.restore(state["random"])

    def save_checkpoint(self, tag, *args, **kwargs):
        folder = partial_path(self.strategy.args.ckpt.path, tag)
        with checkpoint_path(self.strategy.args, folder):
            super().save_checkpoint(tag, *args, **kwargs)
        state = {
            "global_steps": self.ds_engine().global_steps,
            "rollouts": self.trainer.replay_buffer.rollouts,
            "random": random_state.capture(),
        }
        os.makedirs(folder / self.role, exist_ok=True)  # not there with --ckpt.disable_ds
        torch.save(state, self._state_file(folder))
        dist.barrier()  # the checkpoint is whole when any rank's call returns

    def _state_file(self, folder) -> Path:
        return Path(folder) / self.role / f"rank{dist.get_rank()}.pt"

    def pid(self) -> int:
        """The process id, on its own node."""
        return os.getpid()
