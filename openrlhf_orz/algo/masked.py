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


def fit_sums(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What ``explained_variances`` needs of some masked tokens, (5,) float64; it adds up over batches and ranks."""
    keep = mask.bool()
    returns, errors = returns[keep].double(), (returns - values)[keep].double()
    return torch.stack(
        [returns.new_tensor(len(returns)), returns.sum(), returns.square().sum(), errors.sum(), errors.square().sum()]
    )


def explained_variances(sums: torch.Tensor) -> list[float]:
    """1 - Var(returns - values) / Var(returns) of each row of ``sums`` (K, 5); nan where the returns do not vary."""
    count, total, squares, error, error_squares = sums.double().cpu().unbind(-1)
    count = count.clamp(min=1)
    variance = squares / count - (total / count).square()
    residual = error_squares / count - (error / count).square()
    varies = variance > 1e-12 * (squares / count)
    return torch.where(varies, 1 - residual / torch.where(varies, variance, 1), torch.nan).tolist()
