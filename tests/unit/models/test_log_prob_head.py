"""Log-probs from hidden states equal those from full logits, gradients too, whatever the chunk."""

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen2Config, Qwen2ForCausalLM

from openrlhf_orz.models.log_prob_head import LogProbHead, chunk_rows, install, log_probs_and_entropy

N, D, V = 37, 16, 101


def inputs(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    labels = torch.randint(V, (N,), generator=generator)
    return random(N, D), random(V, D), labels, random(V) if bias else None


def reference(hidden, weight, labels, bias, temperature):
    """By log_softmax of full logits."""
    log_p = (nn.functional.linear(hidden, weight, bias) / temperature).log_softmax(-1)
    return log_p.gather(1, labels[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def test_by_hand():
    """Two tokens of a vocabulary of two: logits (0, ln 3) and (0, 0)."""
    hidden = torch.tensor([[0.0, torch.log(torch.tensor(3.0))], [0.0, 0.0]])
    log_probs, entropy = log_probs_and_entropy(hidden, torch.eye(2), torch.tensor([1, 0]))
    assert log_probs.exp().tolist() == pytest.approx([0.75, 0.5])
    # -(3/4 ln 3/4 + 1/4 ln 1/4) and ln 2
    assert entropy.tolist() == pytest.approx([0.5623351, 0.6931472])


@pytest.mark.parametrize("rows", [1, 10, 37, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_full_logits(rows, temperature, bias):
    hidden, weight, labels, bias = inputs(bias=bias)
    leaves = [x for x in (hidden, weight, bias) if x is not None]
    got = log_probs_and_entropy(hidden, weight, labels, bias, temperature, rows)
    expected = reference(hidden, weight, labels, bias, temperature)
    weights = torch.randn(2, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for first, second in ((1, 0), (0, 1), (1, 1)):
        gradients = [
            torch.autograd.grad(
                (first * weights[0] * x[0] + second * weights[1] * x[1]).sum(), leaves, retain_graph=True
            )
            for x in (got, expected)
        ]
        for a, b in zip(*gradients):
            torch.testing.assert_close(a, b)
    torch.testing.assert_close(torch.stack(got), torch.stack(expected))


def test_gradcheck():
    hidden, weight, labels, bias = inputs()
    assert torch.autograd.gradcheck(
        lambda h, w, b: log_probs_and_entropy(h, w, labels, b, 0.9, 10), (hidden, weight, bias)
    )


def test_bfloat16_sums_its_weight_gradient_in_float32():
    hidden, weight, labels, _ = inputs(torch.float32, bias=False)
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
    many = [torch.autograd.grad(log_probs_and_entropy(*low, labels, rows=rows)[0].sum(), low) for rows in (1, N)]
    exact = torch.autograd.grad(log_probs_and_entropy(low[0].float(), low[1].float(), labels)[0].sum(), low)
    for gradients in many:
        for a, b in zip(gradients, exact):
            assert (a.float() - b.float()).abs().max() < 0.02 * b.float().abs().max()


def test_chunks_are_bounded():
    for vocabulary in (512, 49152, 151936):
        for device in ("cpu", "cuda", "xpu"):
            assert chunk_rows(vocabulary, device) * vocabulary <= 2**27
    assert chunk_rows(10**9, "cpu") == 1


def test_no_tensor_of_tokens_by_vocabulary():
    """The largest tensor that either pass makes is a chunk."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return out

    hidden, weight, labels = torch.randn(400, 4), torch.randn(1000, 4), torch.arange(400)
    hidden.requires_grad_(), weight.requires_grad_()
    with Watch():
        log_probs_and_entropy(hidden, weight, labels, rows=20)[0].sum().backward()
    assert largest == 20 * 1000


def model(tied=True):
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(vocab_size=V, hidden_size=D, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=1, tie_word_embeddings=tied)
    )  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
def test_installed_in_a_model(tied):
    plain, ours = model(tied), model(tied)
    head = install(ours)
    assert isinstance(head, LogProbHead) and ours.state_dict().keys() == plain.state_dict().keys()
    ids = torch.randint(V, (1, 12), generator=torch.Generator().manual_seed(3))
    assert torch.equal(ours(ids).logits, plain(ids).logits)  # nothing asked: a head like any other
    keep = torch.tensor([2, 5, 6, 10])
    head.labels, head.with_entropy = ids[:, keep + 1], True
    log_probs, entropy = ours(ids, logits_to_keep=keep).logits.unbind(-1)
    log_p = plain(ids).logits[:, keep].log_softmax(-1)
    torch.testing.assert_close(log_probs, log_p.gather(-1, ids[:, keep + 1, None])[..., 0])
    torch.testing.assert_close(entropy, -(log_p.exp() * log_p).sum(-1))
    log_probs.sum().backward()
    log_p.gather(-1, ids[:, keep + 1, None]).sum().backward()
    for a, b in zip(ours.parameters(), plain.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_not_where_logits_are_more_than_the_head():
    capped = Gemma2ForCausalLM(
        Gemma2Config(vocab_size=V, hidden_size=D, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=1, head_dim=8)
    )  # fmt: skip
    assert capped.config.final_logit_softcapping
    assert install(capped) is None and type(capped.lm_head) is nn.Linear
