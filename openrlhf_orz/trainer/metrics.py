"""The metrics of a step, collected phase by phase into one line; docs/metrics.md defines each key."""

import math
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from openrlhf_orz.algo.text_stats import reflects, repetition
from openrlhf_orz.reward.verdict import Verdict
from openrlhf_orz.trainer.batches import in_rollout_order

QUANTILES = (10, 50, 90)  # per cent


def mean(values: torch.Tensor) -> float:
    """The mean, or nan of nothing."""
    return values.double().mean().item() if values.numel() else float("nan")


def rollout_metrics(
    rewards: torch.Tensor,
    right: torch.Tensor,
    lengths: torch.Tensor,
    truncated: torch.Tensor,
    verdicts: torch.Tensor,
    formats: torch.Tensor,
    samples_per_prompt: int,
) -> dict[str, float]:
    """Metrics of B responses, those to one prompt next to each other.

    Args:
        rewards: (B,) as given, before penalties.
        right: (B,) bool, at least ``--orz.right_reward``.
        lengths: (B,) response tokens.
        truncated: (B,) 0 or 1.
        formats: (B,) 0 or 1, nan where nobody looked.
        verdicts: (B,) numbers of ``Verdict``, nan where no verifier was asked.
    """
    groups = right.reshape(-1, samples_per_prompt)
    result = {
        "reward": mean(rewards),
        "response_length": mean(lengths),
        "response_length_std": lengths.double().std(unbiased=False).item(),
        "response_length_max": float(lengths.max()),
        "response_length_right": mean(lengths[right]),
        "response_length_wrong": mean(lengths[~right]),
        "truncated": mean(truncated),
        "format": mean(formats[~formats.isnan()]),
        "pass_at_n": mean(groups.any(-1)),
        "all_right": mean(groups.all(-1)),
        "all_wrong": mean(~groups.any(-1)),
        "samples": float(len(rewards)),
        "prompts": float(len(groups)),
    }
    graded = not verdicts.isnan().all()
    for verdict in Verdict:
        result[f"verdict_{verdict.label}"] = float((verdicts == verdict).sum()) if graded else float("nan")
    return result


def trained_rewards(experiences: list, args) -> torch.Tensor | None:
    """The rewards (B,) that advantages were made of, in the rollout's order; None where they are the responses' own.

    OpenRLHF changes an experience's rewards by length (``--reward.overlong_*``, ``--reward.stop_properly_*``), and
    clips each reward (``--reward.clip_range``) or, where responses to a prompt are compared, its distance to theirs.
    """
    reward, compared = args.reward, args.algo.advantage.estimator not in ("gae", "reinforce")
    low, high = (-math.inf, math.inf) if compared else reward.clip_range
    rewards_B = torch.cat([experience.rewards.float() for experience in experiences])
    clipped_B = rewards_B.clamp(low, high)
    by_length = reward.overlong_buffer_len is not None or reward.stop_properly_penalty_coef is not None
    if not by_length and torch.equal(clipped_B, rewards_B):
        return None
    return in_rollout_order(experiences, clipped_B)


def rank_metrics(shares: list[list[int]]) -> dict[str, float]:
    """How many samples the data-parallel ranks train on, from the samples of each."""
    sizes = [len(share) for share in shares]
    return {"samples_per_rank_min": float(min(sizes)), "samples_per_rank_max": float(max(sizes))}


def spread(name: str, values: torch.Tensor) -> dict[str, float]:
    """Standard deviation and quantiles (linear between neighbours) of ``values`` (N,); nan of nothing."""
    values = values.double()
    result = {f"{name}_std": values.std(unbiased=False).item() if len(values) else float("nan")}
    for percent in QUANTILES:
        # torch.quantile takes at most 16 million values; a rollout has fewer responses
        result[f"{name}_p{percent}"] = values.quantile(percent / 100).item() if len(values) else float("nan")
    return result


def length_metrics(lengths: torch.Tensor, right: torch.Tensor) -> dict[str, float]:
    """Spread of response lengths: of all, of right and of wrong responses.

    Args:
        lengths: (B,) response tokens.
        right: (B,) bool.
    """
    return {
        **spread("response_length", lengths),
        **spread("response_length_right", lengths[right]),
        **spread("response_length_wrong", lengths[~right]),
    }


def reflection_metrics(reflecting: torch.Tensor, lengths: torch.Tensor, right: torch.Tensor) -> dict[str, float]:
    """Fig. 7. ``reflecting`` and ``right`` (B,) bool, ``lengths`` (B,) tokens."""
    return {
        "reflection": mean(reflecting),
        "reflection_reward": mean(right[reflecting]),
        "reflection_length": mean(lengths[reflecting]),
        "reflection_length_right": mean(lengths[reflecting & right]),
    }


def text_metrics(texts: list[str], token_ids: list, right: torch.Tensor) -> dict[str, float]:
    """Reflection and repetition of B responses: their texts, their token ids, and which are right (B,) bool."""
    lengths = torch.tensor([len(ids) for ids in token_ids])
    repeated = torch.tensor([repetition(ids) for ids in token_ids], dtype=torch.float64)
    return {
        **reflection_metrics(torch.tensor([reflects(text) for text in texts]), lengths, right),
        "repetition": mean(repeated),
        "repetition_p90": repeated.quantile(0.9).item(),
    }


