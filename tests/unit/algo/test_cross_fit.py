"""Advantages from values taken in the critic's training: normalised over all ranks, whatever the sharding."""

import math

import pytest
import torch

from openrlhf_orz.algo.advantages import gae
from openrlhf_orz.algo.cross_fit import cross_fit_advantages
from openrlhf_orz.algo.losses import normalize_advantages


def test_by_hand():
    """Errors 1 - 0.5 and 0 - 0.5, twice; the masked token counts nowhere: mean 0, standard deviation 0.5."""
    returns, values = [torch.tensor([1.0, 1.0, 9.0]), torch.zeros(2)], [torch.full((3,), 0.5), torch.full((2,), 0.5)]
    masks = [torch.tensor([1, 1, 0]), torch.tensor([1, 1])]
    advantages, metrics = cross_fit_advantages(returns, values, masks)
    assert [a.tolist() for a in advantages] == [[1, 1, 0], [-1, -1]]
    assert metrics == {"explained_variance": 0.0}
    unscaled, _ = cross_fit_advantages(returns, values, masks, scale=False)
    assert [a.tolist() for a in unscaled] == [[0.5, 0.5, 0], [-0.5, -0.5]]


def batch(samples=6, length=9):
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(length) < torch.randint(1, length + 1, (samples, 1), generator=generator)).float()
    rewards = torch.zeros(samples, length)
    rewards[torch.arange(samples), mask.sum(-1).long() - 1] = torch.randint(
        0, 2, (samples,), generator=generator
    ).float()
    return torch.randn(samples, length, generator=generator), rewards, mask


def test_equals_gae_with_the_same_values():
    values, rewards, mask = batch()
    advantages, returns = gae(values, rewards, mask)
    expected = normalize_advantages(advantages, mask)
    got, _ = cross_fit_advantages(list(returns), list(values), list(mask))
    torch.testing.assert_close(torch.stack(got), expected)


def test_sharding_changes_nothing():
    values, rewards, mask = batch()
    _, returns = gae(values, rewards, mask)
    whole, metrics = cross_fit_advantages(list(returns), list(values), list(mask))
    parts = [slice(0, 2), slice(2, 6)]
    sums = []  # what each rank contributes, recorded in a first pass
    for part in parts:
        recorded = []
        cross_fit_advantages(
            list(returns[part]), list(values[part]), list(mask[part]), total=lambda x: recorded.append(x) or x
        )
        sums.append(recorded)
    first = sums[0][0] + sums[1][0]
    mean, return_mean = (first[1:] / first[0]).tolist()
    keep = mask.bool()
    errors = (returns - values)[keep].double()
    second = torch.stack([(errors - mean).square().sum(), (returns[keep].double() - return_mean).square().sum()])
    for part in parts:
        totals = iter([first, second])
        got, same = cross_fit_advantages(
            list(returns[part]), list(values[part]), list(mask[part]), total=lambda x: next(totals)
        )
        torch.testing.assert_close(torch.stack(got), torch.stack(whole[part]))
        assert same == pytest.approx(metrics)


def test_returns_that_do_not_vary_and_no_tokens():
    advantages, metrics = cross_fit_advantages([torch.ones(3)], [torch.ones(3)], [torch.ones(3)])
    assert advantages[0].tolist() == [0, 0, 0] and math.isnan(metrics["explained_variance"])
    advantages, metrics = cross_fit_advantages([torch.ones(2)], [torch.zeros(2)], [torch.zeros(2)])
    assert advantages[0].tolist() == [0, 0] and math.isnan(metrics["explained_variance"])
