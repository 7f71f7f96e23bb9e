"""A planned step as a picture: who works when."""

from openrlhf_orz.plan.layout import devices, places
from openrlhf_orz.plan.planner import Plan

LANES = {  # of a phase
    "generation": "engines", "reference model": "reference", "old log-probs": "policy", "values": "critic",
    "critic training": "critic", "policy training": "policy", "weight sync": "policy", "sleep and wake": "engines",
}  # fmt: skip


def timeline(found: Plan) -> list[tuple[str, str, float, float]]:
    """(lane, phase, start, seconds) of one step after the other, the critic's of the step before included.

    Raises ValueError for asynchronous training, whose halves do not follow each other.
    """
    if found.args.train.async_enable:
        raise ValueError("asynchronous training has no order of phases: leave --train.async_enable out")
    phases, passes, step = found.seconds.phases, found.seconds.passes, found.seconds.step
    now = phases["generation"]
    bars = [("generation", 0.0, now)]
    now += phases.get("waiting for the critic", 0.0)
    for name in ("reference model", "old log-probs", "values"):
        if name in phases:
            early = passes[name] - phases[name]  # while the last responses are generated
            bars.append((name, now - early, passes[name]))
            now += phases[name]
    policy = passes.get("policy training", 0.0)
    apart = "critic training" in passes and "critic training" not in phases  # both at once
    if "critic training" in passes:
        critic = passes["critic training"]
        bars.append(("critic training", now, min(critic, step - now) if apart else critic))
        if apart and now + critic > step:
            bars.append(("critic training", 0.0, now + critic - step))  # of the step before
    start = now if apart else now + passes.get("critic training", 0.0)
    bars.append(("policy training", start, policy))
    now = start + (max(policy, passes["critic training"]) if "training" in phases else policy)
    for name in ("weight sync", "sleep and wake"):
        if name in phases:
            bars.append((name, now, phases[name]))
            now += phases[name]
    return [(LANES[name], name, begin, seconds) for name, begin, seconds in bars]


def timeline_title(found: Plan) -> str:
    """Whose GPUs, and the seconds of a step."""
    where = ", ".join(f"{count} for {place}" for place, count in devices(found.args).items())
    whose = f"{found.seconds.gpus} GPUs in turns" if "all" in places(found.args) else f"GPUs: {where}"
    return f"{whose}; {found.seconds.step:,.0f} s a step"