# OpenRLHF's names and ours; what is not listed keeps its name
RENAMED = {
    "timing/generation": "seconds_generation",
    "timing/make_experience": "seconds_experience",
    "timing/ppo_train": "seconds_training",
    "timing/broadcast": "seconds_sync",
    "timing/critic_wait": "seconds_critic_wait",
    "timing/step_total": "seconds_step",
    "values": "value_mean",
}
# per-sample numbers that OpenRLHF averages on the way; ours above say them exactly (reward_trained: after penalties)
DROPPED = {
    "generated_samples", "verdict", "rule", "ended", "right", "format", "reward", "score", "return", "response_length",
    "total_length", "truncated", "response_clip_ratio", "rollout/reward_mean", "rollout/reward_std",
    "rollout/response_length_mean", "rollout/truncated_rate", "rollout/num_samples",
}  # fmt: skip
PHASE_TOKENS = {"generation": "response_tokens", "experience": "tokens", "training": "tokens"}  # what each works on
OF_A_REFERENCE = {"kl", "logprobs_diff"}  # zeros where there is none


def step_record(step: int, status: dict, ours: dict, reference: bool = False) -> dict[str, float | None]:
    """One flat line of metrics.jsonl: ours, then what OpenRLHF's trainers report; what is not finite becomes None.

    ``reference``: whether there is a reference model.
    """
    record = {"step": step, **ours}
    for key, value in status.items():
        if key in DROPPED or not isinstance(value, (int, float)) or (key in OF_A_REFERENCE and not reference):
            continue
        record.setdefault(RENAMED.get(key, key), value)
    seconds = record.get("seconds_step")
    if seconds:
        record["tokens_per_second"] = record["tokens"] / seconds
    for phase, tokens in PHASE_TOKENS.items():
        if record.get(f"seconds_{phase}") and tokens in record:
            record[f"tokens_per_second_{phase}"] = record[tokens] / record[f"seconds_{phase}"]
    return {key: value if isinstance(value, int) or math.isfinite(value) else None for key, value in record.items()}


def info(samples: list, key: str) -> torch.Tensor:
    """A number of each of B single-sample experiences, (B,) float; nan where one has none."""
    return torch.tensor([float(sample.info[key]) if key in sample.info else math.nan for sample in samples])


def response_tokens(sample) -> list[int]:
    """Token ids of the response in a single-sample experience of OpenRLHF's."""
    return sample.sequences[0][1:][sample.action_mask[0].bool()].tolist()


class StepMetrics:
    """Collects the metrics of the step that runs: ``start`` with its rollouts, ``add`` in each phase, ``record``.

    ``record`` is the step's line of metrics.jsonl; ``OrzTrainer.save_logs_and_checkpoints`` writes it.

    Texts are decoded and measured in a thread, while the models train on them. Not before: the thread would hold
    Python's lock while all GPUs wait for this process.
    """

    def __init__(self, tokenizer, samples_per_prompt: int, right_reward: float = 1.0):
        self.tokenizer, self.samples_per_prompt, self.right_reward = tokenizer, samples_per_prompt, right_reward
        self.values: dict[str, float] = {}
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="rollout-stats")
        self.samples: list = []  # whose texts are not measured yet
        self.pending: Future | None = None
        self.trained: list[float] | None = (
            None  # rewards that are trained on, where they are others than the responses'
        )

    def start(self, samples: list) -> None:
        """Begin a step with OpenRLHF's single-sample experiences, which are read only."""
        self.samples, self.trained = list(samples), None
        lengths = torch.tensor([int(sample.action_mask.sum()) for sample in samples])
        rewards = torch.tensor([float(sample.rewards) for sample in samples])
        right = self.right(samples)
        self.values = {
            **rollout_metrics(
                rewards,
                right,
                lengths,
                torch.tensor([float(sample.truncated) for sample in samples]),
                info(samples, "verdict"),
                info(samples, "format"),
                self.samples_per_prompt,
            ),
            **length_metrics(lengths, right),
            "response_tokens": float(lengths.sum()),
            "tokens": float(sum(int(sample.total_length) for sample in samples)),
        }

    def right(self, samples: list) -> torch.Tensor:
        """Which of B responses metrics count as right, (B,) bool: by their rewards, before penalties."""
        return torch.tensor([float(sample.rewards) >= self.right_reward for sample in samples])

    def _measure_texts(self, samples: list) -> dict[str, float]:
        token_ids = [response_tokens(sample) for sample in samples]
        texts = self.tokenizer.batch_decode(token_ids, skip_special_tokens=False)
        return text_metrics(texts, token_ids, self.right(samples))

    def note_trained(self, experiences: list, args) -> None:
        """Keep the rewards that the step's advantages were made of, and their mean."""
        rewards_B = trained_rewards(experiences, args)
        if rewards_B is not None:
            self.trained = rewards_B.tolist()
            self.add(reward_trained=mean(rewards_B))

    def add(self, metrics: dict | None = None, **more: float) -> None:
        """Metrics of a phase."""
        self.values.update(metrics or {}, **more)

    def measure_texts(self) -> None:
        """Begin with the texts, as this process waits for the ranks from now on."""
        if self.samples:
            samples, self.samples = self.samples, []
            self.pending = self.executor.submit(self._measure_texts, samples)

    def finish_texts(self) -> None:
        """Wait for the metrics of the texts; raises what went wrong in the thread."""
        self.measure_texts()
        if self.pending is not None:
            self.add(self.pending.result())
            self.pending = None

    def record(self, step: int, status: dict, reference: bool = False) -> dict[str, float | None]:
        """As ``step_record``, from what was collected and OpenRLHF's ``status``."""
        return step_record(step, status, self.values, reference)
