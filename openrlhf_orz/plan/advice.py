"""The smallest changes of flags with which a run fits: found by trying them and planning again."""

from __future__ import annotations

from dataclasses import dataclass, replace

from openrlhf_orz.plan.planner import Plan, PlanError, plan
from openrlhf_orz.settings.finished import changed


@dataclass(frozen=True)
class Change:
    """Flags to set, and whether more devices than there are would be needed."""

    words: str
    flags: dict[str, object]
    more_devices: bool = False


def _set(path: str, value) -> Change:
    return Change(f"--{path}" if value is True else f"--{path} {value}", {path: value})


def _engines(tensor_parallel: int, engines: int) -> Change:
    flags = {"vllm.tensor_parallel_size": tensor_parallel, "vllm.num_engines": engines}
    return Change(" ".join(f"--{name} {value}" for name, value in flags.items()), flags)


def _nodes(factor: int, args) -> Change:
    changes = {f"{role}.num_nodes": getattr(args, role).num_nodes * factor for role in ("actor", "critic", "ref")}
    changes["vllm.num_engines"] = args.vllm.num_engines * factor
    flags = ["actor", *(["critic"] if args.critic.model_name_or_path else [])]
    flags += ["ref"] if args.algo.kl.init_coef > 0 else []
    words = " ".join(f"--{role}.num_nodes {getattr(args, role).num_nodes * factor}" for role in flags)
    return Change(f"{words} --vllm.num_engines {args.vllm.num_engines * factor}", changes, more_devices=True)


def candidates(before: Plan) -> list[list[Change]]:
    """Changes, the least costly first; of each inner list, at most one is taken, the first that is enough."""
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
    """The plan with the changes; None where the run cannot be so."""
    args = before.args
    for change in changes:
        args = changed(args, change.flags)
    hardware = before.hardware
    if any(change.more_devices for change in changes):
        hardware = replace(hardware, per_node=0, nodes=0)
    try:
        return plan(args, hardware, before.policy, before.critic, before.lengths, before.rates)
    except PlanError:
        return None


def excess(plan: Plan | None) -> float:
    """Bytes by which it does not fit, over device and host; a problem counts as very much."""
    if plan is None:
        return float("inf")
    held = plan.memory
    over = max(0.0, held.peak.total - held.limit)
    if held.host_limit is not None:
        over += max(0.0, held.host_total - held.host_limit)
    return over + 1e15 * len(held.problems)


def advise(before: Plan) -> list[tuple[str, Plan]]:
    """Ways to make the run fit, each (flags, its plan); empty if it fits, or if none of those tried does.

    First every single change that is enough; if there is none, changes are added in their order, as far as they
    help, and those that turn out not to be needed are taken back.
    """
    if before.fits:
        return []
    groups, found = candidates(before), []
    for group in groups:
        for change in group:
            after = replan(before, [change])
            if after is not None and after.fits:
                found.append((change.words, after))
                break
    if found:
        return found
    chosen: list[Change] = []
    best = excess(before)
    for group in groups:
        for change in group:
            now = replan(before, [*chosen, change])
            if excess(now) < best:
                better, best = change, excess(now)
                taken = [c for c in chosen if c not in group]
                chosen = [*taken, better]
            if best == 0:
                break
        if best == 0:
            break
    if best > 0:
        return []
    for change in list(chosen):
        rest = [c for c in chosen if c is not change]
        after = replan(before, rest)
        if after is not None and after.fits:
            chosen = rest
    return [(" ".join(change.words for change in chosen), replan(before, chosen))]
