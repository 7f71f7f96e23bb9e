"""Masked statistics over action tokens, pure torch."""

import torch


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of ``x`` where ``mask`` is 1, as a float32 scalar; 0 if the mask is empty."""
    mask = mask.float()
    return (x.float() * mask).sum() / mask.sum().clamp(min=1)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the masked tokens; nan if the returns do not vary."""
    keep = mask.bool()
    returns, residuals = returns[keep].float(), (returns - values)[keep].float()
    variance = returns.var(unbiased=False)
    return float("nan") if variance == 0 else (1 - residuals.var(unbiased=False) / variance).item()
