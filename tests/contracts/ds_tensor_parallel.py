"""Tensor-parallel training of ds_worker.py: our policy and critic on two ranks, against the same models whole."""

import torch
import torch.distributed as dist
from ds_setup import make_args, make_batch, make_critic, make_strategy, model_config


def tensor_parallel(*heads):
    """By head (tied, untied): the largest difference of log-probs, how far a step moves, the gathered shapes."""
    args = make_args("--ds.tensor_parallel_size", "2", "--ds.param_dtype", "bf16", "--ds.zero_stage", "1",
                     "--ds.grad_accum_dtype", "fp32")  # fmt: skip
    strategy = make_strategy(args)
    return {head: one_head(strategy, head == "tied") for head in heads} | {"critic": critic(strategy)}


def model_of(tied):
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(model_config("orz_packed", tie_word_embeddings=tied, num_key_value_heads=2)).bfloat16()


def one_head(strategy, tied):
    from deepspeed.module_inject.layers import GatherReplacedLayerParams

    from openrlhf_orz.trainer.actor import OrzActor

    whole, actor = OrzActor(model_of(tied)), OrzActor(model_of(tied))
    whole.packing_samples = actor.packing_samples = True
    adam = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.0)
    cfg = dict(optim="adam", muon={}, adam=adam, lr_scheduler="constant", lr_warmup_ratio=0.0, min_lr_ratio=0.1,
               max_norm=1e6, scheduler_steps=10)  # fmt: skip
    actor, optim, scheduler = strategy.prepare((actor, cfg))
    sequences, attention, action = make_batch()
    outputs = [each(sequences, action, attention_mask=attention) for each in (whole, actor)]
    loss = [-(x * action).sum() / action.sum() for x in outputs]
    loss[0].backward()
    norm = torch.nn.utils.get_total_norm([p.grad.float() for p in whole.parameters()]).item()
    strategy.backward(loss[1], actor, optim)
    strategy.optimizer_step(optim, actor, scheduler)
    moved, shapes = 0.0, True
    for parameter, was in zip(actor.model.module.parameters(), whole.model.parameters(), strict=True):
        with GatherReplacedLayerParams([parameter], actor.model, enabled=True):
            shapes &= parameter.shape == was.shape
            moved = max(moved, (parameter - was).abs().max().item())
    everywhere = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, outputs[1].detach())
    return {
        "gap": (outputs[0] - outputs[1]).abs()[action.bool()].max().item(),
        "same_on_all_ranks": bool(torch.equal(*everywhere)), "moved": moved, "shapes": bool(shapes),
        "grad_norm": strategy.get_grad_norm(actor), "whole_grad_norm": norm,
    }  # fmt: skip


def critic(strategy):
    model, optim, scheduler = make_critic(strategy, 1e-2, num_key_value_heads=2)
    sequences, attention, action = make_batch()
    values = model(sequences, action_mask=action, attention_mask=attention)
    loss = ((values - 1).square() * action).sum() / action.sum()
    strategy.backward(loss, model, optim)
    strategy.optimizer_step(optim, model, scheduler)
    again = model(sequences, action_mask=action, attention_mask=attention)
    return {"before": loss.item(), "after": (((again - 1).square() * action).sum() / action.sum()).item()}
