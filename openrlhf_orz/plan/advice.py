"""The smallest changes of flags with which a run fits, found by trying them and planning again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from openrlhf_orz.plan.planner import Plan, PlanError, plan_run
from openrlhf_orz.settings.finished import changed


@dataclass(frozen=True)
class Change:
    """Flags to set, in words and by dotted name; ``more_devices``: it needs more than there are."""

    words: str
    flags: dict[str, Any]
    more_devices: bool = False


def _set(path: str, value: Any) -> Change:
    """Set one flag, such as "ds.zero_stage"."""
    return Change(f"--{path}" if value is True else f"--{path} {value}", {path: value})


def _engines(tensor_parallel: int, engines: int) -> Change:
    flags: dict[str, Any] = {"vllm.tensor_parallel_size": tensor_parallel, "vllm.num_engines": engines}
    return Change(" ".join(f"--{name} {value}" for name, value in flags.items()), flags)


def _nodes(factor: int, args: SimpleNamespace) -> Change:
    """``factor`` times as many nodes and engines as in ``args``."""
    changes = {f"{role}.num_nodes": getattr(args, role).num_nodes * factor for role in ("actor", "critic", "ref")}
    changes["vllm.num_engines"] = args.vllm.num_engines * factor
    flags = ["actor", *(["critic"] if args.critic.model_name_or_path else [])]
    flags += ["ref"] if args.algo.kl.init_coef > 0 else []
    words = " ".join(f"--{role}.num_nodes {getattr(args, role).num_nodes * factor}" for role in flags)
    return Change(f"{words} --vllm.num_engines {args.vllm.num_engines * factor}", changes, more_devices=True)


def possible_changes(before: Plan) -> list[list[Change]]:
    """Groups of changes, the least costly group first; of each group at most one change is made."""
    args, cpu = before.args, before.hardware.is_cpu
    found: list[list[Change]] = []
    together = args.train.colocate_all and not args.train.async_enable
    if not cpu and together and not args.vllm.enable_sleep and not args.orz.check_sync:
        found.append([_set("vllm.enable_sleep", True)])
    if not cpu and args.train.colocate_all and not args.ds.enable_sleep:
        found.append([_set("ds.enable_sleep", True)])
    if not args.actor.gradient_checkpointing_enable:
        found.append([_set("actor.gradient_checkpointing_enable", True)])
    if not args.orz.fixed_micro_batches:
        for flag, now in (("train", args.train.max_tokens_per_gpu), ("rollout", args.rollout.max_tokens_per_gpu)):
            smaller = []
            while now // 2 >= min(args.data.max_len, now):
                now //= 2
                smaller.append(_set(f"{flag}.max_tokens_per_gpu", now))
            found.append(smaller)
    if cpu:
        return [group for group in found if group]
    now = args.vllm.gpu_memory_utilization
    found.append([_set("vllm.gpu_memory_utilization", x / 10) for x in range(9, 1, -1) if x / 10 < now])
    found.append([_set("vllm.gpu_memory_utilization", x / 10) for x in range(2, 10) if x / 10 > now])
    if args.ds.zero_stage != 3:
        found.append([_set("ds.zero_stage", 3)])
    tp, engines = args.vllm.tensor_parallel_size, args.vllm.num_engines
    bigger = []
    while tp * 2 <= before.hardware.per_node and engines % 2 == 0 and before.policy.heads % (tp * 2) == 0:
        tp, engines = tp * 2, engines // 2
        bigger.append(_engines(tp, engines))
    found.append(bigger)
    if not args.ds.adam_offload:
        found.append([_set("ds.adam_offload", True)])
    found.append([_nodes(factor, args) for factor in (2, 4, 8, 16)])
    return [group for group in found if group]


def replan(before: Plan, changes: list[Change]) -> Plan | None:
    """The plan with the changes; None if the run is impossible with them."""
    args = before.args
    for change in changes:
        args = changed(args, change.flags)
    hardware = before.hardware
    if any(change.more_devices for change in changes):
        hardware = replace(hardware, per_node=0, nodes=0)
    try:
        return plan_run(args, hardware, before.policy, before.critic, before.lengths, before.rates)
    except PlanError:
        return None


def _excess(plan: Plan | None) -> float:
    """Bytes over the limits of device and host; each problem counts as 1e15 bytes."""
    if plan is None:
        return float("inf")
    memory = plan.memory
    over = max(0.0, memory.peak.total - memory.limit)
    if memory.host_limit is not None:
        over += max(0.0, memory.host_total - memory.host_limit)
    return over + 1e15 * len(memory.problems)


def advise(before: Plan) -> list[tuple[str, Plan]]:
    """Ways to make the run fit, each as (flags, its plan); empty if it fits already, or if nothing tried makes it fit.

    Every single change that is enough is returned. If there is none, changes are added in order while they help, and
    the superfluous ones are removed again; that is one way.
    """
    if before.fits:
        return []
    groups = possible_changes(before)
    return _single_changes(before, groups) or _several_changes(before, groups)


def _single_changes(before: Plan, groups: list[list[Change]]) -> list[tuple[str, Plan]]:
    """The first change of each group that is enough alone."""
    found = []
    for group in groups:
        for change in group:
            after = replan(before, [change])
            if after is not None and after.fits:
                found.append((change.words, after))
                break
    return found


def _several_changes(before: Plan, groups: list[list[Change]]) -> list[tuple[str, Plan]]:
    """One set of changes from which none can be left out, if there is one."""
    chosen: list[Change] = []
    best = _excess(before)
    for group in groups:
        for change in group:
            over = _excess(replan(before, [*chosen, change]))
            if over < best:
                best = over
                chosen = [*(c for c in chosen if c not in group), change]
            if best == 0:
                break
        if best == 0:
            break
    if best > 0:
        return []
    for change in list(chosen):
        rest = [c for c in chosen if c is not change]
        without = replan(before, rest)
        if without is not None and without.fits:
            chosen = rest
    after = replan(before, chosen)
    return [(" ".join(change.words for change in chosen), after)] if after is not None else []
