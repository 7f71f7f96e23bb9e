"""The advantages of every estimator through OpenRLHF's experience maker and ours, by hand and by slow recursions."""

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF is not installed: bash tools/setup.sh")

import torch
from test_degenerate import make_experience, make_maker

from openrlhf_orz.algo.advantages import ESTIMATORS
from openrlhf_orz.trainer.experience_maker import OrzExperienceMaker


def slow_gae(values, rewards, mask, gamma, lambd):
    """Sec. 2.1.3, token by token."""
    advantages = torch.zeros_like(values)
    for b, length in enumerate(mask.sum(-1).tolist()):
        following_value = following_advantage = 0.0
        for t in reversed(range(length)):
            delta = rewards[b, t] + gamma * following_value - values[b, t]
            following_advantage = delta + gamma * lambd * following_advantage
            following_value = values[b, t]
            advantages[b, t] = following_advantage
    return advantages, (advantages + values) * mask


def slow_returns(rewards, mask, gamma):
    returns = torch.zeros_like(rewards)
    for b, length in enumerate(mask.sum(-1).tolist()):
        following = 0.0
        for t in reversed(range(length)):
            following = rewards[b, t] + gamma * following
            returns[b, t] = following
    return returns


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(7) < torch.tensor([7, 1, 4, 6])[:, None]).long()
    values = torch.randn(4, 7, generator=generator, dtype=torch.float64) * mask
    return values, torch.randn(4, 7, generator=generator, dtype=torch.float64) * mask, mask


def test_gae_gets_gamma_as_gamma_and_lambda_as_lambda():
    values, rewards, mask = batch()
    found = make_maker().get_advantages_and_returns(values, rewards, mask, 0.99, 0.5)
    for ours, expected in zip(found, slow_gae(values, rewards, mask, 0.99, 0.5)):
        torch.testing.assert_close(ours * mask, expected)


def test_cross_fitted_values_leave_returns_without_values():
    _, rewards, mask = batch()
    advantages, returns = make_maker().get_advantages_and_returns(None, rewards, mask, 1.0, 1.0)
    assert (advantages == 0).all()
    torch.testing.assert_close(returns * mask, slow_returns(rewards, mask, 1.0))


@pytest.mark.parametrize("gamma", [1.0, 0.99, 0.5])
def test_cumulative_returns(gamma):
    _, rewards, mask = batch()
    found = make_maker(estimator="reinforce").get_cumulative_returns(rewards, mask, gamma)
    torch.testing.assert_close(found * mask, slow_returns(rewards, mask, gamma))


@pytest.mark.parametrize("estimator", ["gae", "reinforce"])
def test_the_flags_reach_the_whole_computation(estimator):
    """gamma 0.99 and lambda 0.5 from the command line to the normalised advantages."""
    flags = ["--algo.advantage.gamma", "0.99", "--algo.advantage.lambd", "0.5"]
    values, _, mask = batch()
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0])
    maker = make_maker(OrzExperienceMaker, estimator, 2, *flags)
    (experience,) = maker.compute_advantages_and_returns(
        [make_experience(rewards.tolist(), mask.sum(-1).tolist(), values.float())]
    )
    last = torch.zeros(4, 7).scatter(1, mask.sum(-1, keepdim=True) - 1, rewards[:, None])
    if estimator == "gae":
        advantages, returns = slow_gae(values.float(), last, mask, 0.99, 0.5)
    else:
        advantages = returns = slow_returns(last, mask, 0.99)
    torch.testing.assert_close(experience.returns * mask, returns)
    actions = advantages[mask.bool()]
    expected = (advantages - actions.mean()) / actions.std(unbiased=False) * mask
    torch.testing.assert_close(experience.advantages * mask, expected, rtol=1e-4, atol=1e-5)


# Rewards 1, 0 to the first prompt and 1, 1 to the second, in responses of one token: the advantage of each.
BY_HAND = {
    "gae": [3**-0.5, -(3**0.5), 3**-0.5, 3**-0.5],  # values of 0: mean 3/4, biased standard deviation sqrt(3)/4
    "reinforce": [3**-0.5, -(3**0.5), 3**-0.5, 3**-0.5],
    "flash_reinforce": [0.25, -0.75, 0.25, 0.25],
    "rloo": [1, -1, 0, 0],
    "dr_grpo": [0.5, -0.5, 0, 0],
    "group_norm": [0.5**0.5, -(0.5**0.5), 0, 0],  # unbiased standard deviation sqrt(1/2)
    "reinforce_baseline": [2**0.5, -(2**0.5), 0, 0],  # 1/2, -1/2, 0, 0 over the standard deviation sqrt(1/8)
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_each_estimator_by_hand(estimator):
    maker = make_maker(estimator=estimator, samples=2)
    (experience,) = maker.compute_advantages_and_returns([make_experience([1.0, 0.0, 1.0, 1.0], [1] * 4)])
    torch.testing.assert_close(experience.advantages[:, 0], torch.tensor(BY_HAND[estimator]).float())


def test_an_estimator_that_the_table_lacks_is_an_error(monkeypatch):
    monkeypatch.delitem(ESTIMATORS, "rloo")
    with pytest.raises(ValueError, match="unknown advantage estimator 'rloo': known are gae, dr_grpo"):
        make_maker(estimator="rloo", samples=2).compute_advantages_and_returns([make_experience([1.0, 0.0], [1, 1])])
