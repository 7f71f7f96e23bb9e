"""A plan as a text for people and as a dictionary for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from openrlhf_orz.plan.advice import advise
from openrlhf_orz.plan.choice import describe_layout
from openrlhf_orz.plan.hardware import GIB
from openrlhf_orz.plan.layout import Batches
from openrlhf_orz.plan.memory import (
    ASLEEP,
    CUDA_PROCESS,
    ENGINE_HOST,
    GPU_PROCESS_HOST,
    TRAINER_HOST,
    VLLM_GRAPHS,
    VLLMS_TOKENS,
    engine_step_bytes,
)
from openrlhf_orz.plan.planner import Plan
from openrlhf_orz.plan.seconds import CPU_RATE_SOURCES, RATE_SOURCES, at_once


def assumptions(plan: Plan) -> list[str]:
    """Each number that is not computed from flags and model, with its source."""
    hardware, rates, lengths = plan.hardware, plan.rates, plan.lengths
    sources = CPU_RATE_SOURCES if hardware.is_cpu else RATE_SOURCES
    lines = [
        f"hardware: {hardware.flops / 1e12:g} TFLOP/s, {hardware.bandwidth / 1e12:g} TB/s,"
        f" {hardware.memory_gib:.1f} GiB each ({hardware.source})",
        f"lengths: prompt {lengths.prompt:g}, response {lengths.response:g}, longest {lengths.longest_response:g}"
        f" tokens ({lengths.source})",
    ]
    if not plan.args.ds.packing_samples:
        cut = plan.batches
        padding = [cut.forward_padding, cut.policy_padding, *([cut.critic_padding] if plan.critic else [])]
        lines.append(
            f"padding: {', '.join(f'{factor:.2f}' for factor in padding)} times the tokens in forwards and training"
            " (responses end at a constant rate until the longest)"
        )
    if plan.policy.counted:
        lines.append(f"activations and cache of a {plan.policy.kind} as of a llama of its sizes (an assumption)")
    for name, value in (asdict(rates) | {"concurrent": at_once(plan.args, rates)}).items():
        lines.append(f"{name} {value:g} ({sources[name]})")
    if hardware.is_cpu:
        lines.append(f"a trainer's process {TRAINER_HOST / GIB:g} GiB (benchmarks/plan.py),"
                     f" an engine's {ENGINE_HOST / GIB:g} GiB (an assumption)")  # fmt: skip
    else:
        lines.append(
            f"GPU memory of a process {CUDA_PROCESS / GIB:g} GiB, of vLLM's graphs"
            f" {VLLM_GRAPHS / GIB:g} GiB, of its largest step {_gib(engine_step_bytes(plan.args, plan.policy))} GiB"
            f" ({plan.args.orz.max_num_batched_tokens or VLLMS_TOKENS} tokens), asleep"
            f" {ASLEEP / GIB:g} GiB, host memory of a process"
            f" {GPU_PROCESS_HOST / GIB:g} GiB: assumptions"
        )
    return lines


def plan_dict(plan: Plan, advice: list[tuple[str, Plan]], steps: int | None) -> dict:
    """The object that --json prints; units are bytes, FLOPs and seconds."""
    memory, args = plan.memory, plan.args
    return {
        "model": args.actor.model_name_or_path,
        "policy_parameters": plan.policy.policy_parameters(),
        "critic_parameters": plan.critic and plan.critic.critic_parameters(),
        "hardware": asdict(plan.hardware),
        "gpus": plan.seconds.gpus,
        "batches": asdict(plan.batches),
        "lengths": asdict(plan.lengths),
        "memory": {
            "fits": plan.fits,
            "limit_bytes": memory.limit,
            "peak_bytes": memory.peak.total,
            "peak_phase": memory.peak.name,
            "peak_place": memory.peak.place,
            "phases": [
                {"place": p.place, "phase": p.name, "bytes": p.total, "parts": _nonzero(p.parts)}
                for p in memory.phases
            ],
            "host_bytes": memory.host_total,
            "host_parts": memory.host,
            "host_limit_bytes": memory.host_limit,
            "kv_cache_tokens": memory.kv_cache_tokens,
            "problems": memory.problems,
        },
        "changes_that_fit": [
            {"flags": w, "peak_bytes": p.memory.peak.total, "gpus": p.seconds.gpus} for w, p in advice
        ],
        "flops": {"useful": plan.work.useful, "computed": plan.work.computed, "useful_per_step": plan.work.total},
        "seconds": {"phases": plan.seconds.phases, "bound_by": plan.seconds.bound_by, "step": plan.seconds.step},
        "gpu_hours_per_step": plan.seconds.gpu_hours,
        "steps": steps,
        "gpu_hours": None if steps is None else steps * plan.seconds.gpu_hours,
        "assumptions": assumptions(plan),
        "notes": plan.notes,
    }


def _nonzero(parts: dict) -> dict:
    return {name: value for name, value in parts.items() if value}


def _gib(value: float) -> str:
    return f"{value / GIB:.2f}" if value < 10 * GIB else f"{value / GIB:.1f}"


def _short(parts: dict, most: int = 4) -> str:
    """The ``most`` largest parts in GiB, and the rest as one."""
    ordered = sorted(_nonzero(parts).items(), key=lambda item: -item[1])
    words = [f"{name} {_gib(value)}" for name, value in ordered[:most]]
    rest = sum(value for _, value in ordered[most:])
    return ", ".join(words + ([f"rest {_gib(rest)}"] if rest else []))


def plan_text(plan: Plan, steps: int | None, seen: Sequence[str] = ()) -> str:
    """The text that the command prints. ``seen``: what a dry run has found in data and models."""
    lines = [*_head(plan), "", *_memory_lines(plan), "", *_verdict(plan), "", *_second_lines(plan, steps)]
    if seen:
        lines += ["", "looked at", *(f"  {line}" for line in seen)]
    lines += ["", "assumed", *(f"  {line}" for line in assumptions(plan))]
    if plan.notes:
        lines += ["not modelled", *(f"  {line}" for line in plan.notes)]
    return "\n".join(lines)


def _head(plan: Plan) -> list[str]:
    """The models, the devices and the batches."""
    cut, hardware = plan.batches, plan.hardware
    critic = f", critic {plan.critic.critic_parameters():,}" if plan.critic else ", no critic"
    device = "ranks on processors" if hardware.is_cpu else hardware.name
    lines = [
        f"{plan.args.actor.model_name_or_path}: policy {plan.policy.policy_parameters():,} parameters{critic};"
        f" {plan.seconds.gpus} {device} ({hardware.nodes} x {hardware.per_node})",
        *([] if hardware.is_cpu else ["", f"layout    {describe_layout(plan)}"]),
        "",
        f"batches   {cut.samples} samples a step, {_range(cut)} on each of {cut.data_parallel_ranks} ranks;"
        f" about {cut.tokens:,} tokens",
        f"          policy: {cut.policy_updates} steps of {cut.policy_mini_batch} samples a rank at most, about"
        f" {cut.policy_micro_batches} packs in all; the longest has {cut.longest_pack} tokens",
    ]
    if plan.critic:
        lines.append(
            f"          critic: {cut.critic_updates} steps of {cut.critic_mini_batch} samples a rank at most, about"
            f" {cut.critic_micro_batches} packs in all"
        )
        frozen = plan.critic.frozen_parameters(plan.args.orz.freeze_critic)
        if frozen:
            lines.append(f"          critic: {frozen:,} parameters frozen (--orz.freeze_critic)")
    return lines


def _memory_lines(plan: Plan) -> list[str]:
    """Each phase with its largest parts, the host, and the engines' cache."""
    memory = plan.memory
    several = len({phase.place for phase in memory.phases}) > 1
    unit = "GiB of each rank" if plan.hardware.is_cpu else "GiB of each GPU"
    lines = [f"memory, {unit} ({_gib(memory.limit)} there are)"]
    for phase in memory.phases:
        name = f"{phase.place}: {phase.name}" if several else phase.name
        lines.append(f"  {name:<34} {_gib(phase.total):>7}  {_short(phase.parts)}")
    if memory.host:
        there = "" if memory.host_limit is None else f" ({_gib(memory.host_limit)} there are)"
        lines.append(f"  {'host, GiB of each node' + there:<34} {_gib(memory.host_total):>7}  {_short(memory.host)}")
    return [*lines, f"  vLLM's cache holds {memory.kv_cache_tokens:,.0f} tokens an engine"]


