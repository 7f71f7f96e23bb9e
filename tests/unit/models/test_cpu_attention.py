"""Causal attention by blocks equals PyTorch's, gradients too, whatever the block."""

import pytest
import torch
import torch.nn.functional as F

from openrlhf_orz.models import cpu_ops
from openrlhf_orz.models.cpu_ops import CausalAttention


def inputs(dtype, length, heads=4, keys=2, count=2, size=8):
    generator = torch.Generator().manual_seed(0)

    def random(n):
        x = torch.randn(count, length, n, size, generator=generator, dtype=torch.float64)
        return x.to(dtype).transpose(1, 2).requires_grad_()

    return random(heads), random(keys), random(keys), random(heads).detach()


def gradients(attention, q, k, v, weights):
    out = attention(q, k, v)
    return out.detach(), torch.autograd.grad(out, (q, k, v), weights)


def ours(q, k, v, scale=0.3):
    return CausalAttention.apply(q, k, v, scale)


def theirs(q, k, v, scale=0.3):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)


@pytest.mark.parametrize("length", [1, 3, 16, 37])
@pytest.mark.parametrize("block", [1, 5, 16, 64])
@pytest.mark.parametrize("keys", [1, 2, 4])
def test_equals_pytorch(length, block, keys, monkeypatch):
    monkeypatch.setattr(cpu_ops, "BLOCK", block)
    *leaves, weights = inputs(torch.float64, length, keys=keys)
    (out, found), (expected_out, expected) = (gradients(f, *leaves, weights) for f in (ours, theirs))
    torch.testing.assert_close(out, expected_out)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)


def test_gradcheck():
    *leaves, _ = inputs(torch.float64, 7, count=1, size=4)
    assert torch.autograd.gradcheck(ours, leaves)


@pytest.mark.parametrize("dtype, slack", [(torch.float32, 1.5), (torch.bfloat16, 3.5), (torch.float16, 3.5)])
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_as_exact_as_pytorch(dtype, slack, spread):
    """Distance to float64 is a small multiple of PyTorch's own, with sharp attention, too."""
    q, k, v, weights = inputs(dtype, 200, size=16)
    q = (q.detach() * spread).requires_grad_()
    found_out, found = gradients(ours, q, k, v, weights)
    out, same_dtype = gradients(theirs, q, k, v, weights)
    exact_leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact_out, exact = gradients(theirs, *exact_leaves, weights.double())
    for a, b, c in zip((found_out, *found), (out, *same_dtype), (exact_out, *exact)):
        assert (a.double() - c).norm() <= slack * (b.double() - c).norm() + 1e-7 * c.norm()


def test_padding_on_the_right_changes_nothing():
    """As groups of sequences use it: whatever stands there, with no gradient on it."""
    *leaves, weights = inputs(torch.float32, 20)
    longer = [torch.cat([x.detach(), 100 * torch.ones_like(x[:, :, :9])], 2).requires_grad_() for x in leaves]
    padded = torch.cat([weights, torch.zeros_like(weights[:, :, :9])], 2)
    _, alone = gradients(ours, *leaves, weights)
    _, together = gradients(ours, *longer, padded)
    for a, b in zip(alone, together):
        torch.testing.assert_close(a, b[:, :, :20])
        assert not b[:, :, 20:].any()


@pytest.fixture
def nan_for_uninitialised():
    torch.use_deterministic_algorithms(True)  # which fills it, too
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("block", [1, 2, 4, 64])
def test_sequences_of_several_lengths_are_each_by_itself(block, monkeypatch, nan_for_uninitialised):
    """Whatever stands behind an end; a block there is not computed. Backward, with 2, blocks are larger."""
    monkeypatch.setattr(cpu_ops, "BLOCK", block)
    lengths = [20, 9, 8, 1]
    *leaves, weights = inputs(torch.float64, 20, count=4)
    weights = torch.stack([w * (torch.arange(20) < n)[:, None] for w, n in zip(weights, lengths)])
    out, found = gradients(lambda *x: CausalAttention.apply(*x, 0.3, lengths), *leaves, weights)
    for i, n in enumerate(lengths):
        alone = [x.detach()[i : i + 1, :, :n].requires_grad_() for x in leaves]
        expected_out, expected = gradients(theirs, *alone, weights[i : i + 1, :, :n])
        torch.testing.assert_close(out[i : i + 1, :, :n], expected_out)
        for a, b in zip(found, expected):
            torch.testing.assert_close(a[i : i + 1, :, :n], b)


@pytest.mark.parametrize("block, first", [(2, 3), (4, 2), (4, 16), (64, 32)])
def test_queries_that_nobody_wants_are_not_computed(block, first, monkeypatch, nan_for_uninitialised):
    """Their blocks are skipped, forward and backward; the rest, their keys and values included, is as without."""
    monkeypatch.setattr(cpu_ops, "BLOCK", block)
    computed = []
    real = cpu_ops._blocks
    monkeypatch.setattr(cpu_ops, "_blocks", lambda *args: (computed.append(x[0]) or x for x in real(*args)))
    lengths = [40, 37]
    *leaves, weights = inputs(torch.float64, 40)
    weights = torch.stack([w * (torch.arange(40) < n)[:, None] for w, n in zip(weights, lengths)])
    weights[:, :, :first] = 0
    out, found = gradients(lambda *x: CausalAttention.apply(*x, 0.3, lengths, first), *leaves, weights)
    assert computed and min(computed) == first and not out[:, :, :first].any()
    expected_out, expected = gradients(lambda *x: CausalAttention.apply(*x, 0.3, lengths), *leaves, weights)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(out[i, :, first:n], expected_out[i, :, first:n])
        for a, b in zip(found, expected):
            torch.testing.assert_close(a[i, :, :n], b[i, :, :n])
