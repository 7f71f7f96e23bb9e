"""The trainer: OpenRLHF's PPO loop with ORZ's experience maker, metrics and run directory."""

import time

import ray
import torch
from openrlhf.trainer.ppo_trainer import PPOTrainer
from openrlhf.trainer.ppo_trainer_async import GenerateSamplesActor, PPOTrainerAsync, TrainingActor
from openrlhf.trainer.ppo_utils.experience import make_experience_batch, split_experience_batch
from openrlhf.utils.logging_utils import init_logger
from transformers import AutoConfig

from openrlhf_orz.algo.masked import explained_variance, masked_mean
from openrlhf_orz.algo.minibatch import balance_ranks
from openrlhf_orz.algo.text_stats import reflects
from openrlhf_orz.reward.extract import extract_answer
from openrlhf_orz.reward.rules import RULES
from openrlhf_orz.reward.verdict import Verdict
from openrlhf_orz.rollout.generation import OrzSamplesGenerator
from openrlhf_orz.runtime.heartbeat import show_life
from openrlhf_orz.runtime.memory import memory_metrics
from openrlhf_orz.runtime.run_dir import RunDir, Tolerant
from openrlhf_orz.runtime.watchdog import within
from openrlhf_orz.trainer.checkpointing import Checkpointing
from openrlhf_orz.trainer.evaluation import evaluate_samples
from openrlhf_orz.trainer.experience_maker import OrzExperienceMaker, with_tokens
from openrlhf_orz.trainer.metrics import as_numbers, rank_metrics, rollout_metrics, step_record
from openrlhf_orz.trainer.prompts import load_prompts
from openrlhf_orz.trainer.rollout_stats import RolloutStats, length_metrics

logger = init_logger(__name__)

SYNC_SEQUENCES = 8  # sequences on which --orz.check_sync compares


def info(samples, key: str, missing: float = -1.0) -> torch.Tensor:
    """A per-sample number of single-sample experiences as (B,) float."""
    return torch.tensor([float(sample.info[key]) if key in sample.info else missing for sample in samples])


