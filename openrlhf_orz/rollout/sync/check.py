"""Metrics after a weight sync: the engines' log-probs against the trainer's (--orz.check_sync), and their memory."""

import ray
import torch

CHECK_SEQUENCES = 8  # sequences on which --orz.check_sync compares log-probs


def engine_memory(engines: list) -> float:
    """Return the largest resident memory of an engine, MiB; nan if one has just died, which must not end the run."""
    try:
        return max(ray.get([engine.memory_mib.remote() for engine in engines]))
    except ray.exceptions.RayError:
        return float("nan")


class SyncCheck:
    """Compares log-probs of fixed sequences after each weight sync.

    The sequences come from the first rollout; ``gap`` returns nothing before ``keep`` was called.
    """

    def __init__(self) -> None:
        self.samples: list = []
        self.last_log_probs: list[torch.Tensor] | None = None  # the trainer's at the sync before

    def keep(self, samples: list) -> None:
        """Keep CHECK_SEQUENCES of the first rollout's single-sample experiences."""
        if not self.samples:
            self.samples = samples[:: max(1, len(samples) // CHECK_SEQUENCES)][:CHECK_SEQUENCES]

    def gap(self, actor_group, engines: list) -> dict[str, float]:
        """Return metrics of |log p_vllm - log p_trainer| over the response tokens of all sequences and engines.

        ``sync_logprob_moved_mean`` says how far the trainer's own log-probs have moved since the sync before: only if
        it is larger than the gap could the gap have shown a missed sync.

        Args:
            actor_group: the policy's RayActorGroup.
            engines: handles of all engines.

        Raises FloatingPointError if a log-prob is not finite.
        """
        if not self.samples:
            return {}
        trainer = self._trainer_log_probs(actor_group)
        token_ids = [sample.sequences[0].tolist() for sample in self.samples]
        gaps = []
        for i, engine in enumerate(ray.get([e.sequence_log_probs.remote(token_ids) for e in engines])):
            for ours, theirs, sample in zip(trainer, engine, self.samples):
                mask, theirs = sample.action_mask[0].bool(), torch.tensor(theirs)
                for side, log_probs in (("the trainer's", ours), (f"engine {i}'s", theirs)):
                    if not log_probs[mask].isfinite().all():
                        raise FloatingPointError(f"after a weight sync {side} log-probs are not finite")
                gaps.append((ours.float() - theirs)[mask].abs())
        all_gaps = torch.cat(gaps)
        result = {"sync_logprob_gap_mean": all_gaps.mean().item(), "sync_logprob_gap_max": all_gaps.max().item()}
        if self.last_log_probs is not None:
            moved = [
                (now - before).float()[sample.action_mask[0].bool()].abs()
                for now, before, sample in zip(trainer, self.last_log_probs, self.samples)
            ]
            result["sync_logprob_moved_mean"] = torch.cat(moved).mean().item()
        self.last_log_probs = trainer
        return result

    def _trainer_log_probs(self, actor_group) -> list[torch.Tensor]:
        """Return the trainer's log-probs (A,) of each sequence."""
        ranks = len(actor_group._actor_handlers) // actor_group.duplicate_actors
        # every rank computes every sequence: under ZeRO-3 all ranks must do the same forwards
        samples = self.samples * ranks
        kwargs = {
            key: [getattr(sample, key) for sample in samples] for key in ("sequences", "action_mask", "attention_mask")
        }
        refs = actor_group.async_run_method_batch(method_name="forward", **kwargs)
        return [row[0] for row in ray.get(refs)[0][: len(self.samples)]]
