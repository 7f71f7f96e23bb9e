"""Advantages by hand and against slow recursions; estimators whose compared rewards are equal; cross-fitted values."""

import math

import pytest
import torch

from openrlhf_orz.algo.advantages import (
    ESTIMATORS,
    cross_fit_advantages,
    discounted_sum,
    gae,
    length_lambda,
    mean_advantages,
    tied_responses,
)
from openrlhf_orz.algo.token_stats import masked_mean
from openrlhf_orz.settings.batch_checks import GROUPED


def slow_gae(values, rewards, mask, gamma, lambd):
    """The recursion of Sec. 2.1.3, token by token."""
    values, rewards = values * mask, rewards * mask
    advantages = torch.zeros_like(values)
    for b in range(values.shape[0]):
        last = 0.0
        for t in reversed(range(values.shape[1])):
            following = values[b, t + 1] if t + 1 < values.shape[1] else 0.0
            last = rewards[b, t] + gamma * following - values[b, t] + gamma * lambd * last
            advantages[b, t] = last
    return advantages, advantages + values


def test_hand_worked_at_one():
    # reward 1 on the last of three tokens: R = 1 everywhere, A = 1 - V
    advantages, returns = gae(
        torch.tensor([[0.2, 0.5, 0.9]]), torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1, 3), 1.0, 1.0
    )
    torch.testing.assert_close(returns, torch.ones(1, 3))
    torch.testing.assert_close(advantages, torch.tensor([[0.8, 0.5, 0.1]]))


def test_hand_worked_below_one():
    # gamma 0.5, lambda 0.5: delta = (0.5*0.4 - 0.2, 1 - 0.4) = (0, 0.6); A = (0 + 0.25*0.6, 0.6)
    advantages, returns = gae(torch.tensor([[0.2, 0.4]]), torch.tensor([[0.0, 1.0]]), torch.ones(1, 2), 0.5, 0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.15, 0.6]]))
    torch.testing.assert_close(returns, torch.tensor([[0.35, 1.0]]))


