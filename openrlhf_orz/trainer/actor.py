"""The policy: its model, the strict on-policy loss (Eq. 1), its optimizer steps, its weights' way to the engines.

In the order of a step: ``forward`` (old log-probs, where the step needs them), ``append`` (OpenRLHF's), ``fit``,
``broadcast_to_vllm``, ``save_checkpoint``. The models that never train stand at the end.
"""

import math
import time
from functools import partial
from pathlib import Path

import torch
from openrlhf.models import Actor, PolicyLoss
from openrlhf.trainer.ray.launcher import ReferenceModelActor
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer, PolicyModelActor

import openrlhf_orz.models.packed_attention  # noqa: F401  registers --ds.attn_implementation orz_packed
from openrlhf_orz.algo.advantages import cross_fit_advantages
from openrlhf_orz.algo.token_stats import LogProbGap, positive_nll
from openrlhf_orz.data.prompts import chat_template
from openrlhf_orz.models.adapters import cast_adapters, without_adapters
from openrlhf_orz.models.cpu_ops import install_rms_norm
from openrlhf_orz.models.dropout import turn_off_dropout
from openrlhf_orz.models.log_prob_head import NO_FP32_HEAD, install_log_prob_head
from openrlhf_orz.models.routers import ask_router_loss
from openrlhf_orz.models.shared_prefixes import install_prefix_sharing
from openrlhf_orz.rollout.sync.send import sync_to_engines
from openrlhf_orz.rollout.sync.transport import on_first_rank
from openrlhf_orz.runtime.cores import at_work, share_cores
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.skip_plan import needs_old_log_probs
from openrlhf_orz.trainer.live_objects import skip_reduction
from openrlhf_orz.trainer.mini_batches import PolicyReplayBuffer
from openrlhf_orz.trainer.rank import Rank, meet_by_file
from openrlhf_orz.trainer.saving import WeightAverage, save_hf, save_policy
from openrlhf_orz.trainer.step_guard import StepGuard