class OrzTrainer(Checkpointing):
    """What ORZ adds to OpenRLHF's training loop, synchronous or not."""

    experience_maker_cls = OrzExperienceMaker

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        show_life(self.args, "trainer")
        self.run_dir = RunDir(self.args.orz.run_dir)
        self.logs = self.run_dir.path / "logs"
        for name in ("wandb_logger", "tensorboard_logger"):
            if getattr(self, name):
                setattr(self, name, Tolerant(getattr(self, name), self.run_dir))
        self.fixed_sequences = self.last_log_probs = None
        self.rollout_stats = RolloutStats(self.tokenizer)
        self.ours: dict = {}
        config = AutoConfig.from_pretrained(
            self.args.actor.model_name_or_path, trust_remote_code=self.args.orz.trust_remote_code
        )
        self.hidden_size = config.get_text_config().hidden_size

    def balance_experiences(self, experiences, args):
        """One experience for each data-parallel rank, by work instead of by count."""
        items = with_tokens([item for experience in experiences for item in split_experience_batch(experience)])
        for item in items:
            item.info = as_numbers(item.info)
        ranks = len(self.actor_model_group._actor_handlers) // self.actor_model_group.duplicate_actors
        shares = balance_ranks([int(item.total_length) for item in items], ranks, self.hidden_size)
        self.ours.update(rank_metrics(shares))
        return [make_experience_batch([items[i] for i in share]) for share in shares]

    def train_step(self, rollout_samples, global_step):
        if self.args.orz.check_sync and self.fixed_sequences is None:
            self.fixed_sequences = rollout_samples[:: max(1, len(rollout_samples) // SYNC_SEQUENCES)][:SYNC_SEQUENCES]
        self.rollout_stats.start(rollout_samples)
        lengths = torch.tensor([int(sample.action_mask.sum()) for sample in rollout_samples])
        rewards = torch.tensor([float(sample.rewards) for sample in rollout_samples])
        self.ours = rollout_metrics(
            rewards,
            lengths,
            torch.tensor([float(sample.truncated) for sample in rollout_samples]),
            info(rollout_samples, "verdict"),
            info(rollout_samples, "format"),
            self.args.rollout.n_samples_per_prompt,
        )
        self.ours.update(length_metrics(lengths, rewards > 0))
        self.ours["response_tokens"] = float(lengths.sum())
        self.ours["tokens"] = float(sum(int(sample.total_length) for sample in rollout_samples))
        # all of the step: a rank that hangs may do so while it is handed its samples
        with within(self.args.orz.training_timeout_s, "training", "training_timeout_s", self.logs):
            status, step = super().train_step(rollout_samples, global_step)
        self.ours.update(self.rollout_stats.result())
        if self.args.orz.rollout_dump_every and step % self.args.orz.rollout_dump_every == 0:
            chosen = rollout_samples[: self.args.orz.rollout_dump_max]
            self.run_dir.dump_rollouts(step, lambda: map(self.rollout_row, chosen))
        return status, step

    def rollout_row(self, sample) -> dict:
        """One response as it stands in rollouts/step_N.jsonl."""
        mask = torch.nn.functional.pad(sample.action_mask[0], (1, 0)).bool()
        response = self.tokenizer.decode(sample.sequences[0][mask], skip_special_tokens=False)
        row = {
            "prompt": sample.prompts[0],
            "response": response,
            "extracted": extract_answer(response),
            "reference": sample.labels[0],
            "reward": float(sample.rewards),
            "tokens": int(sample.action_mask.sum()),
            "reflection": reflects(response),
        }
        if "verdict" in sample.info:
            from openrlhf_orz.rollout.agent import stop_reason

            row["verdict"] = Verdict(int(sample.info["verdict"])).label
            row["rule"] = RULES[int(sample.info["rule"])] if "rule" in sample.info else ""
            row["stop_reason"] = stop_reason(int(sample.info["ended"]), list(self.args.orz.stop))
        return row

    def _compute_rollout_stats(self, experiences):
        """Adds what is known before the updates: the critic's fit to the returns, and the advantages."""
        stats = super()._compute_rollout_stats(experiences)
        mask = torch.cat([e.action_mask.flatten() for e in experiences])
        returns = torch.cat([e.returns.flatten() for e in experiences])
        stats["return_mean"] = masked_mean(returns, mask).item()
        if experiences[0].values is not None:
            values = torch.cat([e.values.flatten() for e in experiences])
            stats["explained_variance"] = explained_variance(values, returns, mask)
        return stats

    def ppo_train(self, global_steps):
        if self.args.orz.cross_fit_values and self.critic_model_group is not None:
            return self.cross_fit_train(global_steps)
        status = super().ppo_train(global_steps)
        if global_steps <= self.args.critic.freezing_steps:
            # the policy does not train yet: its rollout must not pile up
            ray.get(self.actor_model_group.async_run_method(method_name="drop_buffer"))
        return status

    def cross_fit_train(self, global_steps):
        """The critic first; the policy with advantages from the values that the critic's training has taken."""
        actor, critic = self.actor_model_group, self.critic_model_group
        try:
            self.actor_model_group = None
            status = super().ppo_train(global_steps)
            values = ray.get(critic.async_run_method(method_name="take_values"))[:: critic.duplicate_actors]
            metrics = ray.get(actor.async_run_method_batch(method_name="set_values", values=values))[0][0]
            self.actor_model_group, self.critic_model_group = actor, None
            status.update(super().ppo_train(global_steps))
        finally:
            self.actor_model_group, self.critic_model_group = actor, critic
        return {**status, **metrics}

    def broadcast_to_vllm(self):
        with within(self.args.orz.sync_timeout_s, "weight-sync", "sync_timeout_s", self.logs):
            self.sync_weights(super().broadcast_to_vllm)
            self.ours.update(ray.get(self.actor_model_group._actor_handlers[0].sync_report.remote()))
            self.ours.update(memory_metrics("driver"), engine_memory_mib=self.engine_memory())
            if self.fixed_sequences is not None:
                self.ours.update(self.sync_gap())

    def engine_memory(self) -> float:
        """Largest resident memory of an engine, MiB; nan if one has died meanwhile, which is not a reason to end."""
        try:
            return max(ray.get([engine.memory_mib.remote() for engine in self.vllm_engines]))
        except ray.exceptions.RayError:
            return float("nan")

    def sync_weights(self, sync) -> None:
        """``sync``, once more if an engine has died: the weights of the trainer are whole, whatever became of those."""
        generator = getattr(self, "samples_generator", None)
        try:
            sync()
        except ray.exceptions.RayTaskError:
            if generator is None or not generator.attend():
                raise
            sync()

    def sync_gap(self) -> dict[str, float]:
        """|log p_vllm - log p_trainer| of the response tokens of fixed sequences, over all engines; and how far the
        trainer's own have moved since the sync before, which says whether the gap could have shown a missed sync.
        """
        samples = self.fixed_sequences
        ranks = len(self.actor_model_group._actor_handlers) // self.actor_model_group.duplicate_actors
        kwargs = {
            key: [getattr(sample, key) for sample in samples for _ in range(ranks)]
            for key in ("sequences", "action_mask", "attention_mask")
        }
        # every rank computes every sequence: under ZeRO-3 they must run alike
        order = [i * ranks + r for r in range(ranks) for i in range(len(samples))]
        kwargs = {key: [value[i] for i in order] for key, value in kwargs.items()}
        refs = self.actor_model_group.async_run_method_batch(method_name="forward", **kwargs)
        trainer = [row[0] for row in ray.get(refs)[0][: len(samples)]]
        token_ids = [sample.sequences[0].tolist() for sample in samples]
        gaps = []
        for i, engine in enumerate(ray.get([e.sequence_log_probs.remote(token_ids) for e in self.vllm_engines])):
            for ours, theirs, sample in zip(trainer, engine, samples):
                mask, theirs = sample.action_mask[0].bool(), torch.tensor(theirs)
                for side, log_probs in (("the trainer's", ours), (f"engine {i}'s", theirs)):
                    if not log_probs[mask].isfinite().all():
                        raise FloatingPointError(f"after a weight sync {side} log-probs are not finite")
                gaps.append((ours.float() - theirs)[mask].abs())
        gaps = torch.cat(gaps)
        result = {"sync_logprob_gap_mean": gaps.mean().item(), "sync_logprob_gap_max": gaps.max().item()}
        if self.last_log_probs is not None:
            moved = [
                (now - before).float()[sample.action_mask[0].bool()].abs()
                for now, before, sample in zip(trainer, self.last_log_probs, samples)
            ]
            result["sync_logprob_moved_mean"] = torch.cat(moved).mean().item()
        self.last_log_probs = trainer
        return result

    def save_logs_and_checkpoints(self, global_step, logs_dict=None, client_states=None):
        self.ours.update(self.all_faults(), restarts=self.args.orz.restarts, writes_failed=self.run_dir.failures)
        if self.held_up is not None:
            self.ours["seconds_checkpoint"], self.held_up = self.held_up, None
        record = step_record(global_step, logs_dict or {}, self.ours)
        self.run_dir.append("metrics.jsonl", {**record, "time": time.time()})
        logs = {key: value for key, value in record.items() if value is not None and key != "step"}
        logs["generated_samples"] = (logs_dict or {}).get("generated_samples")
        super().save_logs_and_checkpoints(global_step, logs, client_states)

    def fit(self, *args, **kwargs):
        try:
            super().fit(*args, **kwargs)
        finally:
            self.run_dir.wait()


class OrzPPOTrainer(OrzTrainer, PPOTrainer):
    prepare_datasets = staticmethod(load_prompts)
    samples_generator_cls = OrzSamplesGenerator

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.samples_generator.sync_engine = self.sync_engine

    def sync_engine(self, index: int) -> None:
        """Give an engine that was started anew the current weights."""
        ray.get(self.actor_model_group.async_run_method(method_name="sync_engine", index=index))

    @torch.no_grad()
    def evaluate(self, global_step, **generate_kwargs):
        start = time.time()
        samples = self.samples_generator.generate_eval_samples(**generate_kwargs)
        n = generate_kwargs["n_samples_per_prompt"]
        logs = evaluate_samples(self.eval_dataloader, samples, n, self.tokenizer, self.args)
        logs["eval_seconds"] = time.time() - start
        for tracker in filter(None, (self.wandb_logger, self.tensorboard_logger)):
            tracker.log_eval(global_step, logs)
        self.run_dir.append("eval.jsonl", {"step": global_step, **logs})
        return logs

    def evaluate_start(self):
        """Before the first step; what the base model reaches is what a best checkpoint has to beat."""
        own = vars(self.args.eval)
        kwargs = {key: own[key] for key in ("temperature", "n_samples_per_prompt")}
        logs = self.evaluate(0, **{**self.generate_kwargs, **kwargs})
        key = self._detect_eval_metric_key(logs)
        if key:
            self.best_eval_metric_value = logs[key]

    def fit(self, *args, **kwargs):
        if self.eval_dataloader and self.args.eval.steps != float("inf") and self.args.orz.resume_from is None:
            self.evaluate_start()
        super().fit(*args, **kwargs)


class OrzGenerateSamplesActor(GenerateSamplesActor):
    prepare_datasets = staticmethod(load_prompts)
    samples_generator_cls = OrzSamplesGenerator

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        show_life(self.args, "generator")

    def fit(self, episode, total_consumed_prompts):
        # resumed where an episode has ended
        return super().fit(episode + self.prompts_dataloader.exhausted, total_consumed_prompts)

    def _run_eval(self):
        n = self.args.eval.n_samples_per_prompt
        kwargs = {"temperature": self.args.eval.temperature, "n_samples_per_prompt": n}
        samples = self.samples_generator.generate_eval_samples(**{**self.generate_kwargs, **kwargs})
        logs = evaluate_samples(self.eval_dataloader, samples, n, self.samples_generator.tokenizer, self.args)
        RunDir(self.args.orz.run_dir).append("eval.jsonl", {"step": self._last_eval_step, **logs})
        return logs


class OrzTrainingActor(OrzTrainer, TrainingActor):
    pass


class OrzPPOTrainerAsync(PPOTrainerAsync):
    generator_actor_cls = OrzGenerateSamplesActor
    training_actor_cls = OrzTrainingActor
