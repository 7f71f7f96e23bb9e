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
