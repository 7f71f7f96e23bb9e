"""Adapters beside what they adapt: one dtype, as DeepSpeed trains them."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from openrlhf_orz.models.adapters import adapters, cast_adapters, train_whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_all_that_trains_has_one_dtype(dtype):
    """peft makes adapters of a bfloat16 model in float32, and a value head that trains beside them is in bfloat16."""
    config = AutoConfig.for_model("qwen2", vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                  num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    plain = AutoModelForCausalLM.from_config(config).to(dtype)
    model = get_peft_model(plain, LoraConfig(r=2, target_modules="all-linear"))
    before = {name: adapter.a.float().clone() for name, adapter in adapters(model).items()}
    cast_adapters(model)
    train_whole(model, "lm_head")
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {dtype}
    assert len(before) == 7 and all(
        torch.equal(adapters(model)[name].a.float(), a.to(dtype).float()) for name, a in before.items()
    )


def test_a_model_without_adapters_stays():
    model = torch.nn.Linear(2, 2)
    cast_adapters(model)
    assert model.weight.dtype == torch.float32
