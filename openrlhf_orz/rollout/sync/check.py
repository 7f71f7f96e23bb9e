"""The engines' log-probs against the trainer's: at the start of every run, and with --orz.check_sync after each sync.
And the engines' memory.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import ray
import torch
from openrlhf.trainer.ray.vllm_engine import batch_vllm_engine_call

from openrlhf_orz.rollout.sync.checksums import SyncError
from openrlhf_orz.runtime.files import read_json_lines

CHECK_SEQUENCES = 8  # sequences on which --orz.check_sync compares log-probs
START_PROMPTS, START_TOKENS = 4, 128  # prompts, and tokens of each, of the check at the start
SAME_WEIGHTS = 0.01  # mean |difference| of an engine's log-probs of the same tokens by the same weights, in nats


def gap_problem(gap: float | None, limit: float) -> str | None:
    """What to say of a mean |log p_vllm - log p_trainer| above ``limit`` nats; None below it, or if it is unknown."""
    if gap is None or gap <= limit:
        return None
    return (
        f"vLLM's log-probs are {gap:.3g} from the trainer's (logprob_gap_mean, in nats a token; --orz.max_logprob_gap"
        f" {limit:g}): the policy that samples is not the one that trains. Where policies lag behind by intention"
        " (--train.async_enable) raise the limit; else vLLM and transformers compute this model differently"
    )


def as_samples(token_ids: Sequence[Sequence[int]]) -> list:
    """Sequences as the policy's forward takes them, each token but the first being one of the response."""
    return [
        SimpleNamespace(
            sequences=torch.tensor([ids]),
            action_mask=torch.ones(1, len(ids) - 1, dtype=torch.long),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        )
        for ids in map(list, token_ids)
    ]


def fill_log_probs(samples: list) -> None:
    """Give single-sample experiences without vLLM's log-probs nan where others of the rollout have some."""
    if any(sample.rollout_log_probs is not None for sample in samples):
        for sample in samples:
            if sample.rollout_log_probs is None:
                sample.rollout_log_probs = torch.full((1, 1), torch.nan).expand(sample.action_mask.shape)