@pytest.mark.parametrize("gamma, lambd", [(1.0, 1.0), (1.0, 0.95), (0.99, 1.0), (0.9, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_equals_the_recursion(gamma, lambd):
    torch.manual_seed(0)
    values, rewards = torch.randn(5, 17, dtype=torch.float64), torch.randn(5, 17, dtype=torch.float64)
    mask = (torch.arange(17) < torch.tensor([17, 1, 9, 0, 16])[:, None]).double()
    for fast, slow in zip(gae(values, rewards, mask, gamma, lambd), slow_gae(values, rewards, mask, gamma, lambd)):
        torch.testing.assert_close(fast, slow)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    values, rewards, mask = torch.randn(3, 8), torch.randn(3, 8), torch.ones(3, 8)
    padded = [torch.nn.functional.pad(x, (0, 5), value=7.0) for x in (values, rewards)]
    wide = gae(*padded, torch.nn.functional.pad(mask, (0, 5)), 1.0, 0.95)
    for narrow, padded in zip(gae(values, rewards, mask, 1.0, 0.95), wide):
        torch.testing.assert_close(padded[:, :8], narrow)


@pytest.mark.parametrize("steps", [1, 2, 127, 128, 129, 300, 20000])
@pytest.mark.parametrize("discount", [0.999, 0.95, 0.3])
def test_the_scan_over_blocks_equals_the_recursion(steps, discount):
    x = torch.randn(3, steps, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = x.clone()
    for t in reversed(range(steps - 1)):
        expected[:, t] += discount * expected[:, t + 1]
    torch.testing.assert_close(discounted_sum(x, discount), expected)
    torch.testing.assert_close(discounted_sum(x.float(), discount), expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lambd", [0.9, torch.tensor([0.9, 0.5])])
@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_what_an_environment_says_between_turns_is_no_state(gamma, lambd):
    """The numbers are those of the actions alone; as states of value 0 they flipped signs."""
    actions, values = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]), torch.rand(2, 4) + 0.5
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    wanted = gae(values, rewards, actions, gamma, lambd)
    places = [[0, 1, 4, 5], [2, 5, 6, 7]]  # of the actions; a turn may begin late

    def spread(x):
        out = torch.zeros(2, 8, dtype=x.dtype)
        for row, at in enumerate(places):
            out[row, at] = x[row]
        return out

    found = gae(spread(values) + 9 * (1 - spread(actions)), spread(rewards), spread(actions), gamma, lambd)
    for one, other in zip(found, wanted):
        assert torch.allclose(one, spread(other * actions), atol=1e-6)


def test_discounted_sum():
    x = torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(discounted_sum(x, 1.0), torch.tensor([[6.0, 5.0, 3.0]]))
    torch.testing.assert_close(discounted_sum(x, 0.5), torch.tensor([[2.75, 3.5, 3.0]]))
    torch.testing.assert_close(discounted_sum(x, 0.0), x)


# ---- a lambda for each sequence


def test_length_lambda_by_hand():
    """alpha 0.05: 1 - 20 / l. A response of 20 tokens or fewer, and an empty one, would get 0 or less."""
    found = length_lambda(torch.tensor([0, 10, 20, 40, 400]), 0.05)
    assert found.dtype == torch.float64 and found.tolist() == pytest.approx([0, 0, 0, 0.5, 0.95])


def test_each_sequence_has_its_lambda_by_hand():
    # delta = (0.4 - 0.2, 1 - 0.4) = (0.2, 0.6) in all three: A_1 = 0.2 + lambda 0.6
    values, rewards = torch.tensor([[0.2, 0.4]] * 3), torch.tensor([[0.0, 1.0]] * 3)
    advantages, returns = gae(values, rewards, torch.ones(3, 2), 1.0, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(advantages, torch.tensor([[0.2, 0.6], [0.5, 0.6], [0.8, 0.6]]))
    torch.testing.assert_close(returns, advantages + values)


@pytest.mark.parametrize("steps", [1, 2, 31, 32, 33, 1200])
def test_lambdas_of_sequences_equal_one_at_a_time(steps):
    torch.manual_seed(0)
    values, rewards = torch.randn(4, steps, dtype=torch.float64), torch.randn(4, steps, dtype=torch.float64)
    mask = (torch.arange(steps) < torch.tensor([steps, 1, steps // 2, steps])[:, None]).double()
    lambdas = torch.tensor([0.95, 0.5, 0.0, 1.0])
    advantages, _ = gae(values, rewards, mask, 1.0, lambdas)
    for row, lambd in enumerate(lambdas.tolist()):
        alone, _ = gae(values[row : row + 1], rewards[row : row + 1], mask[row : row + 1], 1.0, lambd)
        torch.testing.assert_close(advantages[row : row + 1], alone, rtol=1e-6, atol=1e-6)


# ---- a mean instead of the critic


def test_advantages_over_a_mean_by_hand():
    """Returns 1, 0 and 1, 1 of two prompts, mixed over two batches: over the groups' means 0.5, -0.5, 0, 0."""
    returns = [torch.tensor([[1.0, 1.0], [1.0, 9.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])]
    masks = [torch.tensor([[1, 1], [1, 0]]), torch.tensor([[1, 1], [1, 1]])]
    order = [0, 2, 1, 3]
    first, second = mean_advantages(returns, masks, order, 2, scale=False)
    assert first[0].tolist() == [0.5, 0.5] and first[1, 0] == 0 and second.tolist() == [[-0.5, -0.5], [0, 0]]
    # over the batch's mean 0.75: 0.25, 0.25, -0.75, 0.25; the mean over 7 tokens is -0.25 / 7
    first, second = mean_advantages(returns, masks, order, None, scale=False)
    assert first[0, 0].item() == pytest.approx(0.25 + 0.25 / 7) and second[0, 0].item() == pytest.approx(
        -0.75 + 0.25 / 7
    )
    scaled = torch.cat([a[m.bool()] for a, m in zip(mean_advantages(returns, masks, order, 2), masks)])
    assert scaled.mean().item() == pytest.approx(0, abs=1e-6)
    assert scaled.std(unbiased=False).item() == pytest.approx(1)


# rewards of two prompts with three responses each: tied, not tied
TIED = [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "estimator, rewards, expected",
    [
        ("gae", [1] * 6, [0] * 6),  # the critic's values differ
        ("rloo", TIED, [1, 1, 1, 0, 0, 0]),
        ("dr_grpo", TIED, [1, 1, 1, 0, 0, 0]),
        ("group_norm", TIED, [1, 1, 1, 0, 0, 0]),
        ("reinforce_baseline", TIED, [0] * 6),
        ("reinforce_baseline", [1, 1, 1, 0, 0, 0], [1] * 6),  # deviation 0 in each group
        ("reinforce", TIED, [0] * 6),
        ("reinforce", [1, 1, 1, 0, 0, 0], [0] * 6),
        ("reinforce", [0.7] * 6, [1] * 6),
        ("flash_reinforce", [1, 1, 1, 0, 0, 0], [0] * 6),
        ("flash_reinforce", [0.7] * 6, [1] * 6),
    ],
)
def test_tied_responses_by_hand(estimator, rewards, expected):
    found = tied_responses(torch.tensor(rewards, dtype=torch.float32), estimator, 3)
    assert found.dtype == torch.bool and found.int().tolist() == expected


def test_discounted_returns_of_equal_rewards_are_not_tied():
    rewards = torch.ones(4)
    assert not tied_responses(rewards, "reinforce", 1, gamma=0.99).any()
    assert tied_responses(rewards, "flash_reinforce", 1, gamma=0.99).all()  # for which OpenRLHF sets gamma to 1


def test_a_partial_batch_of_one_prompt():
    assert tied_responses(torch.zeros(2), "rloo", 2).tolist() == [True, True]


def test_an_unknown_estimator_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown advantage estimator 'vine': known are gae, .*flash_reinforce"):
        tied_responses(torch.zeros(2), "vine", 2)


def test_all_of_openrlhfs_estimators_are_known():
    pytest.importorskip("openrlhf", reason="OpenRLHF is not installed: bash tools/setup.sh")
    from openrlhf_orz.settings.upstream import openrlhf_parser

    actions = {action.dest: action for action in openrlhf_parser()._actions}
    assert set(ESTIMATORS) == set(actions["algo.advantage.estimator"].choices)


def test_the_flag_checks_know_which_estimators_compare_in_groups():
    assert {name for name, compared in ESTIMATORS.items() if compared.startswith("group")} == set(GROUPED)


# ---- values taken in the critic's training: normalised over all ranks, whatever the sharding


def normalised(advantages, mask):
    mean = masked_mean(advantages, mask)
    return (advantages - mean) * masked_mean((advantages - mean) ** 2, mask).clamp(min=1e-8).rsqrt() * mask


def test_cross_fit_by_hand():
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
    expected = normalised(advantages, mask)
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
            list(returns[part]), list(values[part]), list(mask[part]), total=lambda x, to=recorded: to.append(x) or x
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
            list(returns[part]), list(values[part]), list(mask[part]), total=lambda x, totals=totals: next(totals)
        )
        torch.testing.assert_close(torch.stack(got), torch.stack(whole[part]))
        assert same == pytest.approx(metrics)


def test_returns_that_do_not_vary_and_no_tokens():
    advantages, metrics = cross_fit_advantages([torch.ones(3)], [torch.ones(3)], [torch.ones(3)])
    assert advantages[0].tolist() == [0, 0, 0] and math.isnan(metrics["explained_variance"])
    advantages, metrics = cross_fit_advantages([torch.ones(2)], [torch.zeros(2)], [torch.zeros(2)])
    assert advantages[0].tolist() == [0, 0] and math.isnan(metrics["explained_variance"])
