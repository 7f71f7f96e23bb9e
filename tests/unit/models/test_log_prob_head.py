"""Log-probs from hidden states equal those from full logits, gradients too, whatever the tile."""

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen2Config, Qwen2ForCausalLM

from openrlhf_orz.models import log_prob_head
from openrlhf_orz.models.log_prob_head import LogProbHead, install_log_prob_head, log_probs_and_entropy, tile_shape

N, D, V = 37, 16, 101


def inputs(dtype=torch.float64, bias=True, tokens=N, size=D, vocabulary=V):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    return random(tokens, size), random(vocabulary, size), labels, random(vocabulary) if bias else None


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


@pytest.mark.parametrize("elements", [1, 101, 150, 1010, 37 * 60, 10**4])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_full_logits(elements, temperature, bias):
    tokens = 7 if elements == 1 else N  # each logit is a tile: fewer are enough
    hidden, weight, labels, bias = inputs(bias=bias, tokens=tokens)
    leaves = [x for x in (hidden, weight, bias) if x is not None]
    got = log_probs_and_entropy(hidden, weight, labels, bias, temperature, elements)
    expected = reference(hidden, weight, labels, bias, temperature)
    weights = torch.randn(2, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
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
    """Small, as each of all inputs is moved; with tiles of 4 x 5, so that both directions have several and a rest."""
    hidden, weight, labels, bias = inputs(tokens=7, size=3, vocabulary=11)
    assert tile_shape(7, 11, 20) == (4, 5)
    assert torch.autograd.gradcheck(
        lambda h, w, b: log_probs_and_entropy(h, w, labels, b, 0.9, 20), (hidden, weight, bias)
    )


def test_bfloat16_sums_its_weight_gradient_in_float32():
    hidden, weight, labels, _ = inputs(torch.float32, bias=False)
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
    many = [
        torch.autograd.grad(log_probs_and_entropy(*low, labels, elements=elements)[0].sum(), low)
        for elements in (1, 300, N * V)
    ]
    exact = torch.autograd.grad(log_probs_and_entropy(low[0].float(), low[1].float(), labels)[0].sum(), low)
    for gradients in many:
        for a, b in zip(gradients, exact):
            assert (a.float() - b.float()).abs().max() < 0.02 * b.float().abs().max()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logits_kept_or_computed_again_are_the_same(monkeypatch, temperature):
    """In half precision a small pack's logits are kept: not one bit differs, and a second backward finds them."""
    hidden, weight, labels, bias = inputs(torch.float32)
    leaves = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight, bias)]

    def run(elements):
        log_probs, entropy = log_probs_and_entropy(leaves[0], leaves[1], labels, leaves[2], temperature, elements)
        total = (log_probs + 0.1 * entropy).sum()
        return log_probs, log_probs.grad_fn, [torch.autograd.grad(total, leaves, retain_graph=True) for _ in range(2)]

    for elements in (300, 10**4):
        kept, function, gradients = run(elements)
        saved = sum(x.numel() for x in function.saved_tensors[6:])
        assert saved == N * V
        monkeypatch.setattr(log_prob_head, "KEPT_LOGITS", {"cpu": N * V - 1})
        again, function, others = run(elements)
        assert len(function.saved_tensors) == 6
        assert torch.equal(kept, again)
        for a, b in zip((*gradients[0], *gradients[1]), (*others[0], *others[1])):
            assert torch.equal(a, b)
        monkeypatch.undo()


def test_logits_are_kept_in_half_precision_alone():
    few, many = torch.empty(1000, 1, dtype=torch.bfloat16), torch.empty(2**20, 1, dtype=torch.bfloat16, device="meta")
    assert log_prob_head.keeps_logits(10, few) and not log_prob_head.keeps_logits(10, few.float())
    assert not log_prob_head.keeps_logits(10, many) and not log_prob_head.keeps_logits(2**20, few)


