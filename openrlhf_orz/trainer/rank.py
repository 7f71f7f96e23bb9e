"""What a model actor does besides its model: it meets the other ranks, is on record, and keeps its random states."""

import os
import random
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from openrlhf.utils.distributed_util import torch_dist_barrier_and_cuda_sync
from safetensors import SafetensorError

from openrlhf_orz.runtime.checkpoints import hash_written, partial_path, put_in_place, sync_files
from openrlhf_orz.runtime.console import tell_stage
from openrlhf_orz.runtime.memory import MemoryByPhase
from openrlhf_orz.runtime.nodes import require_shared
from openrlhf_orz.runtime.private import require_private
from openrlhf_orz.runtime.processes import ProcessRecord
from openrlhf_orz.trainer.live_objects import hold_settings, link_states


def meet_by_file(actor, args) -> None:
    """Form the process group of ``actor``'s ranks by a file, with a Ray of our own: all ranks are on this machine.

    Torch's default, a server for the ranks to meet at, listens on every interface. DeepSpeed takes the group as it is.
    """
    if args.run.own_ray:
        dist.init_process_group(
            "gloo" if args.orz.device == "cpu" else "nccl",
            init_method=f"file://{args.run.scratch}{type(actor).__name__}",
            rank=actor._rank,
            world_size=actor._world_size,
            timeout=timedelta(minutes=60),  # OpenRLHF's
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
        require_private(args.run.scratch)
        require_shared(args.run.shared)
        ProcessRecord(f"{args.run.scratch}rank-{os.getpid()}").write()
        # full determinism would fill every new tensor, too, for code that reads what it has not written
        torch.utils.deterministic.fill_uninitialized_memory = False

    def tell(self, stage: str) -> None:
        """Say a stage of the run's start on the console, once for all ranks."""
        if dist.get_rank() == 0:
            tell_stage(self.args.orz.run_dir, stage)

    def checkpoint_path(self, tag: str) -> Path:
        """Where the checkpoint ``tag`` is written before it is complete."""
        return partial_path(Path(self.args.run.checkpoints), tag)

    def resume(self, engine, buffer) -> None:
        """After DeepSpeed's ``engine`` has loaded: this run's rates, the replay buffer's counter, the random states.

        Where there were fewer ranks, those of the rank with this number modulo theirs.

        Raises RuntimeError if DeepSpeed is not at the step of the checkpoint.
        """
        if self.args.run.resume_from is None:
            return
        if self.args.run.universal is not None:
            link_states(engine)
        folder = Path(self.args.run.resume_from) / self.role
        saved = len(list(folder.glob("rank*.pt")))
        state = torch.load(folder / f"rank{dist.get_rank() % max(1, saved)}.pt", weights_only=True)
        if engine.global_steps != state["global_steps"]:
            raise RuntimeError(f"{self.args.run.resume_from}: DeepSpeed has not loaded {self.role}; see its log")
        hold_settings(engine.optimizer, engine.lr_scheduler, engine.optimizer_params())
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
        if dist.get_world_size() > 1:  # a lone rank is on the machine that commits, which hashes in the background
            hash_written(self.checkpoint_path(tag), self.role, dist.get_rank(), dist.get_world_size())
            dist.barrier()

    def save_model(self, write: Callable[[str], None], target: str) -> str | None:
        """Have ``write`` save the model for transformers, whole or not at all; what is there stays until then.

        Args:
            write: OpenRLHF's save of all ranks into a folder; the first rank writes, the others wait at its end.
            target: the folder.

        Returns what the first rank could not write, there; None where all is on disk.
        """
        partial, first = partial_path(Path(target).parent, Path(target).name), dist.get_rank() == 0
        try:
            if first:
                shutil.rmtree(partial, ignore_errors=True)
            write(str(partial))
        except (OSError, SafetensorError) as error:
            torch_dist_barrier_and_cuda_sync()  # where the others wait
            return str(error)
        if first:
            try:
                sync_files(partial)
                put_in_place(partial)
            except OSError as error:
                return str(error)
        return None

    def _file(self, checkpoint) -> Path:
        return Path(checkpoint) / self.role / f"rank{dist.get_rank()}.pt"
