"""ds_worker.py's cases of a critic: packs by a thread each, against one after the other; heads of several outputs."""

import threading
import time
from types import SimpleNamespace

import torch
import torch.distributed as dist
from ds_setup import make_args, make_batch, make_critic, make_strategy, stage_flags

from openrlhf_orz.models.value_head import freeze_parts
from openrlhf_orz.runtime.memory import MemoryByPhase
from openrlhf_orz.trainer import critic as module
from openrlhf_orz.trainer.critic import OrzCriticModelActor, OrzCriticPPOTrainer


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


def heads(*cases):
    """A result for each STAGE:LOSS:FROZEN: a critic with such a head in three rollouts, two steps each."""
    module.has_weight = lambda pretrain, name: False
    return {case: heads_case(*case.split(":", 2)) for case in cases}


def heads_case(stage, loss, what):
    from deepspeed.utils import safe_get_full_fp32_param
    from openrlhf.trainer.ppo_utils.experience import Experience

    args = make_args(*stage_flags(stage), "--orz.value_loss", loss, "--orz.freeze_critic", what)
    strategy = make_strategy(args)
    names = []

    def before(critic):
        names.extend(freeze_parts(critic, what))
        object.__new__(OrzCriticModelActor).fill_outputs_head(critic, "none", args)

    critic, optim, scheduler = make_critic(strategy, 1e-2, before=before)
    trainer = OrzCriticPPOTrainer(strategy, critic, optim, scheduler, value_clip=None)

    def weights():
        found = {}
        for name, parameter in critic.module.named_parameters():
            full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            if full is not None:
                found[name] = full.clone()
            elif not hasattr(parameter, "ds_id"):
                found[name] = parameter.detach().float().clone()
        return found

    start, losses = weights(), []
    sequences, attention, action = make_batch()
    mine = list(range(dist.get_rank(), 8, dist.get_world_size()))
    returns = (sequences[:, 2:3] % 2) * action.float()
    for _ in range(3):
        one = {"sequences": sequences, "attention_mask": attention, "action_mask": action, "returns": returns}
        trainer.replay_buffer.append(
            Experience(
                **{name: x[mine].clone() for name, x in one.items()}, total_length=attention.sum(-1)[mine],
                response_length=action.sum(-1)[mine], info={"reward": torch.zeros(len(mine))},
            )
        )  # fmt: skip
        status = trainer.ppo_train()
        losses.append(status["critic_loss"])
        trainer.replay_buffer.clear()
    moved = {name: (value - start[name]).abs().max().item() for name, value in weights().items()}
    with torch.no_grad():
        values = critic(sequences, action_mask=action, attention_mask=attention)[action.bool()]
    return {
        "losses": losses, "frozen": max([0.0, *(moved.get(name, 0.0) for name in names)]),
        "trained": min(gap for name, gap in moved.items() if name not in names and "norm" not in name),
        "values": [values.min().item(), values.max().item()], "mean": status["values"], "names": len(names),
    }  # fmt: skip