def test_no_tokens_have_no_gradient():
    hidden, weight = torch.zeros(0, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    log_probs_and_entropy(hidden, weight, torch.zeros(0, dtype=torch.long))[0].sum().backward()
    assert hidden.grad.shape == (0, D) and not weight.grad.any()


def test_tiles_are_bounded():
    for elements in (1, 1000, 2**22, 2**27):
        for tokens, vocabulary in ((1, 10**9), (3, 512), (10**6, 512), (5000, 151936)):
            rows, columns = tile_shape(tokens, vocabulary, elements)
            assert 1 <= rows <= tokens and 1 <= columns <= vocabulary and rows * columns <= elements
    assert tile_shape(10**6, 151936, 2**22) == (2048, 2048)  # as square as it can be
    assert tile_shape(10**6, 512, 2**22) == (8192, 512)  # a small vocabulary whole
    assert tile_shape(100, 151936, 2**22) == (100, 41856)  # few tokens at once
    assert tile_shape(10**6, 151936, 2**27) == (11520, 11648)  # parts are multiples of 128


def test_no_tensor_of_tokens_by_vocabulary():
    """The largest tensor that either pass makes is a tile."""
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
        log_probs_and_entropy(hidden, weight, labels, elements=2**15)[0].sum().backward()
    assert largest == 2**15


def model(tied=True):
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(vocab_size=V, hidden_size=D, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=1, tie_word_embeddings=tied)
    )  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_installed_in_a_model(tied, temperature):
    plain, ours = model(tied), model(tied)
    weight = ours.lm_head.weight
    head = install_log_prob_head(ours)
    assert isinstance(head, LogProbHead) and ours.lm_head is head and head.weight is weight
    assert (head.weight is ours.model.embed_tokens.weight) == tied
    assert ours.state_dict().keys() == plain.state_dict().keys()
    ids = torch.randint(V, (1, 12), generator=torch.Generator().manual_seed(3))
    assert torch.equal(ours(ids).logits, plain(ids).logits)  # nothing asked: a head like any other
    keep = torch.tensor([2, 5, 6, 10])
    head.labels, head.with_entropy, head.temperature = ids[:, keep + 1], True, temperature
    log_probs, entropy = ours(ids, logits_to_keep=keep).logits.unbind(-1)
    log_p = (plain(ids).logits[:, keep] / temperature).log_softmax(-1)
    torch.testing.assert_close(log_probs, log_p.gather(-1, ids[:, keep + 1, None])[..., 0])
    torch.testing.assert_close(entropy, -(log_p.exp() * log_p).sum(-1))
    log_probs.sum().backward()
    log_p.gather(-1, ids[:, keep + 1, None]).sum().backward()
    for a, b in zip(ours.parameters(), plain.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_an_installed_head_stays_in_the_mode_of_the_one_before():
    assert install_log_prob_head(model().eval()).training is False
    assert install_log_prob_head(model().train()).training is True


def test_not_where_logits_are_more_than_the_head():
    capped = Gemma2ForCausalLM(
        Gemma2Config(vocab_size=V, hidden_size=D, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=1, head_dim=8)
    )  # fmt: skip
    assert capped.config.final_logit_softcapping
    assert install_log_prob_head(capped) is None and type(capped.lm_head) is nn.Linear


@pytest.mark.parametrize("bias", [False, True])
def test_a_float32_head_rounds_no_logit(bias):
    """In bfloat16 logits have 8 bits; by a float32 head they are those of float64 but for float32's own rounding."""
    hidden, weight, labels, shift = (x if x is None else x.detach() for x in inputs(bias=bias))
    low = [None if x is None else x.bfloat16() for x in (hidden, weight, shift)]
    exact = reference(*(x.double() for x in low[:2]), labels, None if shift is None else low[2].double(), 0.7)
    for elements in (None, 300):
        rounded, wide = (
            torch.stack(log_probs_and_entropy(*low[:2], labels, low[2], 0.7, elements, fp32=fp32)).double()
            for fp32 in (False, True)
        )
        far, near = ((x - torch.stack(exact)).abs().max() for x in (rounded, wide))
        assert far > 1e-2 and near < 1e-4
    head = nn.Linear(D, V, bias=bias, dtype=torch.bfloat16)
    x = low[0].view(1, N, D)
    assert LogProbHead(head, fp32=True)(x).dtype == torch.float32 and LogProbHead(head)(x).dtype == torch.bfloat16
    torch.testing.assert_close(LogProbHead(head, fp32=True)(x).bfloat16(), head(x))


def test_gradients_of_a_float32_head():
    hidden, weight, labels, shift = inputs(torch.float32)
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight, shift)]
    found = log_probs_and_entropy(*low[:2], labels, low[2], elements=300, fp32=True)[0].sum()
    expected = reference(hidden, weight, labels, shift, 1.0)[0].sum()
    for a, b in zip(torch.autograd.grad(found, low), torch.autograd.grad(expected, (hidden, weight, shift))):
        assert a.dtype == torch.bfloat16 and (a.float() - b).abs().max() < 0.03 * b.abs().max()
