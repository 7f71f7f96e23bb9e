"""How a run is laid out: the roles that share a GPU, the tokens of a sample, and the samples of each rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

from openrlhf_orz.settings.derive import data_parallel_ranks


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a prompt and of a response, the longest response, and where these numbers come from."""

    prompt: float
    response: float
    longest_response: float
    source: str

    @property
    def sample(self) -> float:
        return self.prompt + self.response


def default_lengths(
    args: SimpleNamespace, prompt: float | None = None, response: float | None = None, seen: float | None = None
) -> Lengths:
    """The given mean lengths, or of the data where it was ``seen``; else one is assumed, and ``source`` says so."""
    room = args.rollout.max_new_tokens or args.data.max_len
    said = []
    if prompt is None and seen is not None:
        prompt = seen
        said.append(f"prompt {seen:.1f} tokens: the mean of the data")
    elif prompt is None:
        prompt = min(160, args.orz.max_prompt_len, args.data.max_len // 2)
        said.append(f"prompt {prompt:g} tokens: an assumption, --prompt_tokens sets it")
    longest = max(1, min(room, args.data.max_len - int(prompt)))
    if response is None:
        response = max(1, longest // 4)
        said.append(
            f"response {response:g} tokens: a quarter of the longest, an assumption, --response_tokens sets it"
        )
    return Lengths(prompt, min(response, longest), longest, "; ".join(said) or "as given")


def places(args: SimpleNamespace) -> dict[str, list[str]]:
    """The groups of GPUs by name, each with the roles that share it."""
    roles = ["policy"]
    critic, reference = bool(args.critic.model_name_or_path), args.algo.kl.init_coef > 0
    if args.train.colocate_all:
        trainers = roles + ["critic"] * critic + ["ref"] * reference
        if args.train.async_enable:
            return {"trainers": trainers, "engines": ["engine"]}
        return {"all": [*trainers, "engine"]}
    found = {"policy": roles}
    if reference:
        if args.train.colocate_actor_ref:
            found["policy"] = ["policy", "ref"]
        else:
            found["reference"] = ["ref"]
    if critic:
        found["critic"] = ["critic"]
    return found | {"engines": ["engine"]}


def devices(args: SimpleNamespace) -> dict[str, int]:
    """The number of devices of each place."""
    parts = {"policy": args.actor, "critic": args.critic, "ref": args.ref}
    found = {}
    for place, roles in places(args).items():
        part = parts.get(roles[0])
        found[place] = (
            part.num_nodes * part.num_gpus_per_node if part else args.vllm.num_engines * args.vllm.tensor_parallel_size
        )
    return found


@dataclass(frozen=True)
class Batches:
    """Samples and packs of one step.

    ``samples_per_rank`` and the mini-batches are those of the rank with most samples. A pack is a micro-batch of one
    rank; packs are counted for samples of mean length, ``longest_pack`` and ``forward_pack`` are most tokens of one.
    Padded, they are counted for lengths that vary, and the ``_padding`` are tokens with padding over those without.
    """

    samples: int
    data_parallel_ranks: int
    samples_per_rank: int
    smallest_per_rank: int
    policy_updates: int
    policy_mini_batch: int
    critic_updates: int
    critic_mini_batch: int
    tokens: int
    longest_pack: int
    forward_pack: int
    forward_packs: int
    policy_micro_batches: int
    critic_micro_batches: int
    forward_padding: float = 1.0
    policy_padding: float = 1.0
    critic_padding: float = 1.0


def _pack_tokens(args: SimpleNamespace, budget: int, fixed: int) -> int:
    """Most tokens of one pack on one rank: the budget, or one sample that is longer than it."""
    longest = args.data.max_len
    if args.orz.fixed_micro_batches:
        return -(-fixed * longest // args.ds.ring_attn_size)
    together = args.ds.ring_attn_size * args.ds.tensor_parallel_size
    return -(-max(budget * together, longest) // args.ds.ring_attn_size)


def padded_batches(lengths: Lengths, size: int, budget: int | None, fixed: int) -> tuple[int, float]:
    """(micro-batches, tokens with padding over those without) of ``size`` samples, longest first.

    Responses are taken to end at a constant rate until the longest (an exponential distribution, cut there).
    ``budget``: tokens of a micro-batch, padding included; None: ``fixed`` samples are in each.
    """
    low, high = lengths.response, 1e9  # the rate's inverse, for which the mean is as given
    for _ in range(60):
        middle = math.sqrt(low * high)
        if middle * -math.expm1(-lengths.longest_response / middle) < lengths.response:
            low = middle
        else:
            high = middle
    each = [lengths.prompt + min(lengths.longest_response, -low * math.log((i + 0.5) / size)) for i in range(size)]
    batches, first, tokens = 0, 0, 0.0
    while first < size:
        count = fixed if budget is None else max(1, int(budget // each[first]))
        tokens += each[first] * min(count, size - first)
        batches, first = batches + 1, first + count
    return batches, tokens / sum(each)


def cut_batches(args: SimpleNamespace, lengths: Lengths) -> Batches:
    """How a rollout is divided, from OpenRLHF's nested, checked arguments."""
    samples = args.rollout.batch_size * args.rollout.n_samples_per_prompt
    ranks = data_parallel_ranks(args)
    largest, smallest = -(-samples // ranks), samples // ranks
    policy = min(args.orz.policy_updates, smallest)
    critic = min(args.orz.critic_updates, smallest) if args.critic.model_name_or_path else 0

    def packs(size: int, part: SimpleNamespace) -> tuple[int, float]:
        """(packs, padding) of ``size`` samples."""
        budget = part.max_tokens_per_gpu * args.ds.ring_attn_size * args.ds.tensor_parallel_size
        if not args.ds.packing_samples:
            fixed = args.orz.fixed_micro_batches
            return padded_batches(lengths, size, None if fixed else budget, part.micro_batch_size)
        if args.orz.fixed_micro_batches:
            return -(-size // part.micro_batch_size), 1.0
        fit = max(1, int(budget // lengths.sample))  # a pack holds whole samples only
        return math.ceil(size / fit), 1.0

    def micro_batches(updates: int) -> tuple[int, float]:
        count, padding = packs(-(-largest // updates), args.train) if updates else (0, 1.0)
        return updates * count, padding

    forward_packs, forward_padding = packs(largest, args.rollout)
    of_policy, policy_padding = micro_batches(policy)
    of_critic, critic_padding = micro_batches(critic)
    return Batches(
        samples=samples,
        data_parallel_ranks=ranks,
        samples_per_rank=largest,
        smallest_per_rank=smallest,
        policy_updates=policy * args.train.max_epochs,
        policy_mini_batch=-(-largest // policy),
        critic_updates=critic * args.train.max_epochs * args.orz.critic_epochs,
        critic_mini_batch=-(-largest // critic) if critic else 0,
        tokens=round(samples * lengths.sample),
        longest_pack=_pack_tokens(args, args.train.max_tokens_per_gpu, args.train.micro_batch_size),
        forward_pack=_pack_tokens(args, args.rollout.max_tokens_per_gpu, args.rollout.micro_batch_size),
        forward_packs=forward_packs,
        policy_micro_batches=of_policy * args.train.max_epochs,
        critic_micro_batches=of_critic * args.train.max_epochs * args.orz.critic_epochs,
        forward_padding=forward_padding,
        policy_padding=policy_padding,
        critic_padding=critic_padding,
    )