class OrzActor(Actor):
    """OpenRLHF's policy model, which computes a shared prompt once and log-probs of action tokens only, in tiles.

    Args:
        share: compute equal beginnings of a pack's sequences once (``--orz.share_prefixes``).
        on_cpu: use the CPU's RMSNorm.
        fp32_head: logits in float32 (``--orz.fp32_head``); raises ConfigError where the head is not ours.
        router_loss: have a mixture of experts return its router's loss (``--actor.aux_loss_coef``); shares nothing.
    """

    def __init__(
        self,
        *args,
        share: bool = True,
        on_cpu: bool = False,
        fp32_head: bool = False,
        router_loss: bool = False,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        model = without_adapters(self.model)
        ask_router_loss(model, router_loss)
        cast_adapters(self.model)
        turn_off_dropout(model)
        # in a list: a second name for the head's parameters would be saved and synced twice
        self._head = [install_log_prob_head(model, fp32_head)]
        if fp32_head and self._head == [None]:
            raise ConfigError(f"--orz.fp32_head: {model.config.model_type} {NO_FP32_HEAD}")
        if share:
            install_prefix_sharing(model)
        if on_cpu:
            install_rms_norm(model)

    def forward_tokens(
        self, sequences, attention_mask, position_ids, labels=None, needed=None, return_entropy=False, **mm_inputs
    ):
        """Log-probs at ``labels`` (B, S), computed where any row of ``needed`` (B, S) says so, else 0.

        With ring attention ``needed`` is None: each rank computes them for all its tokens.

        Returns:
            the model's output, whose logits hold them and entropies at the N columns needed, (B, N, 2); log-probs (B,
            S); entropies (B, S), None without ``return_entropy``.
        """
        (head,) = self._head
        if head is None or labels is None or mm_inputs:
            return super().forward_tokens(
                sequences, attention_mask, position_ids, labels, needed, return_entropy, **mm_inputs
            )
        if needed is None:
            needed = torch.ones_like(labels, dtype=torch.bool)
        columns = needed.any(0).nonzero()[:, 0]
        if not len(columns):  # the head takes part all the same: under ZeRO-3 all ranks gather it
            columns = columns.new_zeros(1)
        head.labels, head.temperature, head.with_entropy = labels[:, columns], self.temperature, return_entropy
        try:
            output = self.model(
                sequences, attention_mask=attention_mask, position_ids=position_ids, logits_to_keep=columns
            )
        finally:
            head.labels = None
        log_probs, entropy = (
            values.new_zeros(sequences.shape).index_copy(1, columns, values) for values in output["logits"].unbind(-1)
        )
        return output, log_probs, entropy if return_entropy else None


class OrzPolicyLoss(PolicyLoss):
    """Eq. 1. With ``on_policy`` the old policy is the policy itself: ratio 1, gradient of the log-probs.

    On the way it sums what the step's metrics need: ``tally`` the negated log-probs of the sampled tokens (an estimate
    of the entropy) and their number; ``gap`` the differences to the log-probs that vLLM sampled with, where it gave
    them (nan where it did not). A response whose mean |difference| is above ``mask_above`` has no advantage.
    """

    on_policy = False
    mask_above = math.inf
    nll_weight = 0.0  # --orz.positive_nll
    # of a micro-batch, which the trainer sets: right responses (B,), and the tokens of all that the step has
    right_B: torch.Tensor | None = None
    right_tokens = 0.0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.start_step()

    def start_step(self) -> None:
        """Forget the sums of the last step."""
        self.tally = torch.zeros(2, dtype=torch.float64)  # sum of -log p, tokens
        self.gap = LogProbGap()

    def forward(self, log_probs, old_log_probs, advantages, action_mask=None, **kwargs):
        with torch.no_grad():
            self.tally += torch.stack([-(log_probs * action_mask).double().sum(), action_mask.double().sum()]).cpu()
        kept_B1 = None
        if self.on_policy:
            old_log_probs = log_probs.detach()
        if kwargs.get("rollout_log_probs") is not None:
            gap_B = self.gap.add(kwargs["rollout_log_probs"], old_log_probs, action_mask)
            if self.mask_above < math.inf:
                kept_B1 = (gap_B <= self.mask_above)[:, None]
                advantages = advantages * kept_B1
        loss, *rest = super().forward(log_probs, old_log_probs, advantages, action_mask=action_mask, **kwargs)
        if self.nll_weight > 0:
            mask_BA = action_mask if kept_B1 is None else action_mask * kept_B1
            nll = positive_nll(log_probs, mask_BA, self.right_B, self.right_tokens) * kwargs.get("dp_size", 1)
            self.nll = nll.detach()
            loss = loss + self.nll_weight * nll
        return loss, *rest


class OrzActorPPOTrainer(ActorPPOTrainer):
    """The policy's optimizer steps on one rank."""

    replay_buffer_cls = PolicyReplayBuffer
    policy_loss_cls = OrzPolicyLoss
    average: WeightAverage | None = None  # with --train.enable_ema

    def __init__(self, strategy, *args, **kwargs):
        on_cpu = strategy.args.orz.device == "cpu"
        super().__init__(strategy, *args, dataloader_pin_memory=not on_cpu, **kwargs)
        self.actor_loss_fn.on_policy = needs_old_log_probs(self.args) is None
        self.actor_loss_fn.nll_weight = self.args.orz.positive_nll
        if self.args.orz.on_logprob_gap == "mask":
            self.actor_loss_fn.mask_above = self.args.orz.max_logprob_gap
        skip_reduction(self.actor.model)
        self.guard = StepGuard.of(self.args, self.actor.model, "policy")
        self.sync_metrics: dict[str, float] = {}  # of the last weight sync
        self.rearranged: dict[str, bool] = {}  # see verify_sync
        if self.args.orz.average_weights:
            in_parts = self.args.ds.zero_stage == 3 or self.args.ds.tensor_parallel_size > 1
            self.average = WeightAverage(self.actor.model.module, self.args.train.ema_beta, in_parts)

    def _init_vllm_sync_group(self, backend):
        if self.args.orz.device != "cpu":  # there is no NCCL on a CPU, and none is needed
            super()._init_vllm_sync_group(backend)

    def ppo_train(self, kl_ctl):
        self.sums: dict[str, float] = {}  # of losses over micro-batches
        self.steps, skipped = 0, self.guard.total
        self.actor_loss_fn.start_step()
        status = super().ppo_train(kl_ctl)
        # a micro-batch's loss is its share of the step's mean: the losses add up, but upstream averages them
        sums = self.strategy.all_reduce(self.actor_loss_fn.tally.float(), op="sum")
        status.update(self.strategy.all_reduce({key: total / max(1, self.steps) for key, total in self.sums.items()}))
        if "positive_nll" in status:  # OpenRLHF has it in the policy's loss
            status["policy_loss"] -= self.args.orz.positive_nll * status["positive_nll"]
        status["entropy"] = (sums[0] / sums[1].clamp(min=1)).item()
        status["policy_updates"] = self.steps
        status["policy_steps_skipped"] = self.guard.total - skipped
        status.update(self.actor_loss_fn.gap.metrics(self.strategy.all_reduce, self.actor_loss_fn.mask_above))
        return status

    def training_step(self, experience, kl_ctl, step, loss_batch_info=None):
        share_cores(self.args)
        if self.args.orz.positive_nll > 0:
            right_B = [float(right) for right in experience.info["right"]]  # OpenRLHF's buffer makes a list of them
            self.actor_loss_fn.right_B = torch.tensor(right_B, device=experience.action_mask.device)
            self.actor_loss_fn.right_tokens = self.replay_buffer.right_tokens[step]
        result = super().training_step(experience, kl_ctl, step, loss_batch_info)
        if self.args.orz.positive_nll > 0:
            self.sums["positive_nll"] = self.sums.get("positive_nll", 0.0) + self.actor_loss_fn.nll.item()
        losses = (
            ("policy_loss", "entropy_loss", "kl") if self.args.algo.kl.use_loss else ("policy_loss", "entropy_loss")
        )
        for key in losses:
            if key in result["metrics"]:
                self.sums[key] = self.sums.get(key, 0.0) + result["metrics"][key].item()
        if self.replay_buffer.dynamic_optimizer_step[step] and self.guard.after_step(self.replay_buffer, step):
            self.steps += 1
            if self.average is not None:
                self.average.update()
        return result

    def broadcast_to_vllm(self):
        self.sync_metrics = sync_to_engines(self, self.vllm_engines)

    def sync_engine(self, index: int) -> None:
        """Bring the weights to one engine, which was started again.

        On GPUs of its own it is no member of the group that weights are sent to. All form a new one then, and get the
        weights once more, also those that are generating by them.
        """
        if self.use_cuda_ipc or self.args.orz.device == "cpu":
            self.sync_metrics = sync_to_engines(self, [self.vllm_engines[index]])
        else:
            on_first_rank(self._form_group_again)
            self.sync_metrics = sync_to_engines(self, self.vllm_engines)

    def _form_group_again(self) -> None:
        if self.args.vllm.sync_with_ray:
            raise RuntimeError(
                "with --vllm.sync_with_ray an engine that was started again cannot join the group that weights are"
                " sent to: resume the run from its newest checkpoint (--ckpt.load_enable, or --orz.max_restarts)"
            )
        self._model_update_group.destroy()
        self._init_vllm_sync_group(self.args.vllm.sync_backend)


class OrzPolicyModelActor(PolicyModelActor):
    """A rank of the policy, in a process of Ray's."""

    trainer_cls = OrzActorPPOTrainer

    def _setup_distributed(self, strategy):
        meet_by_file(self, strategy.args)
        super()._setup_distributed(strategy)

    def init_model_from_pretrained(self, strategy, pretrain, max_steps=None, vllm_engines=None):
        args = strategy.args
        self.rank = Rank("_actor", args)
        self.model_cls = partial(
            OrzActor,
            share=args.orz.share_prefixes == "auto",
            on_cpu=args.orz.device == "cpu",
            fp32_head=args.orz.fp32_head,
            router_loss=args.actor.aux_loss_coef > 0,
        )
        super().init_model_from_pretrained(strategy, pretrain, max_steps, vllm_engines)
        self.save_hf_ckpt = False  # OpenRLHF's own copy in a checkpoint: save_checkpoint writes ours
        self.rank.resume(self.actor.model, self.trainer.replay_buffer)
        if self.trainer.average is not None and args.run.resume_from is not None:
            self.trainer.average.load(Path(args.run.resume_from) / "_actor", recut=args.run.universal is not None)
        if args.run.template is not None:
            # the saved model asks its questions as it was trained
            self.tokenizer.chat_template = chat_template(args.run.template)
        self.rank.tell("policy is loaded")

    def forward(self, *args, **kwargs):
        with at_work(self.strategy.args), self.rank.memory.phase("experience"):
            return super().forward(*args, **kwargs)

    def log_probs_at_temperature_1(self, *args, **kwargs):
        """As ``forward``, but of the policy before temperature, as vLLM's log-probs of a prompt are."""
        kept, self.actor.temperature = self.actor.temperature, 1.0
        try:
            return self.forward(*args, **kwargs)
        finally:
            self.actor.temperature = kept

    def set_values(self, values: list[torch.Tensor]) -> dict[str, float]:
        """Advantages of the buffered rollout from values that the critic's training has just taken.

        ``values``: (A,) of each sample, in the buffer's order. Returns metrics of the critic over all ranks.
        """
        items = self.trainer.replay_buffer.items
        advantages, metrics = cross_fit_advantages(
            [item.returns for item in items],
            values,
            [item.action_mask for item in items],
            scale=not self.strategy.args.algo.advantage.no_std_norm,
            total=lambda sums: self.strategy.all_reduce(sums, op="sum"),
        )
        for item, advantage in zip(items, advantages):
            item.advantages = advantage
        return metrics

    def fit(self, kl_ctl=0):
        start = time.monotonic()
        with at_work(self.strategy.args), self.rank.memory.phase("training"):
            status = super().fit(kl_ctl)
        return {**status, "seconds_actor": time.monotonic() - start, **self.rank.memory.take()}

    def drop_buffer(self) -> None:
        """Forget the rollout, in a step that trains the critic alone."""
        self.trainer.replay_buffer.clear()

    def broadcast_to_vllm(self):
        with self.rank.memory.phase("sync"):
            super().broadcast_to_vllm()

    def sync_engine(self, index: int) -> None:
        """Give one engine, which was started again, the weights that the others have."""
        with self.rank.memory.phase("sync"):
            self.trainer.sync_engine(index)

    def sync_report(self) -> dict[str, float]:
        """Metrics of the last weight sync."""
        return {**self.trainer.sync_metrics, **self.rank.memory.take()}

    def try_save_model(self) -> str | None:
        """Write what the run leaves of the policy; returns what failed, on the first rank."""
        error = save_policy(self.rank, self._save_hf, self.actor.model, self.trainer.average, self.strategy.args)
        self.saved = error is None
        return error

    def save_model(self):
        if not getattr(self, "saved", False) and (error := self.try_save_model()):  # OpenRLHF's call, after fit
            raise OSError(error)

    def checkpoint_path(self, tag):
        return str(self.rank.checkpoint_path(tag))

    def save_checkpoint(self, tag, *args, **kwargs):
        super().save_checkpoint(tag, *args, **kwargs)
        folder = self.rank.checkpoint_path(tag)
        if self.strategy.args.ckpt.save_hf:
            self._save_hf(str(folder / f"{tag}_hf"))
        if self.trainer.average is not None:
            self.trainer.average.save(folder / "_actor")
        self.rank.save(tag, self.actor.model, self.trainer.replay_buffer)

    def _save_hf(self, folder: str) -> None:
        save_hf(self.actor.model, self.tokenizer, folder, self.strategy.args)


class OrzReferenceModelActor(ReferenceModelActor):
    """The reference model, with ``--algo.kl.init_coef`` above 0: it meets and works as the policy's ranks do."""

    def init_model_from_pretrained(self, strategy, pretrain):
        super().init_model_from_pretrained(strategy, pretrain)
        ask_router_loss(getattr(self.model.model, "module", self.model.model), False)

    def _setup_distributed(self, strategy):
        meet_by_file(self, strategy.args)
        super()._setup_distributed(strategy)

    def forward(self, *args, **kwargs):
        with at_work(self.strategy.args):
            return super().forward(*args, **kwargs)
