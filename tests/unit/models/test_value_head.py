import math
import re

import pytest
import torch

from openrlhf_orz.models.value_head import freeze_parts, init_value_head, unset_buffers
from openrlhf_orz.plan.shapes import shape_of

HIDDEN = 4096


def filled(how):
    weight = torch.empty(1, HIDDEN)
    init_value_head(weight, how, torch.Generator().manual_seed(0))
    return weight


def test_released_is_normal_with_deviation_one_over_hidden_plus_one():
    weight = filled("released")
    assert weight.std().item() == pytest.approx(1 / (HIDDEN + 1), rel=0.05)
    assert weight.abs().max() > 3 / (HIDDEN + 1)  # a tail: not uniform


def test_kaiming_is_what_torch_does():
    bound = 1 / math.sqrt(HIDDEN)
    weight = filled("kaiming")
    assert 0.99 * bound < weight.abs().max() <= bound
    reference = torch.empty(1, HIDDEN)
    torch.nn.init.kaiming_uniform_(reference, a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(weight, reference)


def test_paper_to_the_letter():
    weight = filled("paper")
    assert 0.99 * math.sqrt(5) < weight.abs().max() <= math.sqrt(5)


def test_unknown_is_refused():
    with pytest.raises(ValueError, match="xavier"):
        filled("xavier")


def test_buffers_that_nobody_has_set():
    body = torch.nn.Linear(2, 2)
    body.register_buffer("kept", torch.ones(1))
    for name in ("mean", "inv_freq", "original_inv_freq", "embed_scale"):
        body.register_buffer(name, torch.ones(1), persistent=False)
    assert unset_buffers(body) == []
    body.register_buffer("mup_vector", torch.ones(1), persistent=False)
    assert unset_buffers(body) == ["mup_vector"]


def critic_of_two_layers():
    from transformers import Qwen2Config, Qwen2Model

    shape = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, vocab_size=40)
    body = Qwen2Model(Qwen2Config(num_hidden_layers=2, **shape))
    body.score = torch.nn.Linear(16, 1, bias=False)
    return body


@pytest.mark.parametrize(
    "what, pattern",
    [
        ("none", "never"),
        ("attention", r".*self_attn.*"),
        ("embeddings", r"embed_tokens.*"),
        ("layers:1", r"embed_tokens.*|layers\.0\..*"),
        ("layers:2", r"embed_tokens.*|layers\..*"),
    ],
)
def test_what_is_frozen_and_what_the_plan_counts(what, pattern):
    critic = critic_of_two_layers()
    names = {name: parameter for name, parameter in critic.named_parameters() if re.fullmatch(pattern, name)}
    assert freeze_parts(critic, what) == list(names)
    assert {name for name, parameter in critic.named_parameters() if not parameter.requires_grad} == set(names)
    assert critic.score.weight.requires_grad
    frozen = shape_of(critic.config).frozen_parameters(what)
    assert frozen == sum(parameter.numel() for parameter in names.values())


def test_nothing_to_freeze_is_refused():
    with pytest.raises(ValueError, match="--orz.freeze_critic layers:3"):
        freeze_parts(critic_of_two_layers(), "layers:3")