class SyncCheck:
    """Compares log-probs of fixed sequences after a weight sync, and judges all gaps.

    Those of ``gap`` come from the first rollout; it returns nothing before ``keep`` was called.

    Args:
        args: the run's settings.
        note: shows a warning to the user.
    """

    def __init__(self, args, note: Callable[[str], None]) -> None:
        self.args, self.note = args, note
        self.samples: list = []
        self.last_log_probs: list[torch.Tensor] | None = None  # the trainer's at the sync before
        self.at_start: dict[str, float] = {}
        self.reported = False  # whether the last gap was too large

    def judge(self, gap: float | None) -> None:
        """Warn of a gap above --orz.max_logprob_gap, when it begins; raises SyncError if it is to end the run."""
        problem = gap_problem(gap, self.args.orz.max_logprob_gap)
        if problem and (self.args.orz.check_sync or self.args.orz.on_logprob_gap == "error"):
            raise SyncError(problem)
        if problem and not self.reported:
            self.note(problem)
        self.reported = problem is not None

    def start(self, actor_group, engines: list, tokenizer) -> None:
        """Sync the weights for the first time, and compare log-probs of prompts before and after.

        Engines and trainer have loaded the same checkpoint, unless the run is resumed: the sync may change nothing.
        Raises SyncError if it does, as vLLM then takes the weights otherwise than it loads them.
        """
        rows = islice(read_json_lines(Path(self.args.data.prompt_dataset.split(",")[0])), START_PROMPTS)
        prompts = [tokenizer(row["prompt"], add_special_tokens=False)["input_ids"] for _, row in rows if row]
        longest = min(START_TOKENS, self.args.data.max_len - 1)  # the engine adds a token
        token_ids = [ids for prompt in prompts if len(ids := prompt[:longest]) > 1]
        if not token_ids:  # the first tokens have no log-prob: there is nothing to compare
            return
        if self.args.vllm.enable_sleep:
            batch_vllm_engine_call(engines, "wake_up")
        before = [] if self.args.run.resume_from else _engine_log_probs(engines, token_ids)
        ray.get(actor_group.async_run_method(method_name="broadcast_to_vllm"))
        after = _engine_log_probs(engines, token_ids)
        if self.args.vllm.enable_sleep:
            batch_vllm_engine_call(engines, "sleep")
        for i, (old, new) in enumerate(zip(before, after)):
            moved = (torch.cat(new) - torch.cat(old)).abs().mean().item()
            if not moved <= SAME_WEIGHTS:
                raise SyncError(
                    f"engine {i} computes other log-probs after the first weight sync ({moved:.3g} nats a token), and"
                    " was sent the weights that it had loaded itself: vLLM rearranges this model's weights when it"
                    " loads them, and a sync does not, so that the model cannot be trained here"
                )
        samples = as_samples(token_ids)
        gaps = _gaps(_trainer_log_probs(actor_group, samples), after, samples)
        # not judged: a prompt's tokens can be unlikely, and rounding then moves their log-probs further
        self.at_start = {"logprob_gap_start_mean": gaps.mean().item(), "logprob_gap_start_max": gaps.max().item()}

    def take_start(self) -> dict[str, float]:
        """Metrics of ``start``, once."""
        found, self.at_start = self.at_start, {}
        return found

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
                With --vllm.enable_sleep their key-value caches sleep. They are woken when the trainer has computed,
                and stay awake, as generation comes next.

        Raises FloatingPointError if a log-prob is not finite, SyncError if the gap is too large.
        """
        if not self.samples:
            return {}
        trainer = _trainer_log_probs(actor_group, self.samples)
        token_ids = [sample.sequences[0].tolist() for sample in self.samples]
        if self.args.vllm.enable_sleep:
            batch_vllm_engine_call(engines, "wake_up")
        gaps = _gaps(trainer, _engine_log_probs(engines, token_ids), self.samples)
        result = {"sync_logprob_gap_mean": gaps.mean().item(), "sync_logprob_gap_max": gaps.max().item()}
        if self.last_log_probs is not None:
            moved = [
                (now - before).float()[sample.action_mask[0].bool()].abs()
                for now, before, sample in zip(trainer, self.last_log_probs, self.samples)
            ]
            result["sync_logprob_moved_mean"] = torch.cat(moved).mean().item()
        self.last_log_probs = trainer
        self.judge(result["sync_logprob_gap_mean"])
        return result


def _gaps(trainer: list[torch.Tensor], engines: list[list[torch.Tensor]], samples: list) -> torch.Tensor:
    """|log p_vllm - log p_trainer| of all response tokens and engines, (T,)."""
    gaps = []
    for i, engine in enumerate(engines):
        for ours, theirs, sample in zip(trainer, engine, samples):
            mask = sample.action_mask[0].bool()
            for side, log_probs in (("the trainer's", ours), (f"engine {i}'s", theirs)):
                if not log_probs[mask].isfinite().all():
                    raise FloatingPointError(f"after a weight sync {side} log-probs are not finite")
            gaps.append((ours.float() - theirs)[mask].abs())
    return torch.cat(gaps)


def _engine_log_probs(engines: list, token_ids: list[list[int]]) -> list[list[torch.Tensor]]:
    """For each engine the log-probs of each sequence's tokens but the first."""
    found = ray.get([engine.sequence_log_probs.remote(token_ids) for engine in engines])
    return [[torch.tensor(log_probs) for log_probs in each] for each in found]


def _trainer_log_probs(actor_group, samples: list) -> list[torch.Tensor]:
    """The trainer's log-probs (A,) of each sequence."""
    ranks = len(actor_group._actor_handlers) // actor_group.duplicate_actors
    # every rank computes every sequence: under ZeRO-3 all ranks must do the same forwards
    on_all = samples * ranks
    kwargs = {
        key: [getattr(sample, key) for sample in on_all] for key in ("sequences", "action_mask", "attention_mask")
    }
    refs = actor_group.async_run_method_batch(method_name="log_probs_at_temperature_1", **kwargs)
    return [row[0] for row in ray.get(refs)[0][: len(samples)]]


def engine_memory(engines: list) -> float:
    """Return the largest resident memory of an engine, MiB; nan if one has just died, which must not end the run."""
    try:
        return max(ray.get([engine.memory_mib.remote() for engine in engines]))
    except ray.exceptions.RayError:
        return float("nan")
