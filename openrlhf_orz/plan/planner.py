"""One run, planned from its flags and its models' shapes: no GPU, no network, no weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

from openrlhf_orz.plan.hardware import Hardware
from openrlhf_orz.plan.layout import Batches, Lengths, cut_batches, default_lengths, devices
from openrlhf_orz.plan.memory import Memory, plan_memory
from openrlhf_orz.plan.seconds import CPU_RATES, Rates, Seconds, Work, step_seconds, step_work
from openrlhf_orz.plan.shapes import KNOWN, Shape
from openrlhf_orz.settings.derive import data_parallel_ranks


class PlanError(ValueError):
    """A run that cannot be planned; the message names the flag and the remedy."""


@dataclass(frozen=True)
class Plan:
    """A planned run: what it was planned from, and what it takes. ``notes`` name what the plan does not model."""

    args: SimpleNamespace
    hardware: Hardware
    policy: Shape
    critic: Shape | None
    lengths: Lengths
    rates: Rates
    batches: Batches
    memory: Memory
    work: Work
    seconds: Seconds
    notes: list[str]

    @property
    def fits(self) -> bool:
        return self.memory.fits


def known_shape(name: str) -> Shape:
    """The shape of a model in the table. Raises PlanError."""
    if name not in KNOWN:
        raise PlanError(
            f"--actor.model_name_or_path {name} is not in the table of shapes ({', '.join(KNOWN)}): give plan_run()"
            " its shape"
        )
    return KNOWN[name]


def unmodelled(args: SimpleNamespace) -> list[str]:
    """What the flags ask for and the plan does not model, in words."""
    notes = []
    for on, words in (
        (args.ds.lora.rank > 0, "--ds.lora.rank: planned as full training, which needs more"),
        (args.ds.load_in_4bit, "--ds.load_in_4bit: planned in --ds.param_dtype"),
        ("muon" in (args.actor.optim, args.critic.optim), "muon: planned as Adam, which needs more"),
        (args.actor.aux_loss_coef > 0, "the router's loss (--actor.aux_loss_coef): its memory is not counted"),
        (args.orz.fp32_head, "--orz.fp32_head: what its float32 logits take in time"),
        (bool(args.eval.dataset), "evaluation during training is left out"),
    ):
        if on:
            notes.append(words)
    return notes


def plan_run(
    args: SimpleNamespace,
    hardware: Hardware,
    policy: Shape | None = None,
    critic: Shape | None = None,
    lengths: Lengths | None = None,
    rates: Rates | None = None,
) -> Plan:
    """Plan a run.

    Args:
        args: OpenRLHF's nested arguments as ``settings.command_line.parse`` returns them.
        hardware: the devices; without counts there are as many as the flags ask for.
        policy, critic: shapes; if they are not given, the model's name must be in the table of shapes.
        lengths: the mean lengths; ``default_lengths`` if they are not given.
        rates: the rates reached; the defaults for this kind of hardware if they are not given.

    Raises PlanError if the model is unknown, the devices are too few, or a rank has no sample.
    """
    policy = policy or known_shape(args.actor.model_name_or_path)
    if not args.critic.model_name_or_path:
        critic = None
    elif critic is None:
        same = args.critic.model_name_or_path == args.actor.model_name_or_path
        critic = policy if same else known_shape(args.critic.model_name_or_path)
    if critic is not None:
        outputs = {"mse": 0, "bce": 1, "hl_gauss": args.orz.value_bins}[args.orz.value_loss]
        critic = replace(critic, value_outputs=outputs)
    needed = sum(devices(args).values())
    if not hardware.per_node:
        per_node = min(needed, max(args.actor.num_gpus_per_node, 1))
        hardware = replace(hardware, per_node=per_node, nodes=-(-needed // per_node))
    elif needed > hardware.per_node * hardware.nodes:
        raise PlanError(
            f"the flags ask for {needed} GPUs, --hardware has {hardware.per_node} x {hardware.nodes}: lower"
            " --actor.num_nodes, --actor.num_gpus_per_node and the like, let models share GPUs (--train.colocate_all),"
            " or give --hardware more"
        )
    samples, ranks = args.rollout.batch_size * args.rollout.n_samples_per_prompt, data_parallel_ranks(args)
    if samples < ranks:
        raise PlanError(
            f"--rollout.batch_size x --rollout.n_samples_per_prompt are {samples} samples, fewer than the {ranks}"
            " ranks that train (--actor.num_nodes x --actor.num_gpus_per_node): raise the first two"
        )
    lengths = lengths or default_lengths(args)
    rates = rates or (CPU_RATES if hardware.is_cpu else Rates())
    batches = cut_batches(args, lengths)
    memory = plan_memory(args, policy, critic, hardware, batches)
    work = step_work(args, policy, critic, batches, lengths)
    seconds = step_seconds(args, policy, critic, hardware, batches, lengths, work, memory.kv_cache_tokens, rates)
    return Plan(args, hardware, policy, critic, lengths, rates, batches, memory, work, seconds, unmodelled(args))
