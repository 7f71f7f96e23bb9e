"""Advantages and returns (Sec. 2.1.3), pure functions on whole batches.

Notation: B sequences, A action tokens; ``mask_BA`` is 1 on action tokens, 0 on padding.
"""

from collections.abc import Callable
from typing import Literal

import torch

# What each advantage estimator of OpenRLHF (--algo.advantage.estimator) compares the reward of a response with.
ESTIMATORS: dict[str, Literal["critic", "group", "groups of the batch", "batch"]] = {
    "gae": "critic",  # the paper's: the sum of rewards from here on, minus the critic's value
    "rloo": "group",  # reward minus the mean of the other responses to the prompt
    "dr_grpo": "group",  # reward minus the mean of the prompt's responses
    "group_norm": "group",  # the same, divided by their standard deviation: GRPO
    "reinforce_baseline": "groups of the batch",  # reward minus the group's mean, normalised over the batch
    "reinforce": "batch",  # reward, normalised over the batch
    "flash_reinforce": "batch",  # reward minus the mean of the batch
}


NORMALISED = ("gae", "reinforce", "reinforce_baseline")  # by OpenRLHF, over all action tokens of the batch


def discounted_sum(x_BA: torch.Tensor, discount: float | torch.Tensor, block: int = 128) -> torch.Tensor:
    """y_t = x_t + discount * y_{t+1} along the last dimension, with y = 0 after the end.

    At discount 1 this is a reverse cumulative sum. Otherwise it is a scan: a product with powers of the discount
    inside each block of K steps, then the same sum over the first steps of the blocks.

    Args:
        x_BA: (B, A) float.
        discount: one for all sequences, or (B,) float, one for each.

    Returns:
        (B, A), dtype of ``x_BA``.
    """
    if isinstance(discount, torch.Tensor):
        return _discounted_sum_each(x_BA, discount.double(), min(block, 32))
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


def _discounted_sum_each(x_BA: torch.Tensor, discount_B: torch.Tensor, block: int) -> torch.Tensor:
    """The same scan with a discount (B,), float64, for each sequence. The blocks are smaller: each has its powers."""
    steps = x_BA.shape[-1]
    if steps <= 1:
        return x_BA.clone()
    block = min(block, steps)
    powers_BK = discount_B[:, None] ** torch.arange(block, device=x_BA.device)
    distance_KK = torch.arange(block, device=x_BA.device)[:, None] - torch.arange(block, device=x_BA.device)
    weights_BKK = torch.where(distance_KK >= 0, powers_BK[:, distance_KK.clamp(min=0)], 0.0).to(x_BA)
    x_BNK = torch.nn.functional.pad(x_BA, (0, -steps % block)).unflatten(-1, (-1, block))
    y_BNK = x_BNK @ weights_BKK
    if y_BNK.shape[1] > 1:
        first_BN = _discounted_sum_each(y_BNK[..., 0], discount_B**block, block)
        y_BNK[:, :-1] += first_BN[:, 1:, None] * (powers_BK.flip(-1) * discount_B[:, None]).to(x_BA)[:, None]
    return y_BNK.flatten(1)[:, :steps]


def length_lambda(lengths_B: torch.Tensor, alpha: float) -> torch.Tensor:
    """lambda = 1 - 1 / (alpha l) for responses of l tokens (VAPO, arXiv 2504.05118); 0 where that is negative.

    The longer a response, the nearer to 1, so that about the same share of it sees its reward.

    Args:
        lengths_B: (B,) tokens.
        alpha: above 0; VAPO's is 0.05, with which l = 20 gives 0 and l = 400 gives 0.95.

    Returns:
        (B,) float64 in [0, 1).
    """
    return (1 - 1 / (alpha * lengths_B.double())).clamp(min=0.0)


