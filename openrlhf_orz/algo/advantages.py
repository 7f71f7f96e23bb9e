"""Advantages and returns (Sec. 2.1.3), pure and on whole batches.

Notation: B sequences, A action tokens; ``mask_BA`` is 1 on action tokens, 0 on padding.
"""

import torch


def discounted_sum(x_BA: torch.Tensor, discount: float, block: int = 128) -> torch.Tensor:
    """y_t = x_t + discount * y_{t+1} along the last dimension, y after the end being 0.

    Shape and dtype as ``x_BA``. At discount 1 a reverse cumulative sum; else a scan: within blocks of K steps a
    product with powers of the discount, and over the blocks' first steps the same sum again.
    """
    if discount == 1.0:
        # total - prefix sums would cancel; flipping keeps the order of the recursion
        return x_BA.flip(-1).cumsum(-1).flip(-1)
    if discount == 0.0 or x_BA.shape[-1] <= 1:
        return x_BA.clone()
    steps = x_BA.shape[-1]
    block = min(block, steps)
    powers_K = discount ** torch.arange(block, device=x_BA.device, dtype=torch.float64)
    distance_KK = torch.arange(block)[:, None] - torch.arange(block)
    weights_KK = torch.where(distance_KK >= 0, discount ** distance_KK.clamp(min=0).double(), 0.0).to(x_BA)
    x_BNK = torch.nn.functional.pad(x_BA, (0, -steps % block)).unflatten(-1, (-1, block))
    y_BNK = x_BNK @ weights_KK  # y_j = sum over k >= j of discount^(k - j) x_k, as if the block were the end
    if y_BNK.shape[1] > 1:
        first_BN = discounted_sum(y_BNK[..., 0], discount**block, block)
        y_BNK[:, :-1] += first_BN[:, 1:, None] * (powers_K.flip(0) * discount).to(x_BA)
    return y_BNK.flatten(1)[:, :steps]


def gae(
    values_BA: torch.Tensor, rewards_BA: torch.Tensor, mask_BA: torch.Tensor, gamma: float = 1.0, lambd: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation: A_t = sum_k (gamma lambd)^k delta_{t+k} with
    delta_t = r_t + gamma V(s_{t+1}) - V(s_t), and returns A_t + V(s_t).

    At gamma = lambd = 1 the deltas telescope to A_t = R_t - V(s_t) with R_t the sum of rewards from t on.

    Args:
        values_BA, rewards_BA: (B, A) float.
        mask_BA: (B, A) 0/1 or bool; values and rewards outside it count as 0.

    Returns:
        advantages (B, A), returns (B, A), float.
    """
    values_BA, rewards_BA = values_BA * mask_BA, rewards_BA * mask_BA
    if gamma == 1.0 and lambd == 1.0:
        returns_BA = discounted_sum(rewards_BA, 1.0)
        return returns_BA - values_BA, returns_BA
    next_values_BA = torch.nn.functional.pad(values_BA[:, 1:], (0, 1))
    advantages_BA = discounted_sum(rewards_BA + gamma * next_values_BA - values_BA, gamma * lambd)
    return advantages_BA, advantages_BA + values_BA
