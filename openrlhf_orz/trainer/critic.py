"""The critic: K optimizer steps per rollout (Sec. 3.1), value-head initialisation by flag, exact step metrics.

In the order of a step: ``execute_batch`` (values), ``append`` (OpenRLHF's), ``fit``, ``take_values`` (with
``--orz.cross_fit_values``), ``save_checkpoint``.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict

import deepspeed
import torch
from openrlhf.models import ValueLoss, aggregate_loss
from openrlhf.trainer.ray.ppo_critic import CriticModelActor, CriticPPOTrainer
from openrlhf.utils.logging_utils import init_logger
from transformers import AutoConfig

from openrlhf_orz.algo.token_stats import explained_variances, fit_sums
from openrlhf_orz.algo.value_losses import ValueForm
from openrlhf_orz.models.adapters import cast_adapters, train_whole, without_adapters
from openrlhf_orz.models.cpu_ops import install_rms_norm
from openrlhf_orz.models.dropout import turn_off_dropout
from openrlhf_orz.models.routers import ask_router_loss
from openrlhf_orz.models.shared_prefixes import install_prefix_sharing
from openrlhf_orz.models.value_head import freeze_parts, init_value_head, replace_head, unset_buffers
from openrlhf_orz.runtime.cores import at_work, in_threads, share_cores
from openrlhf_orz.settings.critic_checks import returns_range
from openrlhf_orz.settings.finished import changed, critic_steps
from openrlhf_orz.settings.models import has_weight, is_folded, stored_tensor
from openrlhf_orz.trainer.live_objects import skip_reduction
from openrlhf_orz.trainer.mini_batches import CriticReplayBuffer
from openrlhf_orz.trainer.rank import Rank, meet_by_file
from openrlhf_orz.trainer.saving import save_hf
from openrlhf_orz.trainer.step_guard import StepGuard

logger = init_logger(__name__)


class RecordingValueLoss(ValueLoss):
    """Eq. 2; keeps the values (B, A) of its last call and the sums (5,) of how well they fit the returns.

    With ``form`` the loss is of the head's outputs, which ``outputs()`` gives; the values are in units of return.
    """

    form: ValueForm | None = None
    outputs: Callable[[], torch.Tensor]

    def forward(self, values, old_values, returns, action_mask=None, **kwargs):
        self.values = values.detach()
        self.sums = fit_sums(self.values, returns, action_mask)
        if self.form is None:
            return super().forward(values, old_values, returns, action_mask=action_mask, **kwargs)
        losses_BA = self.form.losses(self.outputs(), returns)
        # the values stay in the graph: ZeRO-3 gathers a model's weights when the gradient of its result arrives
        return aggregate_loss(losses_BA + 0 * values, action_mask, **kwargs)


def value_form(args) -> ValueForm:
    """What the settings say of the critic's head."""
    low, high = returns_range(args)
    return ValueForm(args.orz.value_loss, args.orz.value_bins, low, high)


UNFOLDED = "unfolded_score"  # name of a head that was saved in several rows


def folded_head(pretrain: str, args) -> torch.Tensor | None:
    """The value head of ``pretrain`` where it was saved in several rows, [8, H / 8] instead of [1, H]; else None."""
    name = f"{args.ds.value_head_prefix}.weight"
    if not has_weight(pretrain, name):
        return None
    head = stored_tensor(pretrain, name)
    config = AutoConfig.from_pretrained(pretrain, trust_remote_code=args.orz.trust_remote_code)
    hidden = config.get_text_config().hidden_size
    own_name = hasattr(config, "value_head_prefix")  # which OpenRLHF takes before the flag's
    return head if is_folded(tuple(head.shape), hidden) and not own_name else None


