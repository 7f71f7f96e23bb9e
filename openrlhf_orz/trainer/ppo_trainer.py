"""The training loop. OpenRLHF's ``fit`` runs it and calls the methods here, which stand in the order of a step.

    get_max_steps                   waits for engines to measure the memory of GPUs that they share
    check_start                     the first weight sync, which may change nothing
    fit                             evaluates the base model, then OpenRLHF's loop over episodes and rollouts, from
                                    init_checkpoint_states and restore_best_checkpoint_state on:
      generate_samples                (OpenRLHF's, by rollout/generation.py)
      train_step                      one step, in which OpenRLHF calls
        make_experience_batch           values and advantages (trainer/experience_maker.py)
        _compute_rollout_stats          the critic's fit to the returns
        balance_experiences             a share of the samples for each rank
        ppo_train                       critic and policy steps (trainer/critic.py, trainer/actor.py)
        broadcast_to_vllm               the weights' way to the engines (rollout/sync)
      save_logs_and_checkpoints       the step's line of metrics.jsonl, logs, checkpoint; where the critic trains on
                                      (trainer/critic_beside.py) the line is written when it is done
      evaluate, save_best_checkpoint  every --eval.steps; _detect_eval_metric_key says which metric is the best's

docs/architecture.md says why each of them is not OpenRLHF's. The asynchronous trainer runs the same steps in two
processes (ppo_trainer_async.py).
"""

import sys
import time
from contextlib import suppress
from copy import copy

import ray
import torch
from openrlhf.trainer.ppo_trainer import BasePPOTrainer, PPOTrainer, prepare_datasets
from openrlhf.utils.logging_utils import init_logger
from torch.utils.data import Subset
from transformers import AutoConfig

from openrlhf_orz.algo.minibatch import balance_ranks
from openrlhf_orz.algo.token_stats import explained_variance, masked_mean
from openrlhf_orz.data.prompts import PromptLoader
from openrlhf_orz.evaluate.grading import evaluate_samples
from openrlhf_orz.rollout.replay import samples_generator
from openrlhf_orz.rollout.sync.check import SyncCheck, engine_memory, fill_log_probs
from openrlhf_orz.rollout.sync.transport import BroadcastBroken
from openrlhf_orz.runtime.console import tell_stage
from openrlhf_orz.runtime.memory import memory_metrics
from openrlhf_orz.runtime.run_dir import RunDir, TolerantLogger
from openrlhf_orz.runtime.stopping import StopRequested, training_mark
from openrlhf_orz.runtime.watchdog import RunFailed, phase_limit, start_heartbeat
from openrlhf_orz.settings.critic_checks import critic_works_beside, takes_early_values
from openrlhf_orz.settings.finished import changed, policy_steps
from openrlhf_orz.trainer.batches import regroup, with_tokens
from openrlhf_orz.trainer.checkpoints import DrawnRollouts, NoRollouts, TrainerCheckpoints
from openrlhf_orz.trainer.critic_beside import CriticBeside, EarlyValues
from openrlhf_orz.trainer.experience_maker import OrzExperienceMaker
from openrlhf_orz.trainer.metrics import StepMetrics, rank_metrics
from openrlhf_orz.trainer.rollout_rows import rollout_row, spread_places, token_numbers

logger = init_logger(__name__)


def load_prompts(strategy, tokenizer):
    """OpenRLHF's data sets, in an order fixed by seed and episode.

    Returns the prompts, the evaluation prompts (or None) and the number of policy steps of the run.
    """
    args, unlimited = strategy.args, copy(strategy)
    unlimited.args = changed(args, {"data.max_samples": sys.maxsize})  # OpenRLHF would cut the evaluation by it, too
    prompts, evaluation, _ = prepare_datasets(unlimited, tokenizer)
    dataset = prompts.dataset
    chosen = Subset(dataset, range(min(args.data.max_samples, len(dataset))))
    prompts = PromptLoader(chosen, dataset.collate_fn, args.train.seed)
    return prompts, evaluation, policy_steps(args, len(chosen))


