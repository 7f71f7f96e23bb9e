"""ds_worker.py's case of a lone bfloat16 rank: two actors, of which one is spared what it need not do."""

import torch
from ds_setup import make_actor, make_args, make_batch, make_strategy, stage_flags

from openrlhf_orz.trainer.live_objects import skip_reduction


def lone_rank():
    """The largest difference of any weight after each of four steps of two micro-batches; no gradient of one weight
    in the second, nan in the third.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    args = make_args(*stage_flags("sums"))
    strategy = make_strategy(args)
    sequences, attention, action = make_batch()
    actors = [make_actor(strategy, args) for _ in range(2)]
    actors[0][0].model.enable_backward_allreduce = False  # it rounds to bfloat16
    skip_reduction(actors[1][0].model)
    gaps, norms, moved, before = [], [], [], None
    for step in range(4):
        now = []
        for actor, optim, scheduler in actors:
            frozen = actor.model.module.model.layers[1].mlp.up_proj.weight
            frozen.requires_grad_(step != 1)
            for half in (slice(0, 4), slice(4, 8)):
                log_probs = actor(sequences[half], action[half], attention_mask=attention[half])
                loss = -(log_probs * action[half]).sum() / action.sum()
                if step == 2:
                    loss = loss * float("nan")
                strategy.backward(loss, actor, optim, is_boundary=half.stop == 8)
            strategy.optimizer_step(optim, actor, scheduler)
            norms.append(strategy.get_grad_norm(actor))
            weights = list(actor.model.module.parameters())
            now.append([torch.cat([safe_get_full_fp32_param(w).flatten(), w.float().flatten()]) for w in weights])
        gaps.append(max((a - b).abs().max().item() for a, b in zip(*now)))
        moved.append(None if before is None else max((a - b).abs().max().item() for a, b in zip(now[1], before)))
        before = [w.clone() for w in now[1]]
    return {"gaps": gaps, "norms": [str(norm) for norm in norms], "moved": moved[1:]}
