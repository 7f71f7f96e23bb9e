"""Experience making: only the forwards that the step needs, advantages on whole batches."""

import ray
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from openrlhf.utils.logging_utils import init_logger

from openrlhf_orz.algo.advantages import (
    NORMALISED,
    discounted_sum,
    gae,
    length_lambda,
    mean_advantages,
    tied_responses,
)
from openrlhf_orz.algo.minibatch import count_micro_batches, cut_micro_batches, cut_mini_batches, sharing_key
from openrlhf_orz.algo.token_stats import explained_variance
from openrlhf_orz.runtime.cores import cores
from openrlhf_orz.settings.derive import data_parallel_ranks
from openrlhf_orz.settings.skip_plan import needs_old_log_probs
from openrlhf_orz.trainer.batches import in_rollout_order, regroup
from openrlhf_orz.trainer.critic_beside import EarlyValues

logger = init_logger(__name__)

EARLY: list = []  # stands for references to values that are asked for already


class OrzExperienceMaker(RemoteExperienceMaker):
    """OpenRLHF's experience maker with our batches, advantages and skipped forwards."""

    early_values: EarlyValues | None = None  # where the critic works beside generation
    # Of the step under way, as OpenRLHF's methods have no room for it:
    rollout: list[Experience]  # its samples, in the prompts' order
    batches: list[Experience]  # what they were regrouped to, for the forwards
    lambdas: list[torch.Tensor]  # (B,) of each experience, with --orz.lambda_policy
    sums: list[torch.Tensor]  # of rewards, (B, A) of each experience, where --orz.baseline needs them
    notes: dict[str, float] = {}  # metrics of its advantages, where flags change how they are made

    def split_rollout_samples(self, rollout_samples):
        """Batches for the forwards: packs of neighbours by prompt, or of --rollout.micro_batch_size samples."""
        if not self.args.orz.fixed_micro_batches and not self.args.ds.packing_samples:
            return super().split_rollout_samples(rollout_samples)
        for i, sample in enumerate(rollout_samples):
            sample.index = [i]
        self.rollout = rollout_samples
        return regroup(rollout_samples, self.cut(rollout_samples), self.tokenizer.pad_token_id)

    def cut(self, rollout_samples: list[Experience]) -> list[list[int]]:
        """The places of the samples of each batch; the number of batches is the same on every rank."""
        args = self.args
        lengths = [int(sample.total_length) for sample in rollout_samples]
        together, ranks = args.ds.ring_attn_size * args.ds.tensor_parallel_size, data_parallel_ranks(args)

        def for_every_rank(count: int) -> int:
            """Round up, so that every rank (on a CPU every core) gets the same number of non-empty batches."""
            count = -(-count // ranks)
            at_once = min(count, max(1, cores() // ranks)) if args.orz.device == "cpu" else 1
            return min(-(-count // at_once) * at_once, len(lengths) // ranks) * ranks

        if args.orz.fixed_micro_batches:
            count = for_every_rank(-(-len(lengths) // args.rollout.micro_batch_size))
            return cut_mini_batches(len(lengths), count)
        keys = [sharing_key(x.sequences[0][:n], int(x.response_length)) for x, n in zip(rollout_samples, lengths)]
        count = for_every_rank(count_micro_batches(lengths, args.rollout.max_tokens_per_gpu * together, keys))
        return cut_micro_batches(lengths, count, keys)

    def make_experience(self, samples_list):
        self.batches = samples_list
        experiences = super().make_experience(samples_list)
        self.rollout = self.batches = []
        for experience in experiences:
            for key in ("kl", "logprobs_diff"):  # a mean over no tokens, of an empty response, is not a number
                experience.info[key] = experience.info[key].nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf)
        return experiences

    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """As upstream, but where all compared rewards are equal the advantages are exactly 0. With a KL penalty they
        are its sums, unless they are normalised over the batch after that, by penalties that differ.

        Otherwise rounding would be normalised into a signal, and Adam scales any gradient to the size of a step.
        """
        kl, penalties = self.args.algo.kl, None
        if kl.init_coef > 0 and not kl.use_loss:  # rewards of tokens; OpenRLHF drops the kl that they are made of
            penalties = [-self.kl_ctl.value * experience.kl * experience.action_mask for experience in experiences]
        self.lambdas, self.sums = [], []
        if self.args.orz.positive_nll > 0:  # before OpenRLHF changes rewards by length
            for experience in experiences:
                experience.info["right"] = (experience.rewards >= self.args.orz.right_reward).float()
        experiences = super().compute_advantages_and_returns(experiences)
        self.notes = {"lambda_policy": torch.cat(self.lambdas).mean().item()} if self.lambdas else {}
        advantage = self.args.algo.advantage
        estimator = advantage.estimator
        if self.args.orz.baseline != "critic":
            baseline = self._baseline_of_step(experiences)
            self.notes["baseline_critic"] = float(baseline == "critic")
            if baseline != "critic":
                self._subtract_means(experiences, baseline)
                estimator = "reinforce_baseline" if baseline == "group" else "reinforce"  # compares rewards likewise
        rewards_B = in_rollout_order(experiences, torch.cat([experience.rewards for experience in experiences]))
        samples = self.args.rollout.n_samples_per_prompt
        tied_B = tied_responses(rewards_B, estimator, samples, advantage.gamma)
        if penalties is None:
            for experience in experiences:
                experience.advantages[tied_B[experience.index]] = 0.0
        elif estimator not in NORMALISED:
            for experience, penalty_BA in zip(experiences, penalties):
                tied = tied_B[experience.index]
                experience.advantages[tied] = discounted_sum(penalty_BA, 1.0)[tied].to(experience.advantages)
        return experiences

    def _baseline_of_step(self, experiences: list[Experience]) -> str:
        """``--orz.baseline``; where that is "auto": "critic" if its values explain rewards, else a mean's name."""
        if self.args.orz.baseline != "auto":
            return self.args.orz.baseline
        rows = ([e.values for e in experiences], self.sums, [e.action_mask for e in experiences])
        if explained_variance(*(torch.cat([x.flatten() for x in each]) for each in rows)) > 0:
            return "critic"  # a nan, of rewards that are all equal, is not above 0
        return "group" if self.args.rollout.n_samples_per_prompt > 1 else "batch"

    def _subtract_means(self, experiences: list[Experience], baseline: str) -> None:
        """Replace the critic's advantages: rewards less the mean of their "group" or of the "batch"."""
        self.notes.pop("lambda_policy", None)  # it weighs the critic's values
        advantages = mean_advantages(
            self.sums,
            [experience.action_mask for experience in experiences],
            [i for experience in experiences for i in experience.index],
            self.args.rollout.n_samples_per_prompt if baseline == "group" else None,
            scale=not self.args.algo.advantage.no_std_norm,
        )
        for experience, one in zip(experiences, advantages):
            experience.advantages = one

    def _dispatch_forward(self, group, sync_condition, **kwargs):
        """Run only the forwards that the step needs (settings/skip_plan.py)."""
        if group is self.actor_model_group and needs_old_log_probs(self.args) is None:
            # placeholders: the policy loss takes the old log-probs from its own forward
            return [ray.put([torch.zeros(mask.shape) for mask in kwargs["action_mask"]])]
        if group is self.critic_model_group and self.args.orz.cross_fit_values:
            return [ray.put([None] * len(kwargs["action_mask"]))]
        if group is self.critic_model_group and self.early_values is not None:
            self.early_values.ask_rest(self.rollout)
            return EARLY
        return super()._dispatch_forward(group, sync_condition, **kwargs)

    def _flatten_results(self, refs, duplicate_factor):
        """OpenRLHF waits here for what it has dispatched, one model after the other."""
        if refs is EARLY:
            return self.early_values.take(self.rollout, self.batches)
        return super()._flatten_results(refs, duplicate_factor)

    def get_advantages_and_returns(
        self,
        values: torch.Tensor | None,
        rewards: torch.Tensor,
        action_mask: torch.Tensor,
        gamma: float,
        lambd: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """GAE. Without values (--orz.cross_fit_values) the advantages are 0 until the critic's training gives values.

        With --orz.lambda_policy the advantages have a lambda of their own, the returns keep ``lambd``. All
        tensors are (B, A); returns advantages and returns.
        """
        if values is None:
            returns = discounted_sum(rewards * action_mask, gamma)
            return torch.zeros_like(returns), returns
        advantages, returns = gae(values, rewards, action_mask, gamma, lambd)
        if self.args.orz.baseline != "critic":
            self.sums.append(discounted_sum(rewards * action_mask, 1.0))
        given = self.args.orz.lambda_policy
        if given is not None:
            lengths_B = action_mask.sum(-1)
            lambda_B = length_lambda(lengths_B, self.args.orz.lambda_alpha)
            if given != "length":
                lambda_B = torch.full_like(lambda_B, float(given))
            self.lambdas.append(lambda_B)
            advantages, _ = gae(values, rewards, action_mask, gamma, lambda_B if given == "length" else float(given))
        return advantages, returns

    def get_cumulative_returns(self, rewards: torch.Tensor, action_mask: torch.Tensor, gamma: float) -> torch.Tensor:
        """Returns of the estimators without a critic, (B, A): OpenRLHF's, on whole batches at once."""
        return discounted_sum(rewards * action_mask, gamma)
