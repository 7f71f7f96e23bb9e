"""The layout of a run whose models share all GPUs: of those that fit, the one that the plan finds quickest.

``settings.derive`` lays a large model out. A small one needs less: no ZeRO-3, no sleep, no recomputation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from openrlhf_orz.plan.costs import ITEMSIZE, forward_activations
from openrlhf_orz.plan.hardware import GIB
from openrlhf_orz.plan.layout import default_lengths
from openrlhf_orz.plan.planner import Plan, PlanError, plan_run
from openrlhf_orz.settings.derive import responses_at_once
from openrlhf_orz.settings.finished import changed

RESERVE = 0.08  # of a GPU, for what no plan counts, such as fragmentation
SHARES = 0.15, 0.8  # of a GPU for vLLM: below, its own needs leave no cache; trainers keep some of what they free
STEP_SHARE = 0.02  # of a GPU for the tokens of an engine's step: weights are read once for all of them
SAME = 0.02  # layouts whose steps differ by less are as quick as each other: the simplest is taken


def choices(args: SimpleNamespace, explicit: set[str]) -> dict[str, list[Any]]:
    """What may be chosen, by flag, the simplest first; what the user gave is left out."""
    longest = args.data.max_len
    packs = [x for x in (32768, 16384, 8192) if x >= longest] or [longest]
    stages = [1] * (args.ds.param_dtype == "bf16") + [3] * (args.ds.tensor_parallel_size == 1)
    found: dict[str, list[Any]] = {
        "ds.zero_stage": [2] if _muon(args) else stages,
        "ds.enable_sleep": [False, True],
        "vllm.enable_sleep": [False] if args.orz.check_sync else [False, True],
        "actor.gradient_checkpointing_enable": [False, True],
        "train.max_tokens_per_gpu": packs,
    }
    if args.orz.fixed_micro_batches:
        del found["train.max_tokens_per_gpu"]
    return {name: values for name, values in found.items() if name not in explicit}


def _muon(args: SimpleNamespace) -> bool:
    """Muon is in DeepSpeed's ZeRO-2, without float32 sums."""
    return "muon" in (args.actor.optim, args.critic.optim)


def possible(args: SimpleNamespace) -> bool:
    """Whether DeepSpeed can do it. Only ZeRO-3 sleeps with float32 sums; ZeRO-1 in bfloat16 needs them (Muon not)."""
    ds = args.ds
    if ds.tensor_parallel_size > 1 and ds.zero_stage == 3:
        return False
    if _muon(args):
        return ds.zero_stage in (1, 2) and not ds.adam_offload and not ds.enable_sleep
    if ds.enable_sleep and (ds.zero_stage != 3 or ds.adam_offload):
        return False
    return ds.zero_stage != 1 or ds.param_dtype != "bf16" or ds.grad_accum_dtype == "fp32"


def _with_share(found: Plan, explicit: set[str]) -> Plan | None:
    """The plan with the largest share of the GPU for vLLM that fits, in steps of 0.05; None if none does."""
    limit = (1 - RESERVE) * found.memory.limit

    def fits(plan: Plan) -> bool:
        return plan.fits and plan.memory.peak.total <= limit

    if "vllm.gpu_memory_utilization" in explicit:
        return found if fits(found) else None
    # all else of a phase in which vLLM is awake stays as it is
    awake = [phase for phase in found.memory.phases if phase.parts.get("vLLM KV cache", 0) > 0]
    over = max((phase.total for phase in awake), default=limit) - limit
    share = found.args.vllm.gpu_memory_utilization - max(0.0, over) / found.memory.limit
    share = min(SHARES[1], int(share * 20 + 1e-9) / 20)
    if share < SHARES[0]:
        return None
    best = _planned(found, {"vllm.gpu_memory_utilization": share})
    return best if best is not None and fits(best) else None


def _planned(before: Plan, flags: dict[str, Any]) -> Plan | None:
    try:
        return plan_run(
            changed(before.args, flags), before.hardware, before.policy, before.critic, before.lengths, before.rates
        )
    except PlanError:
        return None


def choose_layout(before: Plan, explicit: set[str]) -> Plan:
    """The quickest plan that fits, among the layouts of a run whose models share all GPUs, and its engines' limits.

    The layout of ``before`` stays where models have GPUs of their own, or nothing fits; ``explicit`` are the flags
    that the user gave, which stay.
    """
    if before.hardware.is_cpu:
        return before
    found = _quickest(before, explicit)
    for _ in range(2):  # the limits say how much of the memory is left for the cache, and it is what it holds
        found = _planned(found, engine_limits(found, explicit)) or found
    return found