def gae(
    values_BA: torch.Tensor,
    rewards_BA: torch.Tensor,
    mask_BA: torch.Tensor,
    gamma: float = 1.0,
    lambd: float | torch.Tensor = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation: A_t = sum_k (gamma lambd)^k delta_{t+k} with
    delta_t = r_t + gamma V(s_{t+1}) - V(s_t), and returns A_t + V(s_t) (Sec. 2.1.3).

    At gamma = lambd = 1 the deltas telescope to A_t = R_t - V(s_t) with R_t the sum of rewards from t on.

    Args:
        values_BA, rewards_BA: (B, A) float.
        mask_BA: (B, A) 0/1 or bool; values and rewards outside it count as 0. Of an agent's several turns t + 1 is the
            next action token: what its environment says between them is no state.
        lambd: one for all sequences, or (B,) float, one for each.

    Returns:
        advantages (B, A) and returns (B, A), float.
    """
    values_BA, rewards_BA = values_BA * mask_BA, rewards_BA * mask_BA
    if gamma == 1.0 and not isinstance(lambd, torch.Tensor) and lambd == 1.0:
        returns_BA = discounted_sum(rewards_BA, 1.0)
        return returns_BA - values_BA, returns_BA
    mask_BA = mask_BA.bool()
    several_turns = bool((mask_BA[:, 1:] & ~mask_BA[:, :-1]).any())
    if several_turns:
        places_BA = (~mask_BA).sort(dim=-1, stable=True).indices  # action tokens first, in their order
        values_BA, rewards_BA = values_BA.gather(-1, places_BA), rewards_BA.gather(-1, places_BA)
    next_values_BA = torch.nn.functional.pad(values_BA[:, 1:], (0, 1))
    advantages_BA = discounted_sum(rewards_BA + gamma * next_values_BA - values_BA, gamma * lambd)
    returns_BA = advantages_BA + values_BA
    if several_turns:
        advantages_BA, returns_BA = (
            torch.zeros_like(x).scatter(-1, places_BA, x) * mask_BA for x in (advantages_BA, returns_BA)
        )
    return advantages_BA, returns_BA


def mean_advantages(
    returns: list[torch.Tensor],
    masks: list[torch.Tensor],
    order: list[int],
    group: int | None,
    scale: bool = True,
    eps: float = 1e-8,
) -> list[torch.Tensor]:
    """A_t = R_t - b with b the mean return of the responses to the prompt, or of the batch, instead of a value.

    It is what stands in for a critic that explains nothing (EVPO, arXiv 2604.19485). The response itself counts in b.
    Then they are normalised over all action tokens, as advantages with a critic are (Sec. 3.1).

    Args:
        returns: (B_i, A_i) of each batch, sums of rewards (gamma = 1); the first column is a response's whole return.
        masks: (B_i, A_i), 1 on action tokens.
        order: places of the responses of all batches in the rollout, where those to one prompt are neighbours.
        group: responses to a prompt; None: b is the mean of the batch.
        scale: divide by the biased standard deviation, too, not only subtract the mean.
        eps: lower bound of the variance.

    Returns:
        advantages (B_i, A_i) of each batch.
    """
    places_B = torch.tensor(order)
    totals_B = torch.cat([r[:, 0] for r in returns])
    in_order_B = torch.empty_like(totals_B).index_copy(0, places_B, totals_B)
    groups_PN = in_order_B.reshape(-1, group or len(order))
    baseline_B = groups_PN.mean(-1, keepdim=True).expand_as(groups_PN).reshape(-1)[places_B]
    raw = [r - b[:, None] for r, b in zip(returns, baseline_B.split([len(r) for r in returns]))]
    kept_T = torch.cat([a[m.bool()] for a, m in zip(raw, masks)]).double()
    mean = kept_T.mean() if len(kept_T) else kept_T.new_zeros(())
    variance = (kept_T - mean).square().mean().clamp(min=eps) if scale and len(kept_T) else kept_T.new_ones(())
    return [((a - mean) * variance.rsqrt()).to(a) for a in raw]


def tied_responses(
    rewards_B: torch.Tensor, estimator: str, samples_per_prompt: int, gamma: float = 1.0
) -> torch.Tensor:
    """Which responses have an advantage of exactly 0, because all rewards that they are compared with are equal.

    Rounding would make them differ by about 1e-9, and a division by a standard deviation of 0 would turn that into a
    training signal.

    Args:
        rewards_B: (B,) float; the responses to a prompt are neighbours.
        estimator: a key of ``ESTIMATORS``. Raises ValueError for any other name.
        samples_per_prompt: size of a group; divides B.
        gamma: discount. Below 1 the returns of "reinforce" differ from token to token, so nothing is tied.

    Returns:
        (B,) bool.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown advantage estimator {estimator!r}: known are {', '.join(ESTIMATORS)}")
    compared = ESTIMATORS[estimator]
    if compared == "critic" or (estimator == "reinforce" and gamma != 1):
        return torch.zeros_like(rewards_B, dtype=torch.bool)
    if compared == "batch":
        return (rewards_B == rewards_B[:1]).all().expand_as(rewards_B)
    groups_PN = rewards_B.reshape(-1, samples_per_prompt)
    tied_P = (groups_PN == groups_PN[:, :1]).all(-1)
    if compared == "groups of the batch":  # one group that is not tied sets the scale for all
        tied_P = tied_P.all().expand_as(tied_P)
    return tied_P.repeat_interleave(samples_per_prompt)


def cross_fit_advantages(
    returns: list[torch.Tensor],
    values: list[torch.Tensor],
    masks: list[torch.Tensor],
    scale: bool = True,
    total: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums,
    eps: float = 1e-8,
) -> tuple[list[torch.Tensor], dict[str, float]]:
    """A = R - V of each sample, normalised over all action tokens of all ranks (Sec. 3.1), with cross-fitted values.

    With gamma = lambda = 1 the returns need no values. So the value of a sample may come from the forward that trains
    the critic on this sample: before the update that uses it, after the updates that use other samples.

    Args:
        returns, values, masks: (A_i,) of each sample of this rank; masks are 1 on action tokens.
        scale: divide by the biased standard deviation, too, not only subtract the mean.
        total: sums a float64 vector over ranks.
        eps: lower bound of the variance.

    Returns:
        advantages (A_i,) of each sample, and explained_variance over all ranks (nan if the returns do not vary).
    """
    keep = [mask.bool() for mask in masks]
    returns_T = torch.cat([r[k] for r, k in zip(returns, keep)]).double()  # T action tokens of this rank
    errors_T = returns_T - torch.cat([v[k] for v, k in zip(values, keep)]).double()
    count, *sums = total(torch.stack([errors_T.new_tensor(len(errors_T)), errors_T.sum(), returns_T.sum()])).tolist()
    count = max(1.0, count)
    mean, return_mean = (x / count for x in sums)
    squares = torch.stack([(errors_T - mean).square().sum(), (returns_T - return_mean).square().sum()])
    variance, return_variance = (x / count for x in total(squares).tolist())
    rstd = max(variance, eps) ** -0.5 if scale else 1.0
    advantages = [((r.float() - v.float()) - mean) * rstd * k for r, v, k in zip(returns, values, keep)]
    return advantages, {"explained_variance": 1 - variance / return_variance if return_variance else float("nan")}
