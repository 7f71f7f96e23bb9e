"""ds_worker.py's case of values: a critic's packs by a thread each, against one after the other."""

import threading
import time
from types import SimpleNamespace

import torch
import torch.distributed as dist
from ds_setup import make_args, make_batch, make_critic, make_strategy, stage_flags

from openrlhf_orz.runtime.memory import MemoryByPhase
from openrlhf_orz.trainer.critic import OrzCriticModelActor


def values(*stages):
    """By stage: the largest difference, the threads that were at work, and whether the critic is in training after."""
    return {stage: values_case(stage) for stage in stages}


def values_case(stage):
    args = make_args(*stage_flags(stage))
    strategy = make_strategy(args)
    actor = object.__new__(OrzCriticModelActor)  # its process is this one, not Ray's
    actor.strategy, actor.rank = strategy, SimpleNamespace(memory=MemoryByPhase("critic"))
    actor.critic = make_critic(strategy, 1e-2)[0]
    batches = [make_batch(size, seed=size) for size in (2, 8, 4, 6, 2, 8)]
    data = {name: [b[i] for b in batches] for i, name in enumerate(("sequences", "attention_mask", "action_mask"))}
    with torch.no_grad():
        alone = [actor.critic(s, action_mask=action, attention_mask=mask) for s, mask, action in batches]
    threads, modes = set(), set()

    def note(module, *_):
        threads.add(threading.get_ident())
        modes.add(module.training)
        time.sleep(0.1)  # so that no thread takes all packs before another has begun

    actor.critic.module.register_forward_hook(note)
    found = actor.execute_batch("forward", data, 0, len(batches))
    gap = max((a - b).abs().max().item() for a, b in zip(found, alone))
    return {
        "gap": gap, "threads": len(threads), "modes": sorted(modes), "training": actor.critic.module.training,
        "cores": torch.get_num_threads() * dist.get_world_size(),
    }  # fmt: skip