class OrzTrainer(BasePPOTrainer):
    """A training step of ORZ, in OpenRLHF's synchronous and asynchronous trainers alike.

    A mixin: in the bases of a class it stands before OpenRLHF's PPOTrainer or TrainingActor, and ``super()`` is that.
    """

    experience_maker_cls = OrzExperienceMaker
    token_numbers: dict[int, dict] = {}  # of the step's responses that the rollout file shows by token

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        start_heartbeat(self.args, "trainer")
        self.run_dir = RunDir(self.args.orz.run_dir)
        self.logs = self.run_dir.path / "logs"
        if self.wandb_logger:
            self.wandb_logger = TolerantLogger(self.wandb_logger, self.run_dir, self.finish_critic)
        if self.tensorboard_logger:
            self.tensorboard_logger = TolerantLogger(self.tensorboard_logger, self.run_dir, self.finish_critic)
        self.sync_check = SyncCheck(self.args, self.run_dir.note)
        self.metrics = StepMetrics(self.tokenizer, self.args.rollout.n_samples_per_prompt, self.args.orz.right_reward)
        self.checkpoints = TrainerCheckpoints(
            self.args,
            [group for group in (self.actor_model_group, self.critic_model_group) if group is not None],
            self.run_dir,
            self.rollouts(),
            self.own_state,
        )
        self.critic_beside = CriticBeside()
        config = AutoConfig.from_pretrained(
            self.args.actor.model_name_or_path, trust_remote_code=self.args.orz.trust_remote_code
        )
        self.hidden_size = config.get_text_config().hidden_size

    def rollouts(self) -> NoRollouts:
        """The rollouts that this process draws."""
        return NoRollouts()

    @property
    def ranks(self) -> int:
        """Data-parallel ranks of the policy."""
        return len(self.actor_model_group._actor_handlers) // self.actor_model_group.duplicate_actors

    # ---- before the first step

    def fit(self, *args, **kwargs):
        training_mark(self.args).touch()
        try:
            super().fit(*args, **kwargs)
            self.finish_critic()
            self.checkpoints.save_models()
        except StopRequested:
            self.finish_critic()
            raise self.checkpoints.stopped() from None
        except Exception:
            with suppress(Exception):  # the last step's line, at least
                self.critic_beside.finish(wait=False)
            raise
        finally:
            training_mark(self.args).unlink(missing_ok=True)
            self.checkpoints.wait_for_commit()
            self.run_dir.wait()

    def wait_for_engines(self) -> None:
        """Until all have started. The driver watches that (--orz.start_timeout_s), and tells why one fails."""
        if starts := [engine.start.remote() for engine in self.vllm_engines or ()]:
            ray.wait(starts, num_returns=len(starts))

    def check_start(self) -> None:
        """The first weight sync; finds models that vLLM takes or computes otherwise than the trainer."""
        self.wait_for_engines()  # a start takes longer than a sync
        with phase_limit(self.args.orz.sync_timeout_s, "weight-sync", "sync_timeout_s", self.logs):
            self.sync_check.start(self.actor_model_group, self.vllm_engines, self.tokenizer)

    def init_checkpoint_states(self):
        """Where to begin: the checkpoint's place, or the start."""
        states = self.checkpoints.resume() or super().init_checkpoint_states()
        if self.args.algo.kl.target and "kl_coef" in states:
            self.kl_ctl.value = states["kl_coef"]
        return states

    # ---- a step, in its order

    def train_step(self, rollout_samples, global_step):
        self.finish_critic()
        if self.args.orz.check_sync:
            self.sync_check.keep(rollout_samples)
        fill_log_probs(rollout_samples)
        self.metrics.start(rollout_samples)
        if self.args.orz.replay:
            self.metrics.add(replayed=1.0)
        self.metrics.add(self.sync_check.take_start())
        # all of the step: a rank that hangs may do so while it is handed its samples
        with phase_limit(self.args.orz.training_timeout_s, "training", "training_timeout_s", self.logs):
            status, step = super().train_step(rollout_samples, global_step)
        self.sync_check.judge(status.get("logprob_gap_mean"))
        self.metrics.finish_texts()
        every = self.args.orz.rollout_dump_every
        if every and step % every == 0:
            self.dump_rollout(rollout_samples, step)
        return status, step

    def dump_rollout(self, rollout_samples, step: int) -> None:
        """Write the step's responses, or the first ``--orz.rollout_dump_max``, into rollouts/ in the background."""
        samples = rollout_samples[: self.args.orz.rollout_dump_max]
        trained = self.metrics.trained or [None] * len(samples)  # the reward of each that was trained on
        stop, right_reward = list(self.args.orz.stop), self.args.orz.right_reward
        numbers = self.token_numbers
        self.run_dir.dump_rollouts(
            step,
            lambda: (
                rollout_row(sample, self.tokenizer, stop, reward, right_reward, numbers.get(i))
                for i, (sample, reward) in enumerate(zip(samples, trained))
            ),
        )

    def _compute_rollout_stats(self, experiences):
        """Adds what is known before the updates: returns and how well the critic's values fit them, rewards as
        they are trained on, how advantages were made; and keeps the numbers by token that the rollout file shows.
        """
        stats = super()._compute_rollout_stats(experiences)
        self.metrics.note_trained(experiences, self.args)
        self.metrics.add(self.experience_maker.notes)
        if self.experience_maker.early_values is not None:
            self.metrics.add(values_early=self.experience_maker.early_values.share)
        self.token_numbers = self._token_numbers(experiences)
        mask = torch.cat([e.action_mask.flatten() for e in experiences])
        returns = torch.cat([e.returns.flatten() for e in experiences])
        stats["return_mean"] = masked_mean(returns, mask).item()
        if experiences[0].values is not None:
            values = torch.cat([e.values.flatten() for e in experiences])
            stats["explained_variance"] = explained_variance(values, returns, mask)
        return stats

    def _token_numbers(self, experiences) -> dict[int, dict]:
        """Values and advantages of the responses that the rollout file shows by token, by place in the rollout."""
        if not self.args.orz.rollout_values:
            return {}
        responses = sum(len(experience.index) for experience in experiences)
        dumped = min(responses, self.args.orz.rollout_dump_max or responses)
        return token_numbers(experiences, spread_places(dumped, self.args.orz.rollout_values))

    def balance_experiences(self, experiences, args):
        """One experience for each data-parallel rank, by work instead of by count."""
        kept = with_tokens(experiences)
        lengths = torch.cat([experience.total_length for experience in experiences])[kept]
        shares = balance_ranks([int(length) for length in lengths.tolist()], self.ranks, self.hidden_size)
        self.metrics.add(rank_metrics(shares))
        return regroup(experiences, [[kept[i] for i in share] for share in shares])

    def ppo_train(self, global_steps):
        self.metrics.measure_texts()
        if self.args.orz.cross_fit_values and self.critic_model_group is not None:
            return self.cross_fit_train(global_steps)
        if critic_works_beside(self.args):
            with self.critic_beside.fit(self):
                status = super().ppo_train(global_steps)
        else:
            status = super().ppo_train(global_steps)
        if global_steps < self.args.critic.freezing_steps:
            # the policy does not train yet: its rollout must not pile up
            ray.get(self.actor_model_group.async_run_method(method_name="drop_buffer"))
            status["policy_updates"] = 0
        return status

    def cross_fit_train(self, global_steps):
        """The critic first; the policy with advantages from the values that the critic's training has taken."""
        actor, critic = self.actor_model_group, self.critic_model_group
        try:
            self.actor_model_group = None  # OpenRLHF then trains the critic alone
            status = super().ppo_train(global_steps)
            values = ray.get(critic.async_run_method(method_name="take_values"))[:: critic.duplicate_actors]
            metrics = ray.get(actor.async_run_method_batch(method_name="set_values", values=values))[0][0]
            self.actor_model_group, self.critic_model_group = actor, None
            status.update(super().ppo_train(global_steps))
        finally:
            self.actor_model_group, self.critic_model_group = actor, critic
        return {**status, **metrics}

    def broadcast_to_vllm(self):
        with phase_limit(self.args.orz.sync_timeout_s, "weight-sync", "sync_timeout_s", self.logs):
            self.send_weights()
            self.metrics.add(ray.get(self.actor_model_group._actor_handlers[0].sync_report.remote()))
            self.metrics.add(memory_metrics("driver"), engine_memory_mib=engine_memory(self.vllm_engines))
            self.metrics.add(self.sync_check.gap(self.actor_model_group, self.vllm_engines))

    def send_weights(self) -> None:
        """The weight sync itself."""
        super().broadcast_to_vllm()

    # ---- after a step

    def save_logs_and_checkpoints(self, global_step, logs_dict=None, client_states=None):
        logs_dict, client_states = logs_dict or {}, client_states or {}
        self.metrics.add(
            {**self.checkpoints.all_faults(), **self.checkpoints.take_seconds()},
            restarts=self.args.run.restarts,
            writes_failed=self.run_dir.failures,
        )
        self.critic_beside.then(logs_dict, lambda: self.write_logs(global_step, logs_dict, client_states))
        if self.critic_beside.lasts and self.checkpoints.nothing_due(global_step, client_states):
            return  # the next step, or the end, waits for the critic
        self.finish_critic()
        self.checkpoints.after_step(global_step, client_states)

    def finish_critic(self) -> None:
        """Wait for the critic where it still trains on the last step's rollout, and write that step's line."""
        if not self.critic_beside.due:
            return
        with phase_limit(self.args.orz.training_timeout_s, "training", "training_timeout_s", self.logs):
            self.critic_beside.finish()

    def write_logs(self, global_step: int, logs_dict: dict, client_states: dict) -> None:
        """A step's line of metrics.jsonl, and what OpenRLHF logs of it."""
        record = self.metrics.record(global_step, logs_dict, self.args.algo.kl.init_coef > 0)
        self.run_dir.append("metrics.jsonl", {**record, "time": time.time()})
        self.checkpoints.warn_of_stop()
        logs = {key: value for key, value in record.items() if value is not None and key != "step"}
        logs["generated_samples"] = logs_dict.get("generated_samples")
        super().save_logs_and_checkpoints(global_step, logs, client_states)

    def save_best_checkpoint(self, eval_metrics, global_step, client_states=None):
        self.finish_critic()  # none is saved whose training has failed
        save = super().save_best_checkpoint
        self.checkpoints.attempt(
            f"best_global_step{global_step}", lambda: save(eval_metrics, global_step, client_states)
        )

    def _detect_eval_metric_key(self, eval_metrics):
        """That of ``--ckpt.best_metric_key``, else of the first set of ``--eval.dataset``: OpenRLHF takes it by name.

        Raises RunFailed if the evaluation has no such number.
        """
        first = next((key for key in eval_metrics if key.endswith("_pass1")), "")
        self.best_eval_metric_key = wanted = self.best_eval_metric_key or first
        if eval_metrics and wanted not in {"none", "", *eval_metrics}:
            raise RunFailed(f"--ckpt.best_metric_key {wanted}: the evaluation has {', '.join(eval_metrics)}")
        return super()._detect_eval_metric_key(eval_metrics)

    def restore_best_checkpoint_state(self, checkpoint_states):
        """The best so far, unless it was measured otherwise: by another key or another evaluation."""
        states, now = checkpoint_states or {}, self.args.run.recorded_flags
        key, was = states.get("best_eval_metric_key"), now | states.get("flags", {})
        measured = {name for name in now if name.startswith("eval.")} - {"eval.steps"}
        same = all(was[name] == now[name] for name in measured)
        if key and not (same and self.args.ckpt.best_metric_key in ("", None, key)):
            print(f"[orz] {key} was measured otherwise: the best checkpoint is looked for anew", flush=True)
        else:
            super().restore_best_checkpoint_state(checkpoint_states)

    def own_state(self) -> dict:
        """For a checkpoint: the best and the latest evaluation metric, under OpenRLHF's names, and the coefficient of
        the KL, which ``--algo.kl.target`` adapts.
        """
        return {
            "kl_coef": float(self.kl_ctl.value),
            "best_eval_metric_key": self.best_eval_metric_key,
            "best_eval_metric_value": self.best_eval_metric_value,
            "latest_eval_metric_value": self._latest_eval_metric_value,
        }


