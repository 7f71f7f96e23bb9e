import math

import pytest
import torch

from openrlhf_orz.models.value_head import init_value_head, unset_buffers

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
