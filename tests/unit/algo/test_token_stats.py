import torch

from openrlhf_orz.algo.token_stats import explained_variance, masked_mean, positive_nll


def test_masked_statistics():
    mask = torch.tensor([1, 1, 0])
    assert masked_mean(torch.tensor([1.0, 3.0, 50.0]), mask).item() == 2.0
    assert masked_mean(torch.tensor([1.0]), torch.tensor([0])).item() == 0.0
    returns = torch.tensor([0.0, 1.0, 9.0])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.tensor([0.5, 0.5, 0.0]), returns, mask) == 0.0
    assert explained_variance(returns, torch.ones(3), mask) != explained_variance(returns, torch.ones(3), mask)  # nan


def test_likelihood_of_right_responses_by_hand():
    """-1 and -2 of the right one, whose padding does not count, over the 4 right tokens of the whole step."""
    log_probs = torch.tensor([[-1.0, -2.0, -9.0], [-5.0, -5.0, -5.0]], requires_grad=True)
    mask, right = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), torch.tensor([1.0, 0.0])
    found = positive_nll(log_probs, mask, right, 4)
    found.backward()
    assert found.item() == 0.75 and log_probs.grad.tolist() == [[-0.25, -0.25, 0], [0, 0, 0]]
    assert positive_nll(log_probs, mask, torch.zeros(2), 0).item() == 0
