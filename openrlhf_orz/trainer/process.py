"""What a rank's process uses: its process group, cores for the phase that runs, and memory."""

import os
import resource

import torch
import torch.distributed as dist


class RendezvousByFile:
    """Mixed into a model actor: on CPU with a Ray of our own the ranks meet in a file.

    Torch's default, a server for the ranks to meet at, listens on every interface. DeepSpeed takes the group as it is.
    """

    def _setup_distributed(self, strategy):
        args = strategy.args
        if args.orz.device == "cpu" and args.orz.own_ray:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{args.orz.scratch}{type(self).__name__}",
                rank=self._rank,
                world_size=self._world_size,
            )
        super()._setup_distributed(strategy)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def share_cores(args, models_at_work: int = 1) -> None:
    """On CPU, give this rank its share of the cores while ``models_at_work`` models compute at the same time.

    Ray gives each actor one thread, which would leave cores idle.
    """
    if args.orz.device == "cpu":
        torch.set_num_threads(max(1, cores() // (args.actor.num_gpus_per_node * models_at_work)))


def models_in_training(args) -> int:
    """How many models train at the same time: critic and policy side by side, unless they sleep or take turns."""
    in_turn = args.ds.enable_sleep or args.orz.cross_fit_values
    return 2 if args.critic.model_name_or_path and not in_turn else 1


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
