"""What the headers of a checkpoint's weights tell."""

import json

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from openrlhf_orz.settings.models import has_weight, tensor_shapes


def test_one_file(tmp_path):
    save_file({"a.weight": np.zeros((2, 3)), "b": np.zeros(0)}, tmp_path / "model.safetensors", {"format": "pt"})
    assert tensor_shapes("--flag", tmp_path) == {"a.weight": (2, 3), "b": (0,)}
    assert has_weight(str(tmp_path), "a.weight") and not has_weight(str(tmp_path), "a")


def test_several_files(tmp_path):
    save_file({"a": np.zeros(2)}, tmp_path / "1.safetensors")
    save_file({"b": np.zeros(3)}, tmp_path / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert tensor_shapes("--flag", tmp_path) == {"a": (2,), "b": (3,)}
    assert has_weight(str(tmp_path), "b") and not has_weight(str(tmp_path), "score.weight")


def test_none_or_damaged(tmp_path):
    assert not has_weight(str(tmp_path), "a")
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(SafetensorError):
        has_weight(str(tmp_path), "a")


def test_tensor_parallel_ranks_share_key_value_heads():
    """DeepSpeed would end the run when the models load."""
    from types import SimpleNamespace

    from openrlhf_orz.settings.checks import ConfigError
    from openrlhf_orz.settings.models import _check_fit

    config = SimpleNamespace(num_key_value_heads=2, num_attention_heads=14)
    tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0})
    args = SimpleNamespace(ds=SimpleNamespace(tensor_parallel_size=2), vllm=SimpleNamespace(tensor_parallel_size=2))
    _check_fit("--flag", config, tokenizer, args)
    args.ds.tensor_parallel_size = 4
    with pytest.raises(ConfigError, match="--ds.tensor_parallel_size 4 does not divide the model's 2 key-value heads"):
        _check_fit("--flag", config, tokenizer, args)
