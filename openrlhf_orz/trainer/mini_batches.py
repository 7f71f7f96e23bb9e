"""The replay buffer that cuts a rollout into exactly the optimizer steps that ORZ asks for."""

import random

import torch
from deepspeed.accelerator import get_accelerator
from openrlhf.trainer.ppo_utils.replay_buffer import NaiveReplayBuffer
from openrlhf.utils.logging_utils import init_logger
from torch import distributed as dist

from openrlhf_orz.algo.minibatch import (
    count_micro_batches,
    cut_group_batches,
    cut_micro_batches,
    cut_mini_batches,
    sharing_key,
)

logger = init_logger(__name__)


class OrzReplayBuffer(NaiveReplayBuffer):
    """Cuts all samples, also those of a partial last rollout, into as many optimizer steps as ``wanted_updates`` says.

    Each sample is trained on exactly once a pass. The samples are shuffled before they are cut into mini-batches;
    only then is each mini-batch cut into micro-batches, by tokens or by number of samples.
    """

    model = ""  # whose mini-batches these are
    rollouts = 0

    def wanted_passes(self, args) -> int:
        """Passes over the rollout, each cut anew into ``wanted_updates`` optimizer steps."""
        return 1

    def wanted_updates(self, args) -> int:
        """Optimizer steps for each rollout."""
        raise NotImplementedError

    def groups(self, args) -> list[bytes] | None:
        """A key of each sample where samples with equal keys belong into one mini-batch, else None."""
        return None

    def partition_micro_batches(self, strategy):
        passes = range(self.wanted_passes(strategy.args))
        steps = [step for number in passes for step in self._cut_pass(strategy, number)]
        self.rollouts += 1
        return steps

    def _cut_pass(self, strategy, number: int) -> list[list[list[int]]]:
        """Pass ``number`` over the rollout: for each optimizer step its micro-batches of indices."""
        args = strategy.args
        group = strategy.ds_device_mesh["dp"].get_group()

        def agree(values: list[int], op) -> list[int]:
            tensor = torch.tensor(values, dtype=torch.long, device=get_accelerator().current_device_name())
            dist.all_reduce(tensor, op=op, group=group)
            return tensor.tolist()

        def rng(rank: int, updates: int) -> random.Random | None:
            again = f"-{number}" if number else ""
            seed = f"{args.train.seed}-{rank}-{self.model}_updates-{self.rollouts}{again}"
            return random.Random(seed) if updates > 1 else None

        wanted, keys_of_groups = self.wanted_updates(args), self.groups(args)
        lengths = [int(item.total_length) for item in self.items]
        if keys_of_groups is None:
            updates = min(wanted, *agree([len(lengths)], dist.ReduceOp.MIN))
            # the same for all ranks that hold the same samples (ring attention, tensor parallel)
            mini_batches = cut_mini_batches(len(lengths), updates, rng(dist.get_rank(group), updates))
        else:  # a group lies on several ranks: all cut the same groups alike, as often as leaves each rank some
            own: list = [None] * dist.get_world_size(group)
            dist.all_gather_object(own, list(dict.fromkeys(keys_of_groups)), group=group)
            groups = list(dict.fromkeys(key for keys in own for key in keys))
            numbers = range(min(wanted, len(groups)), 0, -1)
            cuts = [cut_group_batches(keys_of_groups, updates, rng(0, updates), groups) for updates in numbers]
            fewest = agree([min(map(len, cut)) for cut in cuts], dist.ReduceOp.MIN)
            mini_batches = next(cut for cut, samples in zip(cuts, fewest) if samples)
        if len(mini_batches) < wanted:
            what = "samples on a rank" if keys_of_groups is None else "prompts of which each rank has a part"
            logger.warning(
                f"this rollout has fewer {what} than --orz.{self.model}_updates {wanted}: {len(mini_batches)} steps"
            )

        keys = (
            [sharing_key(x.sequences, int(x.response_length)) for x in self.items] if args.ds.packing_samples else None
        )
        budget = args.train.max_tokens_per_gpu * args.ds.ring_attn_size * args.ds.tensor_parallel_size

        def of(indices):
            return [lengths[i] for i in indices], keys and [keys[i] for i in indices]

        def count(indices):
            if args.orz.fixed_micro_batches:
                return -(-len(indices) // args.train.micro_batch_size)
            chosen, by = of(indices)
            return count_micro_batches(chosen, budget, by)

        # every rank must run as many micro-batches, and none of them empty
        needed = agree([count(indices) for indices in mini_batches], dist.ReduceOp.MAX)
        possible = agree([len(indices) for indices in mini_batches], dist.ReduceOp.MIN)
        partitions = []
        for indices, micro_batches in zip(mini_batches, map(min, needed, possible)):
            if args.orz.fixed_micro_batches:
                cut = cut_mini_batches(len(indices), micro_batches)
            else:
                chosen, by = of(indices)
                cut = cut_micro_batches(chosen, micro_batches, by)
            partitions.append([[indices[i] for i in part] for part in cut])
        return partitions


class PolicyReplayBuffer(OrzReplayBuffer):
    """The policy's: one step in strict on-policy training."""

    model = "policy"

    def wanted_updates(self, args) -> int:
        return args.orz.policy_updates

    def setup_dynamic_batch(self, strategy):
        """As OpenRLHF's; with --orz.positive_nll also the tokens of right responses in each micro-batch's step."""
        super().setup_dynamic_batch(strategy)
        if strategy.args.orz.positive_nll > 0:
            own, tokens = [], 0.0
            for indices, last in zip(self.dynamic_indices, self.dynamic_optimizer_step):
                items = [self.items[i] for i in indices]
                tokens += sum(float(item.action_mask.sum()) * float(item.info["right"]) for item in items)
                if last:
                    own.append(tokens)
                    tokens = 0.0
            totals = torch.tensor(own, device=get_accelerator().current_device_name())
            dist.all_reduce(totals, group=strategy.ds_device_mesh["dp"].get_group())
            steps = iter(totals.tolist())
            self.right_tokens, total = [], next(steps, 0.0)
            for last in self.dynamic_optimizer_step:
                self.right_tokens.append(total)
                total = next(steps, 0.0) if last else total


class CriticReplayBuffer(OrzReplayBuffer):
    """The critic's: twelve steps in the paper (Sec. 3.1)."""

    model = "critic"

    def wanted_updates(self, args) -> int:
        return args.orz.critic_updates

    def wanted_passes(self, args) -> int:
        return args.orz.critic_epochs

    def groups(self, args) -> list[bytes] | None:
        if args.orz.critic_minibatch == "samples":
            return None
        return [sharing_key(x.sequences, int(x.response_length), look=0) for x in self.items]
