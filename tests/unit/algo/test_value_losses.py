"""Losses of a critic by hand, and what their outputs mean in units of return."""

import math

import pytest
import torch

from openrlhf_orz.algo.value_losses import ValueForm


def test_a_probability_by_hand():
    """Logits 0 and log 3 are 0.5 and 0.75; the cross-entropies to 1 and 0 are log 2 and log 4; gradients V - R."""
    form, returns = ValueForm("bce"), torch.tensor([[1.0, 0.0]])
    logits = torch.tensor([[0.0, math.log(3.0)]], requires_grad=True)
    assert form.outputs == 1 and form.values(logits)[0].tolist() == pytest.approx([0.5, 0.75])
    losses = form.losses(logits, returns)
    assert losses[0].tolist() == pytest.approx([math.log(2), math.log(4)])
    losses.sum().backward()
    assert logits.grad[0].tolist() == pytest.approx([-0.5, 0.75])


@pytest.mark.parametrize("low, high, bins", [(0.0, 1.0, 51), (-2.0, 3.0, 8), (0.0, 1.0, 101)])
def test_the_mean_of_a_target_is_its_return(low, high, bins):
    form = ValueForm("hl_gauss", bins, low, high)
    returns = torch.linspace(low, high, 9)[None]
    targets = form.targets(returns)
    assert form.outputs == bins and targets.shape == (1, 9, bins)
    torch.testing.assert_close(targets.sum(-1), torch.ones(1, 9))
    torch.testing.assert_close(form.values(targets.log()), returns, atol=0.01 * form.width, rtol=0)


def test_a_histogram_by_hand():
    """Of 8 bins those reach 2.25 widths beyond [0, 1]: 3.5 widths are 1. Even logits mean the middle."""
    form = ValueForm("hl_gauss", 8)
    edges = form.edges()
    assert form.width == pytest.approx(1 / 3.5) and edges[0].item() == pytest.approx(-2.25 / 3.5)
    assert edges[-1].item() == pytest.approx(1 + 2.25 / 3.5)
    logits = torch.zeros(1, 1, 8, requires_grad=True)
    assert form.values(logits).item() == pytest.approx(0.5)
    loss = form.losses(logits, torch.tensor([[1.0]]))
    assert loss.item() == pytest.approx(math.log(8))  # whatever the target, by even logits
    loss.sum().backward()
    torch.testing.assert_close(-logits.grad[0, 0], form.targets(torch.tensor([[1.0]]))[0, 0] - 1 / 8)
    assert logits.grad[0, 0].argmin().item() == 5  # the bin of 1, from 0.786 to 1.071, gains most


def test_padding_in_half_precision_stays_finite():
    form = ValueForm("hl_gauss", 51)
    outputs = torch.zeros(1, 2, 51, dtype=torch.bfloat16)
    assert form.losses(outputs, torch.tensor([[0.0, -5.0]]))[0, 0].isfinite()
    assert form.values(outputs).dtype == torch.float32


def test_eq_2_is_not_ours():
    with pytest.raises(ValueError, match="OpenRLHF"):
        ValueForm().losses(torch.zeros(1, 1), torch.zeros(1, 1))
