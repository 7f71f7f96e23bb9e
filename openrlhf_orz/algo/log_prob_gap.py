"""How far the policy that sampled (vLLM's) is from the policy that trains, pure torch."""

from collections.abc import Callable

import torch


class LogProbGap:
    """Sums d = log p_vllm - log p_trainer over the response tokens for which vLLM gave a log-prob."""

    def __init__(self):
        self.sums = torch.zeros(3, dtype=torch.float64)  # of |d|, of d, tokens
        self.largest = torch.zeros(1, dtype=torch.float64)

    @torch.no_grad()
    def add(self, rollout_log_probs: torch.Tensor, log_probs: torch.Tensor, mask: torch.Tensor) -> None:
        """All (B, A); ``rollout_log_probs`` is nan where vLLM was not asked."""
        keep = mask.bool() & ~rollout_log_probs.isnan()
        gap = (rollout_log_probs.double() - log_probs.double())[keep].cpu()
        if len(gap):
            self.sums += torch.stack([gap.abs().sum(), gap.sum(), gap.new_tensor(len(gap))])
            self.largest = torch.maximum(self.largest, gap.abs().max()[None])

    def metrics(self, all_reduce: Callable[..., torch.Tensor]) -> dict[str, float]:
        """Over all ranks, by ``all_reduce(tensor, op="sum" or "max")``; empty where no token was measured."""
        absolute, signed, tokens = all_reduce(self.sums.clone(), op="sum").tolist()
        largest = all_reduce(self.largest.clone(), op="max").item()
        if not tokens:
            return {}
        return {
            "logprob_gap_mean": absolute / tokens,
            "logprob_gap_kl": signed / tokens,
            "logprob_gap_max": largest,
            "logprob_gap_tokens": tokens,
        }
