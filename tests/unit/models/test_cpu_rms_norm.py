"""RMSNorm with a backward of its own equals transformers', and is installed only where it does."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from openrlhf_orz.models.cpu_ops import RMSNormFunction, install_rms_norm

SMALL = dict(vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, head_dim=8)  # fmt: skip


def norm(size=24, dtype=torch.float64):
    torch.manual_seed(0)
    module = LlamaRMSNorm(size)
    torch.nn.init.normal_(module.weight)
    return module.to(dtype)


def ours(module, x):
    return RMSNormFunction.apply(x, module.weight, module.variance_epsilon)


def test_by_hand():
    """(3, 4) has the mean square 12.5; with weights 1 and 2."""
    found = RMSNormFunction.apply(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    assert found[0].tolist() == pytest.approx([3 / 12.5**0.5, 8 / 12.5**0.5])


def test_gradcheck():
    x = torch.randn(2, 3, 24, dtype=torch.float64, requires_grad=True)
    weight = norm().weight
    assert torch.autograd.gradcheck(lambda x, w: RMSNormFunction.apply(x, w, 1e-6), (x, weight))


@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_equals_transformers(dtype, close):
    module = norm(dtype=dtype)
    x = (10 * torch.randn(2, 50, 24)).to(dtype).requires_grad_()
    weights = torch.randn(2, 50, 24).to(dtype)
    assert torch.equal(ours(module, x), module(x))
    for a, b in zip(*(
        (y, *torch.autograd.grad(y, (x, module.weight), weights)) for y in (ours(module, x), module(x))
    )):  # fmt: skip
        assert a.dtype == b.dtype == dtype
        assert (a - b).abs().max() <= close * b.abs().max()


@pytest.mark.parametrize(
    "config, count", [(LlamaConfig(**SMALL), 5), (Qwen3Config(**SMALL), 9), (Gemma2Config(**SMALL), 0)]
)
def test_installed_where_it_equals(config, count):
    """Qwen3 norms queries and keys, too; Gemma's weight has an offset."""
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config)
    changed = copy.deepcopy(plain)
    assert install_rms_norm(changed) == count
    assert changed.state_dict().keys() == plain.state_dict().keys()
    ids = torch.randint(30, (2, 9))
    for model in (plain, changed):
        model(ids).logits.square().sum().backward()
    for p, q in zip(changed.parameters(), plain.parameters()):
        assert (p.grad - q.grad).abs().max() <= 1e-4 * q.grad.abs().max()


def test_a_norm_of_the_same_name_that_does_something_else_stays():
    class ShiftedRMSNorm(LlamaRMSNorm):
        def forward(self, x):
            return super().forward(x) + 0.1

    module = torch.nn.Sequential(ShiftedRMSNorm(8))
    assert install_rms_norm(module) == 0 and type(module[0]) is ShiftedRMSNorm