def engine_limits(plan: Plan, explicit: set[str]) -> dict[str, int]:
    """Flags: the responses that an engine generates at once, and the tokens that it computes in a step.

    Responses: its share of the rollout, as far as the KV cache holds them at their mean length; with more vLLM would
    throw some out and compute them again. It never knows the mean: it is a quarter of the longest. Tokens: 16,384, or
    what ``STEP_SHARE`` of the GPU holds.
    """
    args, shape = plan.args, plan.policy
    b, tp = ITEMSIZE[args.ds.param_dtype], args.vllm.tensor_parallel_size
    held = int(plan.memory.kv_cache_tokens // default_lengths(args).sample)
    seqs = max(1, min(responses_at_once(plan.batches.samples, args.vllm.num_engines), held))
    if "orz.max_num_batched_tokens" in explicit:
        seqs = min(seqs, args.orz.max_num_batched_tokens)
    if "orz.max_num_seqs" in explicit:
        seqs = args.orz.max_num_seqs
    room = STEP_SHARE * plan.hardware.memory_gib * GIB
    tokens = next((x for x in (16384, 8192, 4096) if forward_activations(shape, b, x, tp) <= room), 2048)
    found = {"orz.max_num_seqs": seqs, "orz.max_num_batched_tokens": max(tokens, seqs)}
    return {name: value for name, value in found.items() if name not in explicit}


def _quickest(before: Plan, explicit: set[str]) -> Plan:
    args = before.args
    if not args.train.colocate_all or args.train.async_enable:
        return before
    engines = {"vllm.tensor_parallel_size", "vllm.num_engines"} & explicit
    sizes = [x for x in (1, 2, 4, 8) if before.hardware.per_node % x == 0 and before.policy.serves(x)]
    sizes = [args.vllm.tensor_parallel_size] if engines else sizes
    sums = ["fp32", None] if not _muon(args) else [None]
    sums = [args.ds.grad_accum_dtype] if "ds.grad_accum_dtype" in explicit else sums
    # float32 sums wherever they fit, and engines on no more GPUs than the model needs; speed comes after these
    for dtype, size in itertools.product(sums, sizes):
        summed = replace(before, args=changed(args, {"ds.grad_accum_dtype": dtype}))
        found = list(_that_fit(summed, explicit, size))
        if found:
            quickest = min(plan.seconds.step for plan in found)
            return next(plan for plan in found if plan.seconds.step <= (1 + SAME) * quickest)
    return before


def _that_fit(before: Plan, explicit: set[str], tensor_parallel: int) -> Iterator[Plan]:
    """Plans with engines of this size that fit, the simplest first."""
    args = before.args
    options = choices(args, explicit)
    ranks = args.actor.num_nodes * args.actor.num_gpus_per_node
    for values in itertools.product(*options.values()):
        flags = dict(zip(options, values))
        if tensor_parallel != args.vllm.tensor_parallel_size:
            flags["vllm.tensor_parallel_size"] = tensor_parallel
            flags["vllm.num_engines"] = ranks // tensor_parallel
        if "train.max_tokens_per_gpu" in flags and "rollout.max_tokens_per_gpu" not in explicit:
            flags["rollout.max_tokens_per_gpu"] = 2 * flags["train.max_tokens_per_gpu"]
        if "vllm.gpu_memory_utilization" not in explicit:
            flags["vllm.gpu_memory_utilization"] = 0.95
        plan = _planned(before, flags) if possible(changed(args, flags)) else None
        plan = None if plan is None else _with_share(plan, explicit)
        if plan is not None:
            yield plan


def describe_layout(plan: Plan) -> str:
    """The layout in words, for the console and the plan."""
    args, ds, vllm = plan.args, plan.args.ds, plan.args.vllm
    gpus = plan.seconds.gpus
    if not args.train.colocate_all:
        return f"models on GPUs of their own, {gpus} in all, as the flags say"
    asleep = ["nothing sleeps", "vLLM sleeps", "trainers sleep", "vLLM and trainers sleep"]
    words = [
        f"ZeRO-{ds.zero_stage}",
        f"gradients summed in {ds.grad_accum_dtype or ds.param_dtype}",
        asleep[vllm.enable_sleep + 2 * ds.enable_sleep],
        "recomputation" if args.actor.gradient_checkpointing_enable else "no recomputation",
        f"packs of {args.train.max_tokens_per_gpu} tokens",
        f"{vllm.num_engines} engines of {vllm.tensor_parallel_size} with {vllm.gpu_memory_utilization:g} of memory,"
        f" each of {args.orz.max_num_seqs} responses at once and {args.orz.max_num_batched_tokens} tokens a step",
    ]
    return f"all models share {gpus}: {', '.join(words)}"
