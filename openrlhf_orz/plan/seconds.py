"""FLOPs of a step by the skip plan, and seconds by stated rates.

Seconds are FLOPs over peak x utilisation, bytes over bandwidth x efficiency, or for ZeRO-3 the time to gather the
weights where that is longer. What is not modelled: ranks that wait for each other, grading, checkpoints, the start.
"""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_orz.plan import flops
from openrlhf_orz.plan.batches import Batches, Lengths
from openrlhf_orz.plan.hardware import Hardware
from openrlhf_orz.plan.memory import places
from openrlhf_orz.plan.shapes import Shape
from openrlhf_orz.plan.states import ITEMSIZE
from openrlhf_orz.settings.skip_plan import skip_plan


@dataclass(frozen=True)
class Rates:
    """Shares of what the hardware's sheet says; chosen once, for all models and machines.

    training: of peak FLOPs in passes, recomputation counted. prefill: likewise. decode: of memory bandwidth.
    concurrent: requests that one engine decodes at once. overhead_s: of a decoding step, besides.
    """

    training: float = 0.40
    prefill: float = 0.40
    decode: float = 0.60
    concurrent: int = 128
    overhead_s: float = 0.005


SOURCES = {
    "training": "Llama 3 reports 38% to 43% on H100 (arXiv 2407.21783)",
    "prefill": "as training",
    "decode": "low end of the usual 60% to 85% (open-source-ai.tech/glossary/model-bandwidth-utilization)",
    "concurrent": "max_num_seqs that vLLM 0.29 takes for an AsyncLLM",
    "overhead_s": "scheduling and sampling; an assumption",
}
CPU_RATES = Rates(training=0.35, prefill=0.35, decode=0.5, overhead_s=0.015)
CPU_SOURCES = SOURCES | {
    "training": "useful FLOPs over the machine's matrix product, 0.28 to 0.35 for the tiny model"
    " (benchmarks/results/fp32/step_time_openrlhf_tiny_heavy.json)",
    "decode": "an assumption",
    "overhead_s": "9,000 tokens/s of the tiny model at 128 requests",
}


@dataclass(frozen=True)
class Work:
    """FLOPs of one step over all ranks: ``useful`` counts no recomputation, ``computed`` does."""

    useful: dict[str, float]
    computed: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.useful.values())


def prompts_computed(args, samples: int, packs: float) -> float:
    """Share of the prompts' tokens that are computed when ``samples`` of the rollout, taken at random, are sorted by
    prompt and cut into ``packs``: each pack computes what it has of a prompt once. 1 where nothing is shared.
    """
    share = args.orz.share_prefixes == "auto" and args.ds.packing_samples
    if not share or args.ds.attn_implementation != "orz_packed" or args.orz.fixed_micro_batches:
        return 1.0
    groups, each = args.rollout.batch_size, args.rollout.n_samples_per_prompt
    distinct = groups * (1 - max(0.0, 1 - samples / (groups * each)) ** each)
    return min(1.0, (distinct + packs - 1) / samples)  # a cut may fall into a group


def work(args, policy: Shape, critic: Shape | None, cut: Batches, lengths: Lengths) -> Work:
    """By phase. Sequences have mean length; a prompt counts once in each pack, and once in generation."""
    n, r, prompt, count = round(lengths.sample), round(lengths.response), round(lengths.prompt), cut.samples

    def once(shape, head, samples, packs):
        found = flops.forward(shape, [n], [r if head else 0])
        again = 1 - prompts_computed(args, samples, packs)
        return count * (found["body"] + found["head"] - again * flops.forward(shape, [prompt], [])["body"])

    passes, computed = {}, {}
    prompts = args.rollout.batch_size if args.vllm.enable_prefix_caching else count
    prefill = prompts * flops.forward(policy, [round(lengths.prompt)], [])["body"]
    passes["generation"] = prefill + flops.decode(
        policy, count * lengths.response, lengths.prompt + lengths.response / 2
    )
    for forward in skip_plan(args):
        if forward.runs:
            values = forward.name == "values"
            passes[forward.name] = once(
                critic if values else policy, not values, count, cut.forward_packs * cut.data_parallel_ranks
            )
    computed |= passes
    extra = 4 if args.actor.gradient_checkpointing_enable else 3
    for name, shape, size, packs, updates in (
        ("critic training", critic, cut.critic_mini_batch, cut.critic_micro_batches, cut.critic_updates),
        ("policy training", policy, cut.policy_mini_batch, cut.policy_micro_batches, cut.policy_updates),
    ):
        if shape:
            one = once(shape, name[0] == "p", size, packs / updates) * args.train.max_epochs
            passes[name], computed[name] = 3 * one, extra * one
    return Work(passes, computed)


@dataclass(frozen=True)
class Seconds:
    """Of one step, by phase; ``gpus`` are held all the while."""

    phases: dict[str, float]
    gpus: int
    bound_by: dict[str, str]

    @property
    def step(self) -> float:
        return sum(self.phases.values())

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.step / 3600


def _gather(args, parameters: float, ranks: int, hardware: Hardware) -> float:
    """Time to gather all weights once on every rank under ZeRO-3."""
    if args.ds.zero_stage != 3 or ranks == 1:
        return 0.0
    speed = hardware.link if hardware.nodes == 1 else hardware.network
    return parameters * ITEMSIZE[args.ds.param_dtype] * (ranks - 1) / ranks / speed