class OrzCriticPPOTrainer(CriticPPOTrainer):
    """The critic's optimizer steps on one rank."""

    replay_buffer_cls = CriticReplayBuffer

    def __init__(self, strategy, *args, **kwargs):
        on_cpu = strategy.args.orz.device == "cpu"
        super().__init__(strategy, *args, dataloader_pin_memory=not on_cpu, **kwargs)
        self.critic_loss_fn = RecordingValueLoss(self.critic_loss_fn.clip_eps)
        if self.args.orz.value_loss != "mse":
            self.critic_loss_fn.form = value_form(self.args)
            model = without_adapters(self.critic.module)
            head = model.get_submodule(model.value_head_prefix)
            self.critic_loss_fn.outputs = lambda: head.of_actions
        skip_reduction(self.critic)
        self.guard = StepGuard.of(self.args, self.critic, "critic")

    def ppo_train(self):
        self.at_steps, self.fits = [], [0]  # of each mini-batch: its last status, the fit of its values
        skipped = self.guard.total
        self.values = [None] * len(self.replay_buffer.items)
        status = super().ppo_train()
        status["critic_steps_skipped"] = self.guard.total - skipped
        micro_batches = len(self.replay_buffer) * self.max_epochs
        if not self.at_steps:
            return status
        # a micro-batch's loss is its share of the step's mean: the losses add up, but upstream averages them
        status["critic_loss"] *= micro_batches / len(self.at_steps)
        status["critic_grad_norm"] = sum(s["critic_grad_norm"] for s in self.at_steps) / len(self.at_steps)
        status["critic_lr"] = self.at_steps[-1]["critic_lr"]
        status["critic_updates"] = len(self.at_steps)
        fits = explained_variances(self.strategy.all_reduce(torch.stack(self.fits[: len(self.at_steps)]), op="sum"))
        status.update({f"explained_variance_minibatch_{i:02}": fit for i, fit in enumerate(fits, 1)})
        return status

    def training_step(self, experience, step, loss_batch_info=None):
        share_cores(self.args)
        status = super().training_step(experience, step, loss_batch_info)
        self.fits[-1] = self.fits[-1] + self.critic_loss_fn.sums
        if self.args.orz.cross_fit_values:
            for row, index in zip(self.critic_loss_fn.values.cpu(), self.replay_buffer.dynamic_indices[step]):
                if self.values[index] is None:  # a later pass has trained on the sample already
                    self.values[index] = row[: len(self.replay_buffer.items[index].action_mask)].clone()
        if self.replay_buffer.dynamic_optimizer_step[step]:
            if self.guard.after_step(self.replay_buffer, step):
                self.at_steps.append(dict(status))
                self.fits.append(0)
            else:
                self.fits[-1] = 0
        return status


