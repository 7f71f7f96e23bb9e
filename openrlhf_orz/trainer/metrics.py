"""What a step's rollouts say, pure; docs/metrics.md defines each key."""

import math

import torch

from openrlhf_orz.reward.verdict import Verdict


def mean(values: torch.Tensor) -> float:
    """The mean, or nan of nothing."""
    return values.double().mean().item() if values.numel() else float("nan")


def rollout_metrics(
    rewards: torch.Tensor,
    lengths: torch.Tensor,
    truncated: torch.Tensor,
    verdicts: torch.Tensor,
    formats: torch.Tensor,
    samples_per_prompt: int,
) -> dict[str, float]:
    """Metrics of B responses, those to one prompt next to each other.

    Args:
        rewards: (B,) 0 or 1.
        lengths: (B,) response tokens.
        truncated, formats: (B,) 0 or 1.
        verdicts: (B,) numbers of ``Verdict``; negative where another grader was used.
    """
    right = rewards > 0
    groups = rewards.double().reshape(-1, samples_per_prompt)
    result = {
        "reward": mean(rewards),
        "response_length": mean(lengths),
        "response_length_std": lengths.double().std(unbiased=False).item(),
        "response_length_max": float(lengths.max()),
        "response_length_right": mean(lengths[right]),
        "response_length_wrong": mean(lengths[~right]),
        "truncated": mean(truncated),
        "format": mean(formats),
        "pass_at_n": mean((groups > 0).any(-1)),
        "all_right": mean((groups > 0).all(-1)),
        "all_wrong": mean((groups <= 0).all(-1)),
        "samples": float(len(rewards)),
        "prompts": float(len(groups)),
    }
    for verdict in Verdict:
        result[f"verdict_{verdict.label}"] = float((verdicts == verdict).sum())
    return result


def rank_metrics(shares: list[list[int]]) -> dict[str, float]:
    """How many samples the data-parallel ranks train on, from the samples of each."""
    sizes = [len(share) for share in shares]
    return {"samples_per_rank_min": float(min(sizes)), "samples_per_rank_max": float(max(sizes))}


# OpenRLHF's names and ours; what is not listed keeps its name
RENAMED = {
    "timing/generation": "seconds_generation",
    "timing/make_experience": "seconds_experience",
    "timing/ppo_train": "seconds_training",
    "timing/broadcast": "seconds_sync",
    "timing/step_total": "seconds_step",
    "values": "value_mean",
}
# per-sample numbers that OpenRLHF averages on the way; ours above say the same, exactly
DROPPED = {
    "generated_samples", "verdict", "rule", "ended", "format", "reward", "score", "return", "response_length",
    "total_length", "truncated", "response_clip_ratio", "rollout/reward_mean", "rollout/reward_std",
    "rollout/response_length_mean", "rollout/truncated_rate", "rollout/num_samples",
}  # fmt: skip
PHASE_TOKENS = {"generation": "response_tokens", "experience": "tokens", "training": "tokens"}  # what each works on
OF_A_REFERENCE = {"kl", "logprobs_diff"}  # zeros where there is none


def step_record(step: int, status: dict, ours: dict) -> dict[str, float | None]:
    """One flat line of metrics.jsonl: ours, then what OpenRLHF's trainers report; what is not finite becomes None."""
    record = {"step": step, **ours}
    for key, value in status.items():
        if key in DROPPED or not isinstance(value, (int, float)) or (key in OF_A_REFERENCE and value == 0):
            continue
        record.setdefault(RENAMED.get(key, key), value)
    seconds = record.get("seconds_step")
    if seconds:
        record["tokens_per_second"] = record["tokens"] / seconds
    for phase, tokens in PHASE_TOKENS.items():
        if record.get(f"seconds_{phase}") and tokens in record:
            record[f"tokens_per_second_{phase}"] = record[tokens] / record[f"seconds_{phase}"]
    return {key: value if isinstance(value, int) or math.isfinite(value) else None for key, value in record.items()}


def as_numbers(metrics: dict) -> dict:
    """A sample's metrics without tensors of one number: of a batch, numbers are one tensor on their way to the ranks;
    tensors are a list of them, pickled one by one.
    """
    return {key: x.item() if isinstance(x, torch.Tensor) and x.dim() == 0 else x for key, x in metrics.items()}
