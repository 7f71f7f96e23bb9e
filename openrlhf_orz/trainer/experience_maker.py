"""Experience making: only the forwards that the step needs, advantages on whole batches."""

import ray
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

from openrlhf_orz.algo.advantages import discounted_sum, gae
from openrlhf_orz.algo.minibatch import count_micro_batches, cut_micro_batches, sharing_key
from openrlhf_orz.skip_plan import needs_old_log_probs


class OrzExperienceMaker(RemoteExperienceMaker):
    def split_rollout_samples(self, rollout_samples):
        """Batches for the forwards: packs of neighbours by prompt, or of --rollout.micro_batch_size samples."""
        args = self.args
        if args.orz.fixed_micro_batches:
            args.train.dynamic_batch_enable = False
            try:
                return super().split_rollout_samples(rollout_samples)
            finally:
                args.train.dynamic_batch_enable = True
        if not args.ds.packing_samples:
            return super().split_rollout_samples(rollout_samples)
        for i, sample in enumerate(rollout_samples):
            sample.index = [i]
        lengths = [int(sample.total_length) for sample in rollout_samples]
        keys = [sharing_key(x.sequences[0][:n], int(x.response_length)) for x, n in zip(rollout_samples, lengths)]
        together = args.ds.ring_attn_size * args.ds.tensor_parallel_size
        ranks = args.actor.num_nodes * args.actor.num_gpus_per_node // together
        count = count_micro_batches(lengths, args.rollout.max_tokens_per_gpu * together, keys)
        count = min(-(-count // ranks), len(lengths) // ranks) * ranks  # as many for every rank
        return [
            Experience.concat_experiences([rollout_samples[i] for i in part], self.tokenizer.pad_token_id)
            for part in cut_micro_batches(lengths, count, keys)
        ]

    def _dispatch_forward(self, group, sync_condition, **kwargs):
        """Follows the skip plan: what a step does not need is not computed."""
        if group is self.actor_model_group and needs_old_log_probs(self.args) is None:
            # placeholders: the policy loss takes the old log-probs from its own forward
            return [ray.put([torch.zeros(mask.shape) for mask in kwargs["action_mask"]])]
        if group is self.critic_model_group and self.args.orz.cross_fit_values:
            return [ray.put([None] * len(kwargs["action_mask"]))]
        return super()._dispatch_forward(group, sync_condition, **kwargs)

    def get_advantages_and_returns(self, values, rewards, action_mask, gamma, lambd):
        if values is None:  # cross-fitted: the returns need none, the advantages follow the critic's training
            returns = discounted_sum(rewards * action_mask, gamma)
            return torch.zeros_like(returns), returns
        return gae(values, rewards, action_mask, gamma, lambd)

    def get_cumulative_returns(self, rewards, action_mask, gamma):
        return discounted_sum(rewards * action_mask, gamma)


def response_lengths(experiences: list[Experience]) -> torch.Tensor:
    """Action tokens of each response, (B,) long."""
    return torch.cat([experience.action_mask.long().sum(-1) for experience in experiences])
