"""What a model actor does besides its model: it meets the other ranks, is on record, and keeps its random states."""

import os
import random
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from openrlhf_orz.runtime.checkpoints import partial_path
from openrlhf_orz.runtime.memory import MemoryByPhase
from openrlhf_orz.runtime.processes import ProcessRecord


def meet_by_file(actor, args) -> None:
    """Form the process group of ``actor``'s ranks by a file, on CPU with a Ray of our own.

    Torch's default, a server for the ranks to meet at, listens on every interface. DeepSpeed takes the group as it is.
    """
    if args.orz.device == "cpu" and args.run.own_ray:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{args.run.scratch}{type(actor).__name__}",
            rank=actor._rank,
            world_size=actor._world_size,
        )


def capture_random_states() -> dict:
    """States of Python's, NumPy's, torch's and the device's generators, which load without executing code."""
    kind, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if get_accelerator().device_name() != "cpu":
        state["device"] = get_accelerator().get_rng_state()
    return state


def restore_random_states(state: dict) -> None:
    """Set what ``capture_random_states`` has returned."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "device" in state:
        get_accelerator().set_rng_state(state["device"])


class Rank:
    """A training rank: its process on record, its memory by phase, and its part of a checkpoint beside DeepSpeed's.

    Args:
        role: "_actor" or "_critic", OpenRLHF's names of a checkpoint's folders.
        args: the settings, with ``args.run``.
    """

    def __init__(self, role: str, args):
        self.role, self.args = role, args
        self.memory = MemoryByPhase(role.lstrip("_"))
        # whoever ends a run in which this process hangs can then kill it
        ProcessRecord(f"{args.run.scratch}rank-{os.getpid()}").write()
        # full determinism would fill every new tensor, too, for code that reads what it has not written
        torch.utils.deterministic.fill_uninitialized_memory = False

    def checkpoint_path(self, tag: str) -> Path:
        """Where the checkpoint ``tag`` is written before it is complete."""
        return partial_path(Path(self.args.run.checkpoints), tag)

    def resume(self, engine, buffer) -> None:
        """After DeepSpeed's ``engine`` has loaded: the replay buffer's counter and the random states.

        Raises RuntimeError if DeepSpeed is not at the step of the checkpoint.
        """
        if self.args.run.resume_from is None:
            return
        state = torch.load(self._file(self.args.run.resume_from), weights_only=True)
        if engine.global_steps != state["global_steps"]:
            raise RuntimeError(f"{self.args.run.resume_from}: DeepSpeed has not loaded {self.role}; see its log")
        buffer.rollouts = state["rollouts"]
        restore_random_states(state["random"])

    def save(self, tag: str, engine, buffer) -> None:
        """Write this rank's file into the checkpoint; when any rank returns, all ranks have written theirs."""
        state = {
            "global_steps": engine.global_steps,
            "rollouts": buffer.rollouts,
            "random": capture_random_states(),
        }
        file = self._file(self.checkpoint_path(tag))
        file.parent.mkdir(parents=True, exist_ok=True)  # with --ckpt.disable_ds DeepSpeed has made none
        torch.save(state, file)
        dist.barrier()

    def _file(self, checkpoint) -> Path:
        return Path(checkpoint) / self.role / f"rank{dist.get_rank()}.pt"
