"""Advantages from values taken inside the critic's training forwards, pure torch.

With gamma = lambda = 1 the returns need no values (Sec. 2.1.3), so a sample's value may be taken in the forward that
trains the critic on it: before the update that uses the sample, after those that used others.
"""

from collections.abc import Callable

import torch


def cross_fit_advantages(
    returns: list[torch.Tensor],
    values: list[torch.Tensor],
    masks: list[torch.Tensor],
    scale: bool = True,
    total: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums,
    eps: float = 1e-8,
) -> tuple[list[torch.Tensor], dict[str, float]]:
    """A = R - V of each sample, normalised by mean and biased standard deviation over all action tokens of all ranks.

    Args:
        returns, values, masks: (A_i,) of each sample of this rank; masks are 1 on action tokens.
        scale: divide by the standard deviation, too.
        total: sums a float64 vector over ranks.

    Returns:
        advantages (A_i,) of each sample, and explained_variance (nan if the returns do not vary) of all ranks.
    """
    keep = [mask.bool() for mask in masks]
    returns_N = torch.cat([r[k] for r, k in zip(returns, keep)]).double()
    errors_N = returns_N - torch.cat([v[k] for v, k in zip(values, keep)]).double()
    count, *sums = total(torch.stack([errors_N.new_tensor(len(errors_N)), errors_N.sum(), returns_N.sum()])).tolist()
    count = max(1.0, count)
    mean, return_mean = (x / count for x in sums)
    squares = torch.stack([(errors_N - mean).square().sum(), (returns_N - return_mean).square().sum()])
    variance, return_variance = (x / count for x in total(squares).tolist())
    rstd = max(variance, eps) ** -0.5 if scale else 1.0
    advantages = [((r.float() - v.float()) - mean) * rstd * k for r, v, k in zip(returns, values, keep)]
    return advantages, {"explained_variance": 1 - variance / return_variance if return_variance else float("nan")}
