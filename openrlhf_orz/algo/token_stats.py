"""Statistics over the action tokens of a rollout: means, the critic's fit, the gap between sampler and trainer."""

import math
from collections.abc import Callable

import torch


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of ``x`` where ``mask`` (same shape) is 1, as a float32 scalar; 0 if the mask is empty."""
    mask = mask.float()
    return (x.float() * mask).sum() / mask.sum().clamp(min=1)


def positive_nll(
    log_probs_BA: torch.Tensor, mask_BA: torch.Tensor, right_B: torch.Tensor, tokens: float | torch.Tensor
) -> torch.Tensor:
    """-1/N times the sum of log-probs over the tokens of right responses (VAPO, arXiv 2504.05118), a scalar.

    Args:
        log_probs_BA, mask_BA: (B, A) float; the mask is 1 on action tokens.
        right_B: (B,) bool or 0/1.
        tokens: N, the tokens of right responses of the whole optimizer step. The results of its parts add up.
    """
    return -(log_probs_BA * mask_BA * right_B[:, None]).sum() / max(1.0, float(tokens))


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the masked tokens; nan if the returns do not vary.

    All three have the same shape.
    """
    keep = mask.bool()
    returns, residuals = returns[keep].float(), (returns - values)[keep].float()
    variance = returns.var(unbiased=False)
    return float("nan") if variance == 0 else (1 - residuals.var(unbiased=False) / variance).item()


def fit_sums(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The sums behind the explained variance of the masked tokens, (5,) float64. They add up over batches and ranks.

    Tokens, returns, squared returns, errors, squared errors; ``explained_variances`` takes them.
    """
    keep = mask.bool()
    returns, errors = returns[keep].double(), (returns - values)[keep].double()
    return torch.stack(
        [returns.new_tensor(len(returns)), returns.sum(), returns.square().sum(), errors.sum(), errors.square().sum()]
    )


def explained_variances(sums_K5: torch.Tensor) -> list[float]:
    """1 - Var(returns - values) / Var(returns) for K rows of ``fit_sums``; nan where the returns do not vary."""
    count, total, squares, error, error_squares = sums_K5.double().cpu().unbind(-1)
    count = count.clamp(min=1)
    variance = squares / count - (total / count).square()
    residual = error_squares / count - (error / count).square()
    varies = variance > 1e-12 * (squares / count)
    return torch.where(varies, 1 - residual / torch.where(varies, variance, 1), torch.nan).tolist()


class LogProbGap:
    """How far the policy that sampled (in vLLM) is from the policy that trains.

    Sums d = log p_vllm - log p_trainer over the response tokens for which vLLM gave a log-prob.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64)  # of |d|, of d, tokens
        self.largest = torch.zeros(1, dtype=torch.float64)
        self.gaps: list[torch.Tensor] = []  # mean |d| of each response

    @torch.no_grad()
    def add(
        self, rollout_log_probs_BA: torch.Tensor, log_probs_BA: torch.Tensor, mask_BA: torch.Tensor
    ) -> torch.Tensor:
        """Count a batch. ``rollout_log_probs_BA`` is nan where vLLM was not asked.

        Returns the mean |d| of each response, (B,), 0 where it is not known.
        """
        keep_BA = mask_BA.bool() & ~rollout_log_probs_BA.isnan()
        d_BA = torch.where(keep_BA, rollout_log_probs_BA.double() - log_probs_BA.double(), 0.0)
        tokens_B = keep_BA.sum(-1)
        gap_B = d_BA.abs().sum(-1) / tokens_B.clamp(min=1)
        self.sums += torch.stack([d_BA.abs().sum(), d_BA.sum(), tokens_B.sum().double()]).cpu()
        self.largest = torch.maximum(self.largest, d_BA.abs().amax().cpu()[None])
        self.gaps.append(gap_B[tokens_B > 0].cpu())
        return gap_B

    def metrics(self, all_reduce: Callable[..., torch.Tensor], limit: float = math.inf) -> dict[str, float]:
        """Over all ranks, by ``all_reduce(tensor, op="sum" or "max")``; empty if no token was measured.

        With a ``limit`` also the share of responses whose own gap is above it.
        """
        above_N = torch.cat([*self.gaps, torch.zeros(0)]) > limit
        counts = torch.tensor([above_N.sum(), len(above_N)], dtype=torch.float64)
        absolute, signed, tokens, above, responses = all_reduce(torch.cat([self.sums, counts]), op="sum").tolist()
        largest = all_reduce(self.largest.clone(), op="max").item()
        if not tokens:
            return {}
        result = {
            "logprob_gap_mean": absolute / tokens,
            "logprob_gap_kl": signed / tokens,
            "logprob_gap_max": largest,
            "logprob_gap_tokens": tokens,
        }
        return result | ({"logprob_gap_masked": above / responses} if limit < math.inf else {})