class OrzPPOTrainer(OrzTrainer, PPOTrainer):
    """The synchronous trainer: one process draws the rollouts and steers the training on them."""

    prepare_datasets = staticmethod(load_prompts)
    samples_generator_cls = staticmethod(samples_generator)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.samples_generator.engines.set_sync(self.sync_engine)
        if takes_early_values(self.args):
            self.experience_maker.early_values = EarlyValues(self.experience_maker)
            self.samples_generator.on_responses = self.experience_maker.early_values.add

    def get_max_steps(self):
        """OpenRLHF asks before models load. On GPUs that they share with engines these have measured their memory
        then: vLLM counts as its own what another process allocates.
        """
        if self.args.orz.device != "cpu" and self.args.train.colocate_all:
            self.wait_for_engines()
        return super().get_max_steps()

    def rollouts(self):
        return DrawnRollouts(self.samples_generator, self.prompts_dataloader)

    def fit(self, *args, **kwargs):
        if not self.args.orz.replay:  # it has no engines
            self.check_start()
        if self.eval_dataloader and self.args.eval.steps != float("inf") and self.args.run.resume_from is None:
            self.evaluate_start()
        super().fit(*args, **kwargs)

    def evaluate_now(self, step: int) -> dict:
        """The evaluation, as after a step."""
        own = vars(self.args.eval)
        kwargs = {key: own[key] for key in ("temperature", "n_samples_per_prompt")}
        return self.evaluate(step, **{**self.generate_kwargs, **kwargs})

    def restore_best_checkpoint_state(self, checkpoint_states):
        """Then it makes up for the evaluation of the checkpoint's step, where a stop or a kill came before that."""
        super().restore_best_checkpoint_state(checkpoint_states)
        step = (checkpoint_states or {}).get("global_step", 0)
        if step and self.eval_dataloader and step % self.args.eval.steps == 0 and not self.run_dir.evaluated(step):
            self.broadcast_to_vllm()
            self.save_best_checkpoint(self.evaluate_now(step), step, checkpoint_states)

    def evaluate_start(self):
        """Before the first step; what the base model reaches is what a best checkpoint has to beat."""
        logs = self.evaluate_now(0)
        key = self._detect_eval_metric_key(logs)
        if key:
            self.best_eval_metric_value = logs[key]

    def evaluate(self, global_step, **generate_kwargs):
        self.evaluation_began = time.time()
        tell_stage(self.run_dir.path, f"evaluating after step {global_step}")
        logs = super().evaluate(global_step, **generate_kwargs)
        self.run_dir.append("eval.jsonl", {"step": global_step, **logs})
        return logs

    def compute_eval_metrics(self, eval_dataloader, samples, n):
        logs = evaluate_samples(eval_dataloader, samples, n, self.tokenizer, self.args)
        return {**logs, "eval_seconds": time.time() - self.evaluation_began}

    def broadcast_to_vllm(self):
        if self.args.orz.replay:  # OpenRLHF asks for it on resumption, engines or not
            return
        super().broadcast_to_vllm()
        self.metrics.add(self.samples_generator.engines.asleep)

    def send_weights(self) -> None:
        """The weight sync, once more if an engine dies in it: the trainer's own weights are whole all the same."""
        engines = self.samples_generator.engines
        engines.revive_dead(between_steps=False)  # the others would wait for a dead one in a broadcast
        try:
            super().send_weights()
        except ray.exceptions.RayError as error:
            if isinstance(error, BroadcastBroken) or not engines.revive_dead(between_steps=False):
                raise
            super().send_weights()

    def sync_engine(self, index: int) -> None:
        """Give an engine that was started again the current weights."""
        ray.get(self.actor_model_group.async_run_method(method_name="sync_engine", index=index))
