"""How a rollout is cut: samples on each rank, in each optimizer step and micro-batch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a prompt and of a response, the longest response, and where these come from."""

    prompt: float
    response: float
    longest_response: float
    source: str

    @property
    def sample(self) -> float:
        return self.prompt + self.response


@dataclass(frozen=True)
class Batches:
    """``x_per_rank``: samples on the rank with most of them. Micro-batches are those of mean lengths, of one rank."""

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


def data_parallel(args, role: str = "actor") -> int:
    """Ranks of ``role`` that train on samples of their own."""
    part = getattr(args, role)
    return max(1, part.num_nodes * part.num_gpus_per_node // args.ds.ring_attn_size // args.ds.tensor_parallel_size)


def pack(args, budget: int, fixed: int) -> int:
    """Most tokens of one micro-batch on one rank: the budget, or one sample that is longer than it."""
    longest = args.data.max_len
    if args.orz.fixed_micro_batches:
        return -(-fixed * longest // args.ds.ring_attn_size)
    together = args.ds.ring_attn_size * args.ds.tensor_parallel_size
    return -(-max(budget * together, longest) // args.ds.ring_attn_size)


def batches(args, lengths: Lengths) -> Batches:
    """From OpenRLHF's nested, checked arguments."""
    samples = args.rollout.batch_size * args.rollout.n_samples_per_prompt
    ranks = data_parallel(args)
    largest, smallest = -(-samples // ranks), samples // ranks
    policy = min(args.orz.policy_updates, smallest)
    critic = min(args.orz.critic_updates, smallest) if args.critic.model_name_or_path else 0

    def packs(size: int, part) -> int:
        if args.orz.fixed_micro_batches:
            return -(-size // part.micro_batch_size)
        budget = part.max_tokens_per_gpu * args.ds.ring_attn_size * args.ds.tensor_parallel_size
        fit = max(1, int(budget // lengths.sample))  # whole samples alone share a pack
        return math.ceil(size / fit)

    def micro(updates):
        return updates * packs(-(-largest // updates), args.train) if updates else 0

    return Batches(
        samples=samples,
        data_parallel_ranks=ranks,
        samples_per_rank=largest,
        smallest_per_rank=smallest,
        policy_updates=policy * args.train.max_epochs,
        policy_mini_batch=-(-largest // policy),
        critic_updates=critic * args.train.max_epochs,
        critic_mini_batch=-(-largest // critic) if critic else 0,
        tokens=round(samples * lengths.sample),
        longest_pack=pack(args, args.train.max_tokens_per_gpu, args.train.micro_batch_size),
        forward_pack=pack(args, args.rollout.max_tokens_per_gpu, args.rollout.micro_batch_size),
        forward_packs=packs(largest, args.rollout),
        policy_micro_batches=micro(policy) * args.train.max_epochs,
        critic_micro_batches=micro(critic) * args.train.max_epochs,
    )
