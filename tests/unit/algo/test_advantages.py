import pytest
import torch

from openrlhf_orz.algo.advantages import discounted_sum, gae
from openrlhf_orz.algo.losses import normalize_advantages, ppo_policy_loss, value_loss
from openrlhf_orz.algo.masked import explained_variance, masked_mean


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


def test_discounted_sum():
    x = torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(discounted_sum(x, 1.0), torch.tensor([[6.0, 5.0, 3.0]]))
    torch.testing.assert_close(discounted_sum(x, 0.5), torch.tensor([[2.75, 3.5, 3.0]]))
    torch.testing.assert_close(discounted_sum(x, 0.0), x)


def test_policy_loss_by_hand():
    # ratios 1.5 and 0.5, advantage +1 and -1: min(1.5, 1.2) = 1.2 and min(-0.5, -0.8) = -0.8; mean 0.2, negated
    log_probs = torch.log(torch.tensor([[0.6, 0.2]]))
    old = torch.log(torch.tensor([[0.4, 0.4]]))
    loss = ppo_policy_loss(log_probs, torch.tensor([[1.0, -1.0]]), torch.ones(1, 2), old)
    torch.testing.assert_close(loss, torch.tensor(-0.2))


def test_on_policy_gradient_is_that_of_the_log_probs():
    log_probs = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    ppo_policy_loss(log_probs, torch.tensor([[2.0, -4.0, 9.0]]), mask).backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([[-1.0, 2.0, 0.0]]))


def test_value_loss_by_hand():
    loss = value_loss(torch.tensor([[1.0, 0.0, 5.0]]), torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([[1.0, 1.0, 0]]))
    torch.testing.assert_close(loss, torch.tensor(1.25))


def test_normalised_over_the_whole_batch():
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    result = normalize_advantages(torch.tensor([[1.0, 2.0], [3.0, 100.0]]), mask)
    deviation = (2 / 3) ** 0.5
    torch.testing.assert_close(result, torch.tensor([[-1 / deviation, 0.0], [1 / deviation, 0.0]]))


def test_masked_statistics():
    mask = torch.tensor([1, 1, 0])
    assert masked_mean(torch.tensor([1.0, 3.0, 50.0]), mask).item() == 2.0
    assert masked_mean(torch.tensor([1.0]), torch.tensor([0])).item() == 0.0
    returns = torch.tensor([0.0, 1.0, 9.0])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.tensor([0.5, 0.5, 0.0]), returns, mask) == 0.0
    assert explained_variance(returns, torch.ones(3), mask) != explained_variance(returns, torch.ones(3), mask)  # nan
