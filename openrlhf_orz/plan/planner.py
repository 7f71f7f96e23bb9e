"""One run, planned from its flags and its models' shapes: no GPU, no network, no weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from openrlhf_orz.plan.batches import Batches, Lengths, batches
from openrlhf_orz.plan.hardware import Hardware
from openrlhf_orz.plan.memory import Memory, memory, places
from openrlhf_orz.plan.seconds import CPU_RATES, Rates, Seconds, Work, seconds, work
from openrlhf_orz.plan.shapes import KNOWN, Shape


class PlanError(ValueError):
    """A run that cannot be planned; the message names the flag and the remedy."""


@dataclass(frozen=True)
class Plan:
    args: object
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
    """From the table of shapes. Raises PlanError."""
    if name not in KNOWN:
        raise PlanError(
            f"--actor.model_name_or_path {name} is not in the table of shapes ({', '.join(KNOWN)}): give plan() its"
            " shape"
        )
    return KNOWN[name]


def default_lengths(args, prompt: float | None = None, response: float | None = None) -> Lengths:
    """Mean lengths where they are not given: assumptions, said to be such."""
    room = args.rollout.max_new_tokens or args.data.max_len
    said = []
    if prompt is None:
        prompt = min(160, args.orz.max_prompt_len, args.data.max_len // 2)
        said.append(f"prompt {prompt:g} tokens: an assumption, --prompt_tokens sets it")
    longest = max(1, min(room, args.data.max_len - int(prompt)))
    if response is None:
        response = max(1, longest // 4)
        said.append(
            f"response {response:g} tokens: a quarter of the longest, an assumption, --response_tokens sets it"
        )
    return Lengths(prompt, min(response, longest), longest, "; ".join(said) or "as given")


def gpus_needed(args) -> int:
    """Devices that the placement asks for."""
    parts = {"policy": args.actor, "critic": args.critic, "ref": args.ref}
    total = 0
    for roles in places(args).values():
        part = parts.get(roles[0])
        total += (
            part.num_nodes * part.num_gpus_per_node if part else args.vllm.num_engines * args.vllm.tensor_parallel_size
        )
    return total


def unmodelled(args) -> list[str]:
    """What flags ask for and the plan does not know."""
    notes = []
    for on, words in (
        (args.ds.lora.rank > 0, "--ds.lora.rank: planned as full training, which needs more"),
        (args.ds.load_in_4bit, "--ds.load_in_4bit: planned in --ds.param_dtype"),
        ("muon" in (args.actor.optim, args.critic.optim), "muon: planned as Adam, which needs more"),
        (not args.ds.packing_samples, "without --ds.packing_samples padding comes on top of tokens and FLOPs"),
        (bool(args.eval.dataset), "evaluation during training is left out"),
    ):
        if on:
            notes.append(words)
    return notes


def plan(
    args,
    hardware: Hardware,
    policy: Shape | None = None,
    critic: Shape | None = None,
    lengths: Lengths | None = None,
    rates: Rates | None = None,
) -> Plan:
    """Plan a run.

    Args:
        args: OpenRLHF's nested arguments as ``cli.flags.parse`` returns them.
        hardware: the devices; without counts it has as many as the flags ask for.
        policy, critic: shapes; without them the model's name must be in the table of shapes.
        lengths, rates: else ``default_lengths`` and the defaults for this kind of hardware.

    Raises PlanError if the model is not known or the devices are too few.
    """
    policy = policy or known_shape(args.actor.model_name_or_path)
    if not args.critic.model_name_or_path:
        critic = None
    elif critic is None:
        same = args.critic.model_name_or_path == args.actor.model_name_or_path
        critic = policy if same else known_shape(args.critic.model_name_or_path)
    needed = gpus_needed(args)
    if not hardware.per_node:
        per_node = min(needed, max(args.actor.num_gpus_per_node, 1))
        hardware = replace(hardware, per_node=per_node, nodes=-(-needed // per_node))
    elif needed > hardware.per_node * hardware.nodes:
        raise PlanError(
            f"the flags ask for {needed} GPUs, --hardware has {hardware.per_node} x {hardware.nodes}: lower"
            " --actor.num_nodes, --actor.num_gpus_per_node and the like, let models share GPUs (--train.colocate_all),"
            " or give --hardware more"
        )
    lengths = lengths or default_lengths(args)
    rates = rates or (CPU_RATES if hardware.is_cpu else Rates())
    cut = batches(args, lengths)
    held = memory(args, policy, critic, hardware, cut)
    done = work(args, policy, critic, cut, lengths)
    taken = seconds(args, policy, critic, hardware, cut, lengths, done, held, rates)
    return Plan(args, hardware, policy, critic, lengths, rates, cut, held, done, taken, unmodelled(args))
