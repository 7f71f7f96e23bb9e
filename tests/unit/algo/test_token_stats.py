import torch

from openrlhf_orz.algo.token_stats import explained_variance, masked_mean


def test_masked_statistics():
    mask = torch.tensor([1, 1, 0])
    assert masked_mean(torch.tensor([1.0, 3.0, 50.0]), mask).item() == 2.0
    assert masked_mean(torch.tensor([1.0]), torch.tensor([0])).item() == 0.0
    returns = torch.tensor([0.0, 1.0, 9.0])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.tensor([0.5, 0.5, 0.0]), returns, mask) == 0.0
    assert explained_variance(returns, torch.ones(3), mask) != explained_variance(returns, torch.ones(3), mask)  # nan
