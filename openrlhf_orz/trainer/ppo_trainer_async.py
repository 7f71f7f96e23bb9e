"""Asynchronous training: one process draws rollouts and evaluates, another trains on them."""

import ray
from openrlhf.trainer.ppo_trainer import BasePPOTrainer
from openrlhf.trainer.ppo_trainer_async import GenerateSamplesActor, PPOTrainerAsync, TrainingActor

from openrlhf_orz.evaluate.grading import evaluate_samples
from openrlhf_orz.rollout.generation import OrzSamplesGenerator
from openrlhf_orz.runtime.run_dir import RunDir
from openrlhf_orz.runtime.watchdog import start_heartbeat
from openrlhf_orz.trainer.ppo_trainer import OrzTrainer, load_prompts


class OrzGenerateSamplesActor(GenerateSamplesActor):
    """Asynchronous training: the process that draws rollouts and evaluates."""

    prepare_datasets = staticmethod(load_prompts)
    samples_generator_cls = OrzSamplesGenerator

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        start_heartbeat(self.args, "generator")

    def fit(self, episode, total_consumed_prompts):
        # resumed where an episode has ended
        return super().fit(episode + self.prompts_dataloader.exhausted, total_consumed_prompts)

    def compute_eval_metrics(self, eval_dataloader, samples, n):
        return evaluate_samples(eval_dataloader, samples, n, self.samples_generator.tokenizer, self.args)

    def _run_eval(self):
        logs = super()._run_eval()
        RunDir(self.args.orz.run_dir).append("eval.jsonl", {"step": self._last_eval_step, **logs})
        return logs


class OrzTrainingActor(OrzTrainer, TrainingActor):
    """Asynchronous training: the process that trains on the rollouts."""

    def broadcast_to_vllm(self):
        """OpenRLHF's waits until no rollout is under way. --orz.sync_timeout_s limits the sync alone."""
        TrainingActor.broadcast_to_vllm(self)

    def broadcast_weights(self):
        OrzTrainer.broadcast_to_vllm(self)

    def send_weights(self):
        BasePPOTrainer.broadcast_to_vllm(self)

    def save_best_checkpoint(self, eval_metrics, global_step, client_states=None):
        """Under the step of the weights: by the time that an evaluation is known they are later than those it had."""
        super().save_best_checkpoint(
            eval_metrics, (client_states or {}).get("global_step", global_step), client_states
        )


class OrzPPOTrainerAsync(PPOTrainerAsync):
    """The asynchronous trainer."""

    generator_actor_cls = OrzGenerateSamplesActor
    training_actor_cls = OrzTrainingActor

    def fit(self):
        ray.get(self.trainer_actor.check_start.remote())
        super().fit()