def _second_lines(plan: Plan, steps: int | None) -> list[str]:
    """FLOPs and seconds of a step by phase, and of the run; of GPUs the hours, too."""
    gpus = not plan.hardware.is_cpu
    hours = f", {plan.seconds.gpu_hours:.3g} GPU-hours" if gpus else ""
    lines = [f"step      {plan.work.total:.3g} useful FLOPs; {plan.seconds.step:,.0f} s{hours}"]
    for name, value in plan.seconds.phases.items():
        count = plan.work.useful.get(name)
        words = f"{count:.3g} FLOPs; " if count else ""
        lines.append(f"  {name:<20} {value:>9,.1f} s  {words}{plan.seconds.bound_by[name]}")
    if steps is not None:
        hours = f", {steps * plan.seconds.gpu_hours:,.0f} GPU-hours" if gpus else ""
        lines.append(f"run       {steps} steps: {steps * plan.seconds.step / 3600:,.1f} hours{hours}")
    return lines


def _range(cut: Batches) -> str:
    few, many = cut.smallest_per_rank, cut.samples_per_rank
    return str(many) if few == many else f"{few} or {many}"


def _verdict(plan: Plan) -> list[str]:
    """Whether the run fits, and if not, why, and the changes with which it would."""
    memory, peak = plan.memory, plan.memory.peak
    largest = max(peak.parts, key=lambda name: peak.parts[name])
    words = f"peak {_gib(peak.total)} GiB in {peak.name}, most of it {largest}"
    if plan.fits:
        return [f"fits: {words}"]
    lines = [f"DOES NOT FIT: {words}", *(f"  {problem}" for problem in memory.problems)]
    if memory.host_limit is not None and memory.host_total > memory.host_limit:
        lines.append(f"  host memory: {_gib(memory.host_total)} GiB of {_gib(memory.host_limit)}")
    found = advise(plan)
    for words, after in found:
        more = "" if after.seconds.gpus == plan.seconds.gpus else f", {after.seconds.gpus} GPUs"
        lines.append(f"  would fit with {words}  (peak {_gib(after.memory.peak.total)} GiB{more})")
    return lines if found else [*lines, "  nothing that was tried makes it fit: take more or larger devices"]