def generation(
    args, policy: Shape, hardware: Hardware, cut: Batches, lengths: Lengths, rates: Rates, cache_tokens: float
):
    """(seconds, what bounds it): an engine's share at full concurrency, then the longest response alone."""
    b, tp, engines = ITEMSIZE[args.ds.param_dtype], args.vllm.tensor_parallel_size, args.vllm.num_engines
    requests = -(-cut.samples // engines)
    context = lengths.prompt + lengths.response / 2
    active = max(1, min(requests, rates.concurrent, int(cache_tokens // lengths.sample)))
    read = (policy.layer_products() + policy.hidden * policy.vocabulary) * b
    bandwidth, peak = (tp * x for x in (hardware.bandwidth * rates.decode, hardware.flops * rates.prefill))
    if hardware.is_cpu:  # engines share the machine
        bandwidth, peak = (x / tp / -(-engines // max(1, hardware.nodes)) for x in (bandwidth, peak))

    def step(together):
        by_bytes = (read + together * context * policy.kv_bytes_per_token(b)) / bandwidth
        by_flops = flops.decode(policy, together, context) / peak
        return max(by_bytes, by_flops) + rates.overhead_s

    prompts = args.rollout.batch_size if args.vllm.enable_prefix_caching else cut.samples
    prefill = prompts / engines * flops.forward(policy, [round(lengths.prompt)], [])["body"] / peak
    bulk = requests * lengths.response / active
    tail = max(0.0, lengths.longest_response - bulk)
    times = {"bulk": bulk * step(active), "tail": tail * step(1), "prefill": prefill}
    words = f"{active} requests at once for {times['bulk']:.0f} s, then the longest response for {times['tail']:.0f} s"
    return sum(times.values()), words


def seconds(
    args, policy, critic, hardware: Hardware, cut: Batches, lengths: Lengths, done: Work, memory, rates: Rates
):
    """Seconds of each phase of a step. ``hardware.per_node`` and ``nodes`` must be set."""
    b = ITEMSIZE[args.ds.param_dtype]
    found, bound = {}, {}
    found["generation"], bound["generation"] = generation(
        args, policy, hardware, cut, lengths, rates, memory.kv_cache_tokens
    )
    here = places(args)
    parts = {"policy": args.actor, "critic": args.critic, "ref": args.ref}
    gpus = {}
    for place, roles in here.items():
        part = parts.get(roles[0])
        gpus[place] = (
            part.num_nodes * part.num_gpus_per_node if part else args.vllm.num_engines * args.vllm.tensor_parallel_size
        )
    place_of = {role: place for place, roles in here.items() for role in roles}
    packs = cut.forward_packs
    jobs = {
        "reference model": ("ref", policy, 1 * packs),
        "old log-probs": ("policy", policy, 1 * packs),
        "values": ("critic", critic, 1 * packs),
        "critic training": ("critic", critic, cut.critic_micro_batches),
        "policy training": ("policy", policy, cut.policy_micro_batches),
    }
    training = {}
    for name, (role, shape, micro) in jobs.items():
        if name not in done.computed:
            continue
        n = gpus[place_of[role]]
        peak = hardware.flops * rates.training * (hardware.nodes if hardware.is_cpu else n)
        compute = done.computed[name] / peak
        gathers = 1 if "training" not in name else 3 if args.actor.gradient_checkpointing_enable else 2
        count = shape.critic_parameters() if role == "critic" else shape.policy_parameters()
        moved = (
            0.0 if hardware.is_cpu else micro * (gathers + ("training" in name)) * _gather(args, count, n, hardware)
        )
        bound[name] = "computation" if compute >= moved else "gathering weights (ZeRO-3)"
        (training if "training" in name else found)[name] = max(compute, moved)
    if len(training) == 2 and place_of["critic"] != place_of["policy"]:  # side by side on GPUs of their own
        name = max(training, key=training.get)
        found["training"], bound["training"] = training[name], f"{name}, the other one beside it"
    else:
        found |= training
    weights = policy.policy_parameters() * b
    found["weight sync"] = weights / (hardware.host_link if hardware.nodes == 1 else hardware.network)
    bound["weight sync"] = "one copy of the weights over the slowest link"
    moved = _slept(args, policy, critic, gpus, hardware)
    if moved:
        found["sleep and wake"], bound["sleep and wake"] = moved / hardware.host_link, "copies between host and GPU"
    if args.train.async_enable:  # generation overlaps with everything else
        rest = sum(found.values()) - found["generation"]
        shorter = "generation" if found["generation"] < rest else "the rest"
        found = {"step": max(rest, found["generation"])}
        bound["step"] = f"asynchronous: {shorter} is hidden"
    devices = hardware.nodes * hardware.per_node if hardware.is_cpu else sum(gpus.values())
    return Seconds(found, devices, bound)


def _slept(args, policy, critic, gpus, hardware) -> float:
    """Bytes that each GPU copies to its host or back in a step."""
    moved = 0.0
    if args.vllm.enable_sleep:
        moved += 2 * policy.policy_parameters() * ITEMSIZE[args.ds.param_dtype] / args.vllm.tensor_parallel_size
    if args.ds.enable_sleep and not args.ds.adam_offload:
        count = policy.policy_parameters() + (critic.critic_parameters() if critic else 0)
        moved += 2 * 14 * count / max(1, next(iter(gpus.values())))
    return moved
