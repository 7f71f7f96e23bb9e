"""A policy and a critic saved by some ranks in one ZeRO stage, and resumed by others in another."""

from pathlib import Path

import torch
import torch.distributed as dist
from ds_setup import make_actor, make_args, make_batch, make_critic, make_strategy, stage_flags
from peft import LoraConfig, TaskType, get_peft_model

from openrlhf_orz.models.value_head import freeze_parts
from openrlhf_orz.runtime.universal import convert
from openrlhf_orz.trainer.live_objects import link_states, skip_reduction
from openrlhf_orz.trainer.saving import _whole_state

LAST = 3
LORA = dict(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear")


def universal(folder, step, *cases):
    """Optimizer step ``step`` (from 1) of each NAME:MODEL:STAGE, after that of the step before is converted and
    loaded; all steps, without loading, where NAME starts with "stay". The last is saved.
    """
    return {case.split(":")[0]: universal_case(Path(folder), int(step), *case.split(":")) for case in cases}


def universal_case(folder, step, name, model, stage):
    from deepspeed.utils import safe_get_full_fp32_param

    before, stays = folder / name / f"step{step - 1}", name.startswith("stay")
    strategy = make_strategy(args := make_args(*stage_flags(stage), changes={"ds.use_universal_ckpt": step > 1}))
    if model == "policy":
        trained, optim, scheduler = make_actor(strategy, args, decay=0.1, schedule="linear")
        engine = trained.model
    else:
        trained, optim, scheduler = make_critic(strategy, 1e-2, 1e-3, before=lambda c: freeze_parts(c, "layers:1"))
        engine = trained
    if step > 1:
        if dist.get_rank() == 0:
            convert(before / "saved" / "tag", before / "universal" / "tag", engine.zero_optimization_stage())
        dist.barrier()
        path, _ = strategy.load_ckpt(engine, str(before / "universal"))
        assert path is not None and engine.global_steps == step - 1
        link_states(engine)
    skip_reduction(engine)
    results, world, rows = [], dist.get_world_size(), list(range(dist.get_rank(), 8, dist.get_world_size()))
    for number in range(step, LAST + 1 if stays else step + 1):
        sequences, attention, action = make_batch(seed=number)
        output = trained(sequences[rows], action_mask=action[rows], attention_mask=attention[rows])
        by_token = -output if model == "policy" else (output - 1.0).square()
        loss = (by_token * action[rows]).sum() / action.sum()
        strategy.backward(loss * world, trained, optim, is_boundary=True)
        strategy.optimizer_step(optim, trained, scheduler)
        dist.all_reduce(loss.detach_())
        gap = 0.0  # between what a parameter is and what it shows
        for parameter in engine.module.parameters() if engine.zero_optimization_stage() < 3 else ():
            if parameter.requires_grad:
                gap = max(gap, (safe_get_full_fp32_param(parameter) - parameter).abs().max().item())
        results.append({"loss": loss.item(), "gap": gap, "lr": scheduler.get_last_lr()})
    here = folder / name / f"step{number}"
    engine.save_checkpoint(str(here / "saved"), tag="tag")
    if dist.get_rank() == 0 and number == LAST:  # whole weights and moments, to compare
        convert(here / "saved" / "tag", here / "universal" / "tag", 2)
    return results


def exported(folder, *cases):
    """For each KIND:STAGE (whole or adapters) a policy after two steps: a checkpoint, and its weights as the run
    itself would save them, in whole.pt.
    """
    for case in cases:
        exported_case(Path(folder) / case, *case.split(":"))


def exported_case(folder, kind, stage):
    strategy = make_strategy(args := make_args(*stage_flags(stage)))
    lora = LoraConfig(task_type=TaskType.CAUSAL_LM, bias="none", **LORA)
    changes = {"before": lambda model: get_peft_model(model, lora)} if kind == "adapters" else {}
    actor, optim, scheduler = make_actor(strategy, args, **changes)
    rows = list(range(dist.get_rank(), 8, dist.get_world_size()))
    sequences, attention, action = make_batch()
    for _ in range(2):  # of an adapter's two matrices one begins at zero
        log_probs = actor(sequences[rows], action[rows], attention_mask=attention[rows])
        strategy.backward(-(log_probs * action[rows]).sum() / action.sum(), actor, optim, is_boundary=True)
        strategy.optimizer_step(optim, actor, scheduler)
    actor.model.save_checkpoint(str(folder), tag="tag")
    state = _whole_state(actor.model, args)
    if dist.get_rank() == 0:
        torch.save(state, folder / "whole.pt")
