"""The policy: strict on-policy loss, exact step metrics, warm-up in steps, weight sync without CUDA."""

import time
from functools import partial

import torch
from openrlhf.models import PolicyLoss
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer, PolicyModelActor

from openrlhf_orz.algo.cross_fit import cross_fit_advantages
from openrlhf_orz.algo.log_prob_gap import LogProbGap
from openrlhf_orz.data.prompts import chat_template
from openrlhf_orz.rollout.sync.send import sync_to_engines
from openrlhf_orz.runtime.cores import RendezvousByFile, at_work, share_cores
from openrlhf_orz.settings.skip_plan import needs_old_log_probs
from openrlhf_orz.trainer.mini_batches import OrzReplayBuffer
from openrlhf_orz.trainer.nonfinite import StepGuard
from openrlhf_orz.trainer.policy_model import OrzActor
from openrlhf_orz.trainer.rank_state import RankState
from openrlhf_orz.trainer.single_rank import skip_reduction


def warmup_ratio(steps: int, max_steps: int) -> float:
    """The ratio for which OpenRLHF's ceil(max_steps * ratio) is ``steps``, safe against rounding."""
    return max(0.0, steps - 0.5) / max(1, max_steps)


class OrzPolicyLoss(PolicyLoss):
    """Eq. 1. With ``on_policy`` the old policy is the policy itself: ratio 1, gradient of the log-probs.

    ``tally`` sums, on the way, the negated log-probs of the sampled tokens: an estimate of the entropy. ``gap`` takes
    the difference to the log-probs that vLLM sampled the tokens with, where it gave them (nan where it did not).
    """

    on_policy = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tally = torch.zeros(2, dtype=torch.float64)  # sum of -log p, tokens
        self.gap = LogProbGap()

    def forward(self, log_probs, old_log_probs, advantages, action_mask=None, **kwargs):
        with torch.no_grad():
            self.tally += torch.stack([-(log_probs * action_mask).double().sum(), action_mask.double().sum()]).cpu()
        if self.on_policy:
            old_log_probs = log_probs.detach()
        if kwargs.get("rollout_log_probs") is not None:
            self.gap.add(kwargs["rollout_log_probs"], old_log_probs, action_mask)
        return super().forward(log_probs, old_log_probs, advantages, action_mask=action_mask, **kwargs)


class OrzActorPPOTrainer(ActorPPOTrainer):
    replay_buffer_cls = OrzReplayBuffer
    policy_loss_cls = OrzPolicyLoss

    def __init__(self, strategy, *args, **kwargs):
        on_cpu = strategy.args.orz.device == "cpu"
        super().__init__(strategy, *args, dataloader_pin_memory=not on_cpu, **kwargs)
        self.actor_loss_fn.on_policy = needs_old_log_probs(self.args) is None
        skip_reduction(self.actor.model)
        self.guard = StepGuard.of(self, self.actor.model, "policy")

    def _init_vllm_sync_group(self, backend):
        if self.args.orz.device != "cpu":  # no NCCL there, and none needed
            super()._init_vllm_sync_group(backend)

    def ppo_train(self, kl_ctl):
        self.loss_sum, self.steps, skipped = 0.0, 0, self.guard.total
        self.actor_loss_fn.tally.zero_()
        self.actor_loss_fn.gap = LogProbGap()
        status = super().ppo_train(kl_ctl)
        # A micro-batch's loss is its share of the step's mean: they add up, where upstream averages them.
        sums = self.strategy.all_reduce(self.actor_loss_fn.tally.float(), op="sum")
        status["policy_loss"] = self.strategy.all_reduce(self.loss_sum / max(1, self.steps))
        status["entropy"] = (sums[0] / sums[1].clamp(min=1)).item()
        status["policy_updates"] = self.steps
        status["policy_steps_skipped"] = self.guard.total - skipped
        status.update(self.actor_loss_fn.gap.metrics(self.strategy.all_reduce))
        return status

    def training_step(self, experience, kl_ctl, step, loss_batch_info=None):
        share_cores(self.args)
        result = super().training_step(experience, kl_ctl, step, loss_batch_info)
        self.loss_sum += result["metrics"]["policy_loss"].item()
        if self.replay_buffer.dynamic_optimizer_step[step]:
            self.steps += self.guard.after_step(self.replay_buffer, step)
        return result

    def broadcast_to_vllm(self):
        self.sync_report = sync_to_engines(self, broadcast=super().broadcast_to_vllm)


class OrzPolicyModelActor(RankState, RendezvousByFile, PolicyModelActor):
    trainer_cls = OrzActorPPOTrainer
    role = "_actor"

    def ds_engine(self):
        return self.actor.model

    def init_model_from_pretrained(self, strategy, pretrain, max_steps=None, vllm_engines=None):
        args = strategy.args
        self.model_cls = partial(OrzActor, share=args.orz.share_prefixes == "auto", on_cpu=args.orz.device == "cpu")
        if args.orz.actor_warmup_steps is not None:
            args.actor.lr_warmup_ratio = warmup_ratio(args.orz.actor_warmup_steps, max_steps)
        super().init_model_from_pretrained(strategy, pretrain, max_steps, vllm_engines)
        if not args.data.apply_chat_template:
            # what is saved asks its questions in the way it was trained
            self.tokenizer.chat_template = chat_template(args.orz.prompt_template)

    def forward(self, *args, **kwargs):
        with at_work(self.strategy.args), self.memory.phase("experience"):
            return super().forward(*args, **kwargs)

    def broadcast_to_vllm(self):
        with self.memory.phase("sync"):
            super().broadcast_to_vllm()

    def sync_engine(self, index: int):
        """Give one engine, which has been started anew, the weights that the others have."""
        engines, self.trainer.vllm_engines = self.trainer.vllm_engines, [self.trainer.vllm_engines[index]]
        try:
            self.broadcast_to_vllm()
        finally:
            self.trainer.vllm_engines = engines

    def sync_report(self):
        """Metrics of the last weight sync."""
        return {**self.trainer.sync_report, **self.memory.take()}

    def fit(self, kl_ctl=0):
        start = time.monotonic()
        with at_work(self.strategy.args), self.memory.phase("training"):
            status = super().fit(kl_ctl)
        return {**status, "seconds_actor": time.monotonic() - start, **self.memory.take()}

    def set_values(self, values):
        """Advantages of the buffered rollout from values that the critic's training has just taken.

        ``values``: (A,) of each sample, in the buffer's order. Returns metrics of the critic over all ranks.
        """
        items = self.trainer.replay_buffer.items
        advantages, metrics = cross_fit_advantages(
            [item.returns for item in items], values, [item.action_mask for item in items],
            scale=not self.strategy.args.algo.advantage.no_std_norm,
            total=lambda sums: self.strategy.all_reduce(sums, op="sum"),
        )  # fmt: skip
        for item, advantage in zip(items, advantages):
            item.advantages = advantage
        return metrics

    def drop_buffer(self):
        """Forget the rollout, in a step that trains the critic alone."""
        self.trainer.replay_buffer.clear()
