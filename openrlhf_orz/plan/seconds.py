"""FLOPs of a step by the skip plan, and seconds by stated rates.

Seconds are FLOPs over peak x utilisation, or bytes over bandwidth x efficiency. A pass takes the time to gather its
weights (ZeRO-3) or to launch its kernels where that is longer; optimizer steps are added. Not modelled: ranks that
wait for each other, grading, checkpoints, the start of a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from openrlhf_orz.plan.costs import ITEMSIZE, decode_flops, forward_flops
from openrlhf_orz.plan.hardware import Hardware
from openrlhf_orz.plan.layout import Batches, Lengths, devices, places
from openrlhf_orz.plan.memory import VLLMS_SEQS, VLLMS_TOKENS
from openrlhf_orz.plan.shapes import Shape
from openrlhf_orz.settings.critic_checks import critic_works_beside, takes_early_values
from openrlhf_orz.settings.skip_plan import skip_plan


@dataclass(frozen=True)
class Rates:
    """Shares of the hardware's peak rates; chosen once, for all models and machines.

    training: of peak FLOPs in passes, recomputation counted. prefill: of peak FLOPs. decode: of memory bandwidth.
    concurrent: requests that one engine decodes at once; None for what the flags say. overhead_s: seconds that each
    decoding step adds. launch_s: seconds to launch the kernels of one layer's forward.
    """

    training: float = 0.40
    prefill: float = 0.40
    decode: float = 0.60
    concurrent: int | None = None
    overhead_s: float = 0.005
    launch_s: float = 0.00015


RATE_SOURCES = {
    "training": "Llama 3 reports 38% to 43% on H100 (arXiv 2407.21783)",
    "prefill": "as training",
    "decode": "low end of the usual 60% to 85% (open-source-ai.tech/glossary/model-bandwidth-utilization)",
    "concurrent": "--orz.max_num_seqs, or the 128 that vLLM 0.29 takes for an AsyncLLM",
    "overhead_s": "scheduling and sampling; an assumption",
    "launch_s": "30 kernels of 5 microseconds; an assumption",
}
CPU_RATES = Rates(training=0.35, prefill=0.35, decode=0.5, overhead_s=0.015, launch_s=0)
CPU_RATE_SOURCES = RATE_SOURCES | {
    "training": "useful FLOPs over the machine's matrix product, 0.28 to 0.35 for the tiny model"
    " (benchmarks/results/fp32/step_time_openrlhf_tiny_heavy.json)",
    "decode": "an assumption",
    "overhead_s": "9,000 tokens/s of the tiny model at 128 requests",
}


@dataclass(frozen=True)
class Work:
    """FLOPs of one step over all ranks: ``useful`` counts neither recomputation nor padding, ``computed`` does."""

    useful: dict[str, float]
    computed: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.useful.values())


def prompts_computed(args: SimpleNamespace, samples: int, packs: float) -> float:
    """Share of the prompts' tokens that is computed for ``samples`` of the rollout.

    The samples are drawn at random, sorted by prompt and cut into ``packs``; each pack computes a prompt once. 1 where
    prompts are not shared.
    """
    share = args.orz.share_prefixes == "auto" and args.ds.packing_samples and not args.actor.aux_loss_coef
    if not share or args.ds.attn_implementation != "orz_packed" or args.orz.fixed_micro_batches:
        return 1.0
    groups, each = args.rollout.batch_size, args.rollout.n_samples_per_prompt
    distinct = groups * (1 - max(0.0, 1 - samples / (groups * each)) ** each)
    return min(1.0, (distinct + packs - 1) / samples)  # a cut may divide a group


def _prompts_prefilled(args: SimpleNamespace, samples: int) -> int:
    """Prompts that generation computes: with prefix caching one for all its samples."""
    return args.rollout.batch_size if args.vllm.enable_prefix_caching else samples


def step_work(args: SimpleNamespace, policy: Shape, critic: Shape | None, cut: Batches, lengths: Lengths) -> Work:
    """FLOPs by phase. Sequences have mean length; a prompt counts once in each pack, and once in generation."""
    n, r, prompt, count = round(lengths.sample), round(lengths.response), round(lengths.prompt), cut.samples

    def forward(shape: Shape, head: bool, samples: int, packs: float) -> float:
        """One forward over the rollout, done in parts of ``samples``, each cut into ``packs``."""
        found = forward_flops(shape, [n], [r if head else 0])
        shared = 1 - prompts_computed(args, samples, packs)
        return count * (found["body"] + found["head"] - shared * forward_flops(shape, [prompt], [])["body"])

    prefill = _prompts_prefilled(args, count) * forward_flops(policy, [prompt], [])["body"]
    decode = decode_flops(policy, count * lengths.response, lengths.prompt + lengths.response / 2)
    useful = {"generation": prefill + decode}
    for planned in skip_plan(args):
        if planned.runs:
            values = planned.name == "values"
            packs = cut.forward_packs * cut.data_parallel_ranks
            useful[planned.name] = forward(critic if values and critic else policy, not values, count, packs)
    computed = {name: flops * (1 if name == "generation" else cut.forward_padding) for name, flops in useful.items()}
    extra = 4 if args.actor.gradient_checkpointing_enable else 3
    for name, model, size, packs, updates in (
        ("critic training", critic, cut.critic_mini_batch, cut.critic_micro_batches, cut.critic_updates),
        ("policy training", policy, cut.policy_mini_batch, cut.policy_micro_batches, cut.policy_updates),
    ):
        if model:
            passes = args.train.max_epochs * (args.orz.critic_epochs if name == "critic training" else 1)
            one = forward(model, name == "policy training", size, packs / updates) * passes
            backward = model.backward_forwards(args.orz.freeze_critic) if name == "critic training" else 2
            padding = cut.critic_padding if name == "critic training" else cut.policy_padding
            useful[name], computed[name] = (1 + backward) * one, (extra - 2 + backward) * one * padding
    return Work(useful, computed)


@dataclass(frozen=True)
class Seconds:
    """Seconds of one step by phase, what bounds each, and the GPUs, all of which are occupied for the whole step.

    ``passes``: seconds of each forward and training by itself, also where it runs beside another phase.
    """

    phases: dict[str, float]
    gpus: int
    bound_by: dict[str, str]
    passes: dict[str, float]

    @property
    def step(self) -> float:
        return sum(self.phases.values())

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.step / 3600


def at_once(args: SimpleNamespace, rates: Rates) -> int:
    """The responses that an engine decodes at once, where its cache holds them."""
    return rates.concurrent or args.orz.max_num_seqs or VLLMS_SEQS


def generation_seconds(
    args: SimpleNamespace,
    policy: Shape,
    hardware: Hardware,
    cut: Batches,
    lengths: Lengths,
    rates: Rates,
    cache_tokens: float,
) -> tuple[float, str, float]:
    """Seconds of generation, what bounds it, and the seconds of its end, in which few are left to be generated.

    An engine's share at full concurrency, then the longest response.

    Prompts are computed in steps of --orz.max_num_batched_tokens, each of which reads the weights.
    """
    b, tp, engines = ITEMSIZE[args.ds.param_dtype], args.vllm.tensor_parallel_size, args.vllm.num_engines
    requests = -(-cut.samples // engines)
    context = lengths.prompt + lengths.response / 2
    active = max(1, min(requests, at_once(args, rates), int(cache_tokens // lengths.sample)))
    bandwidth, peak = tp * (hardware.bandwidth * rates.decode), tp * (hardware.flops * rates.prefill)
    if hardware.is_cpu:  # engines share the machine
        sharing = -(-engines // max(1, hardware.nodes))
        bandwidth, peak = bandwidth / tp / sharing, peak / tp / sharing

    def read(tokens: float) -> float:
        return (policy.products_read(tokens) + policy.hidden * policy.vocabulary) * b

    def decoding_step(together: int) -> float:
        by_bytes = (read(together) + together * context * policy.kv_bytes_per_token(b)) / bandwidth
        by_flops = decode_flops(policy, together, context) / peak
        return max(by_bytes, by_flops) + rates.overhead_s

    prompts = _prompts_prefilled(args, cut.samples)
    each = forward_flops(policy, [round(lengths.prompt)], [])["body"]
    at_a_time = args.orz.max_num_batched_tokens or VLLMS_TOKENS
    parts = prompts / engines * lengths.prompt / at_a_time
    prefill = max(prompts / engines * each / peak, parts * (read(at_a_time) / bandwidth + rates.overhead_s))
    steps = requests * lengths.response / active
    bulk = steps * decoding_step(active)
    begun = (steps - lengths.response) / 2  # the longest, on average, where responses wait for room
    tail = max(0.0, begun + lengths.longest_response - steps) * decoding_step(1)
    words = f"{active} requests at once for {bulk:.0f} s, then the longest response for {tail:.0f} s"
    return bulk + tail + prefill, words, tail


def _gather_seconds(args: SimpleNamespace, parameters: float, ranks: int, hardware: Hardware) -> float:
    """Seconds to gather all weights once on every rank under ZeRO-3."""
    if args.ds.zero_stage != 3 or ranks == 1 or hardware.is_cpu:
        return 0.0
    speed = hardware.link if hardware.nodes == 1 else hardware.network
    return parameters * ITEMSIZE[args.ds.param_dtype] * (ranks - 1) / ranks / speed


def _optimizer_seconds(
    args: SimpleNamespace, parameters: float, ranks: int, hardware: Hardware, rates: Rates
) -> float:
    """Seconds of one optimizer step: each rank's part of the states through memory, then the new weights to all.

    A parameter is 36 bytes: its gradient twice (norm, step), float32 weight and moments in and out, the new weight.
    Offloaded, gradient and weight cross to the host, whose memory is as slow as the link to it.
    """
    part = parameters / (ranks if args.ds.zero_stage else 1)
    if args.ds.adam_offload:
        return part * 36 / hardware.host_link
    speed = hardware.link if hardware.nodes == 1 else hardware.network
    weights = parameters * ITEMSIZE[args.ds.param_dtype] * (ranks - 1) / ranks
    gathered = weights / speed if args.ds.zero_stage in (1, 2) and not hardware.is_cpu else 0.0
    return part * 36 / (hardware.bandwidth * rates.decode) + gathered


def _passes(
    args: SimpleNamespace,
    policy: Shape,
    critic: Shape | None,
    hardware: Hardware,
    cut: Batches,
    done: Work,
    rates: Rates,
) -> dict[str, tuple[float, str]]:
    """Seconds of each forward and training phase in ``done``, and what bounds it."""
    count = devices(args)
    place_of = {role: place for place, roles in places(args).items() for role in roles}
    phases = (
        ("reference model", "ref", cut.forward_packs),
        ("old log-probs", "policy", cut.forward_packs),
        ("values", "critic", cut.forward_packs),
        ("critic training", "critic", cut.critic_micro_batches),
        ("policy training", "policy", cut.policy_micro_batches),
    )
    # ZeRO-3 gathers the weights in each forward and backward, and again to recompute; training reduces gradients, too
    gathers = 4 if args.actor.gradient_checkpointing_enable else 3
    found = {}
    for name, role, packs in phases:
        if name not in done.computed:
            continue
        ranks = count[place_of[role]]
        peak = hardware.flops * rates.training * (hardware.nodes if hardware.is_cpu else ranks)
        compute = done.computed[name] / peak
        shape = critic if role == "critic" and critic else policy
        parameters = shape.critic_parameters() if role == "critic" else shape.policy_parameters()
        times = packs * (gathers if "training" in name else 1)
        bounds = {
            "computation": compute,
            "gathering weights (ZeRO-3)": times * _gather_seconds(args, parameters, ranks, hardware),
            "launching kernels": times * shape.layers * rates.launch_s,
        }
        longest = max(bounds, key=lambda reason: bounds[reason])
        steps = {"critic training": cut.critic_updates, "policy training": cut.policy_updates}.get(name, 0)
        trained = parameters - (shape.frozen_parameters(args.orz.freeze_critic) if role == "critic" else 0)
        stepping = steps * _optimizer_seconds(args, trained, ranks, hardware, rates)
        found[name] = bounds[longest] + stepping, longest
    return found


def _sleep_bytes(args: SimpleNamespace, policy: Shape, critic: Shape | None) -> float:
    """Bytes that each GPU copies to its host and back in a step."""
    moved = 0.0
    if args.vllm.enable_sleep:
        moved += 2 * policy.policy_parameters() * ITEMSIZE[args.ds.param_dtype] / args.vllm.tensor_parallel_size
    if args.ds.enable_sleep and not args.ds.adam_offload:
        count = policy.policy_parameters()
        if critic:
            count += critic.critic_parameters() - critic.frozen_parameters(args.orz.freeze_critic)
        moved += 2 * 14 * count / max(1, next(iter(devices(args).values())))
    return moved


def step_seconds(
    args: SimpleNamespace,
    policy: Shape,
    critic: Shape | None,
    hardware: Hardware,
    cut: Batches,
    lengths: Lengths,
    done: Work,
    cache_tokens: float,
    rates: Rates,
) -> Seconds:
    """Seconds of each phase of a step. ``hardware.per_node`` and ``nodes`` must be set.

    ``cache_tokens``: what an engine's KV cache holds.
    """
    found, bound = {}, {}
    found["generation"], bound["generation"], tail = generation_seconds(
        args, policy, hardware, cut, lengths, rates, cache_tokens
    )
    passes = _passes(args, policy, critic, hardware, cut, done, rates)
    bound |= {name: reason for name, (_, reason) in passes.items()}
    found |= {name: taken for name, (taken, _) in passes.items() if "training" not in name}
    training = {name: taken for name, (taken, _) in passes.items() if "training" in name}
    weights = policy.policy_parameters() * ITEMSIZE[args.ds.param_dtype]
    found["weight sync"] = weights / (hardware.host_link if hardware.nodes == 1 else hardware.network)
    apart = "critic" in places(args)
    if (
        len(training) == 2 and apart and critic_works_beside(args)
    ):  # it must have ended when the next rollout's values are taken
        found["policy training"] = training["policy training"]
        left = max(0.0, training["critic training"] - found["policy training"] - found["weight sync"])
        found["waiting for the critic"] = max(0.0, left - found["generation"])
        bound["waiting for the critic"] = f"{training['critic training']:.0f} s beside the policy and the next rollout"
        if "values" in found and takes_early_values(args):  # a prompt's responses are there when its longest is
            early = min(found["values"], max(0.0, min(tail, found["generation"] - left)))
            found["values"] -= early
            bound["values"] = f"{early:.0f} s more while the last responses are generated"
    elif len(training) == 2 and apart:  # at the same time, on separate GPUs
        name = max(training, key=lambda name: training[name])
        found["training"], bound["training"] = training[name], f"{name}, the other one beside it"
    else:
        found |= training
    bound["weight sync"] = "one copy of the weights over the slowest link"
    moved = _sleep_bytes(args, policy, critic)
    if moved:
        found["sleep and wake"], bound["sleep and wake"] = moved / hardware.host_link, "copies between host and GPU"
    if args.train.async_enable:  # generation overlaps with everything else
        rest = sum(found.values()) - found["generation"]
        shorter = "generation" if found["generation"] < rest else "the rest"
        found = {"step": max(rest, found["generation"])}
        bound["step"] = f"asynchronous: {shorter} is hidden"
    count = hardware.nodes * hardware.per_node if hardware.is_cpu else sum(devices(args).values())
    return Seconds(found, count, bound, {name: taken for name, (taken, _) in passes.items()})
