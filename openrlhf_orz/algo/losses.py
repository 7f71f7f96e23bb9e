"""Policy and value losses of Eq. 1 and 2, pure: what the trainers' results are tested against.

Notation: B sequences, A action tokens; means are over all action tokens of the batch.
"""

import torch

from openrlhf_orz.algo.masked import masked_mean


def ppo_policy_loss(
    log_probs_BA: torch.Tensor,
    advantages_BA: torch.Tensor,
    mask_BA: torch.Tensor,
    old_log_probs_BA: torch.Tensor | None = None,
    eps_clip: float = 0.2,
) -> torch.Tensor:
    """Negative of Eq. 1 as a scalar. Without ``old_log_probs_BA`` the policy is its own old policy (strict
    on-policy): the ratio is 1, its gradient that of ``log_probs_BA``.
    """
    if old_log_probs_BA is None:
        old_log_probs_BA = log_probs_BA.detach()
    ratio_BA = (log_probs_BA - old_log_probs_BA).exp()
    clipped_BA = ratio_BA.clamp(1 - eps_clip, 1 + eps_clip)
    return -masked_mean(torch.min(ratio_BA * advantages_BA, clipped_BA * advantages_BA), mask_BA)


def value_loss(values_BA: torch.Tensor, returns_BA: torch.Tensor, mask_BA: torch.Tensor) -> torch.Tensor:
    """Eq. 2: 1/2 (V - R)^2, unclipped, as a scalar."""
    return 0.5 * masked_mean((values_BA - returns_BA) ** 2, mask_BA)


def normalize_advantages(advantages_BA: torch.Tensor, mask_BA: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Batch-level normalisation (Sec. 3.1) by the mean and the biased standard deviation over all action tokens."""
    mean = masked_mean(advantages_BA, mask_BA)
    variance = masked_mean((advantages_BA - mean) ** 2, mask_BA)
    return (advantages_BA - mean) * variance.clamp(min=eps).rsqrt() * mask_BA