class OrzCriticModelActor(CriticModelActor):
    """A rank of the critic, in a process of Ray's."""

    trainer_cls = OrzCriticPPOTrainer

    def _setup_distributed(self, strategy):
        meet_by_file(self, strategy.args)
        super()._setup_distributed(strategy)

    def build_model(self, strategy, pretrain):
        folded = folded_head(pretrain, strategy.args)
        if folded is not None:  # transformers would refuse its shape under its own name
            strategy = copy.copy(strategy)
            strategy.args = changed(strategy.args, {"ds.value_head_prefix": UNFOLDED})
        critic = super().build_model(strategy, pretrain)
        if unset := unset_buffers(without_adapters(critic)):
            raise NotImplementedError(
                f"{pretrain} cannot be a critic: {unset[0]} is set by transformers in its own models alone. Choose an"
                " --algo.advantage.estimator without one (reinforce_baseline, group_norm)"
            )
        model = without_adapters(critic)
        ask_router_loss(model, False)  # its loss weighs none
        turn_off_dropout(model)
        if strategy.args.orz.share_prefixes == "auto":
            install_prefix_sharing(model)
        if strategy.args.orz.device == "cpu":
            install_rms_norm(model)
        frozen = freeze_parts(model, strategy.args.orz.freeze_critic)
        recompute = strategy.args.actor
        if frozen and recompute.gradient_checkpointing_enable and recompute.gradient_checkpointing_reentrant:
            model.enable_input_require_grads()  # else torch would recompute nothing for layers above the frozen ones
        cast_adapters(critic)
        prefix = model.value_head_prefix
        weight = train_whole(critic, prefix).weight
        if strategy.args.orz.value_loss != "mse":
            self.fill_outputs_head(critic, pretrain, strategy.args)
            return critic
        if folded is not None:
            with deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=hasattr(weight, "ds_id")):
                if weight.numel():
                    weight.data.copy_(folded.reshape(1, -1))
            model.config.update({"value_head_prefix": prefix})
            logger.info(f"value head: from {pretrain}, {list(folded.shape)} read as [1, {folded.numel()}]")
            return critic
        if has_weight(pretrain, f"{prefix}.weight"):
            logger.info(f"value head: from {pretrain}")
            return critic
        generator = torch.Generator(weight.device).manual_seed(strategy.args.train.seed)
        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=hasattr(weight, "ds_id")):
            if not hasattr(weight, "ds_id") or torch.distributed.get_rank() == 0:
                init_value_head(weight.data, strategy.args.orz.value_head_init, generator)
        logger.info(f"value head: initialised ({strategy.args.orz.value_head_init})")
        return critic

    def fill_outputs_head(self, critic, pretrain, args) -> None:
        """Replace the plain head by one of as many outputs as --orz.value_loss needs: that of ``pretrain``, or new."""
        model, form = without_adapters(critic), value_form(args)
        linear = replace_head(critic, model, form.outputs, form.values)
        name = f"{model.value_head_prefix}.outputs"
        with torch.no_grad():
            if has_weight(pretrain, f"{name}.weight"):
                linear.weight.copy_(stored_tensor(pretrain, f"{name}.weight"))
                linear.bias.copy_(stored_tensor(pretrain, f"{name}.bias"))
                logger.info(f"value head: from {pretrain} ({form})")
            else:
                generator = torch.Generator(linear.weight.device).manual_seed(args.train.seed)
                init_value_head(linear.weight, args.orz.value_head_init, generator)
                rate = args.orz.value_base_rate or 0.5
                linear.bias.fill_(math.log(rate / (1 - rate)))
                logger.info(f"value head: initialised ({args.orz.value_head_init}, {form})")
        model.config.update({"orz_values": asdict(form)})  # whoever loads the saved critic knows what its outputs mean

    def init_model_from_pretrained(self, strategy, pretrain, max_steps):
        self.rank = Rank("_critic", strategy.args)
        super().init_model_from_pretrained(strategy, pretrain, critic_steps(strategy.args, max_steps))
        self.rank.resume(self.critic, self.trainer.replay_buffer)
        self.rank.tell("critic is loaded")

    def execute_batch(self, method_name, all_data, start_idx, end_idx):
        """Values on a CPU: cores take a pack each, not all of them each operation."""
        if method_name != "forward":
            return super().execute_batch(method_name, all_data, start_idx, end_idx)
        with at_work(self.strategy.args), self.rank.memory.phase("experience"):
            packs = [{name: data[i] for name, data in all_data.items()} for i in range(start_idx, end_idx)]
            if not self.forwards_side_by_side or min(len(packs), torch.get_num_threads()) < 2:
                return super().execute_batch(method_name, all_data, start_idx, end_idx)
            try:
                self.critic.eval()
                return in_threads(lambda pack: self.values_of_pack(**pack), packs)
            finally:
                self.critic.train()

    @torch.no_grad()
    def values_of_pack(self, sequences, action_mask, attention_mask):
        """As ``forward``, but in the mode that the critic is in: ``forward`` ends by switching to training."""
        return self.critic(sequences, action_mask, attention_mask, ring_attn_group=self.strategy.ring_attn_group)

    @property
    def forwards_side_by_side(self):
        """Whether threads may be in the model at once: not where ranks meet there, or ZeRO-3 gathers weights."""
        alone = torch.distributed.get_world_size() == 1 and self.critic.zero_optimization_stage() < 3
        return alone and self.strategy.args.orz.device == "cpu"

    def fit(self):
        start = time.monotonic()
        with at_work(self.strategy.args), self.rank.memory.phase("training"):
            status = super().fit()
        return {**status, "seconds_critic": time.monotonic() - start, **self.rank.memory.take()}

    def take_values(self):
        """Return the values (A,) of each sample just trained on, in the buffer's order, and forget them."""
        values, self.trainer.values = self.trainer.values, []
        return values

    def try_save_model(self) -> str | None:
        """Write ``--ckpt.output_dir``/hf_critic; returns what failed, on the first rank."""
        if self.tokenizer is None:  # OpenRLHF has none where --critic.save_value_network is off
            return None
        error = self.rank.save_model(
            lambda folder: save_hf(self.critic, self.tokenizer, folder, self.strategy.args),
            self.strategy.args.ckpt.output_dir + "_critic",
        )
        self.saved = error is None
        return error

    def save_model(self):
        if not getattr(self, "saved", False) and (error := self.try_save_model()):  # OpenRLHF's call, after fit
            raise OSError(error)

    def checkpoint_path(self, tag):
        return str(self.rank.checkpoint_path(tag))

    def save_checkpoint(self, tag, *args, **kwargs):
        super().save_checkpoint(tag, *args, **kwargs)
        self.rank.save(tag, self.critic, self.trainer.replay_buffer)
