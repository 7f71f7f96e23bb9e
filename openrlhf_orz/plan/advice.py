"""The smallest changes of flags with which a run fits, found by trying them and planning again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from openrlhf_orz.plan.choice import possible
from openrlhf_orz.plan.planner import Plan, PlanError, plan_run
from openrlhf_orz.settings.finished import changed


@dataclass(frozen=True)
class Change:
    """Flags to set, by dotted name; ``more_devices``: it needs more than there are."""

    flags: dict[str, Any]
    more_devices: bool = False


def _set(path: str, value: Any) -> Change:
    """Set one flag, such as "ds.zero_stage"."""
    return Change({path: value})


def _engines(tensor_parallel: int, engines: int) -> Change:
    return Change({"vllm.tensor_parallel_size": tensor_parallel, "vllm.num_engines": engines})


def _nodes(factor: int, args: SimpleNamespace) -> Change:
    """``factor`` times as many nodes and engines as in ``args``."""
    changes = {f"{role}.num_nodes": getattr(args, role).num_nodes * factor for role in ("actor", "critic", "ref")}
    return Change({**changes, "vllm.num_engines": args.vllm.num_engines * factor}, more_devices=True)


def _shared(args: SimpleNamespace) -> bool:
    """Whether all models share the GPUs."""
    return args.train.colocate_all and not args.train.async_enable


def words(changes: list[Change], after: Plan) -> str:
    """The flags to give for a plan with these changes."""
    names = dict.fromkeys(name for change in changes for name in change.flags)
    args: Any = after.args
    absent = {"critic": not args.critic.model_name_or_path, "ref": args.algo.kl.init_coef <= 0}
    given = [name for name in names if not absent.get(name.partition(".")[0])]
    found = []
    for name in given:
        value = args
        for part in name.split("."):
            value = getattr(value, part)
        found.append(f"--{name}" if value is True else f"--{name} {value}")
    if _shared(args) and any(name.endswith(("num_nodes", "num_engines")) for name in given):
        found.append("--train.colocate_all")  # else models that are counted one by one have GPUs of their own
    return " ".join(found)


def possible_changes(before: Plan) -> list[list[Change]]:
    """Groups of changes, the least costly group first; of each group at most one change is made."""
    args, cpu = before.args, before.hardware.is_cpu
    found: list[list[Change]] = []
    if not cpu and _shared(args) and not args.vllm.enable_sleep and not args.orz.check_sync:
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
    while tp * 2 <= before.hardware.per_node and engines % 2 == 0 and before.policy.serves(tp * 2):
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
    if changes and _shared(args):  # nodes and the size of engines may both have changed
        ranks = args.actor.num_nodes * args.actor.num_gpus_per_node
        args = changed(args, {"vllm.num_engines": max(1, ranks // args.vllm.tensor_parallel_size)})
    if args.ds.zero_stage == 3 != before.args.ds.zero_stage and args.ds.param_dtype != "fp32":
        args = changed(args, {"ds.grad_accum_dtype": "fp32"})  # as a run takes it then
    if args.ds.adam_offload and not before.args.ds.adam_offload:
        args = changed(args, {"ds.enable_sleep": False})  # as a run takes it then
    if possible(before.args) and not possible(args):
        return None
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
                found.append((words([change], after), after))
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
    return [(words(chosen, after), after)] if after is not None else []
