"""What the headers of a checkpoint's weights tell."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.command_line import parse
from openrlhf_orz.settings.models import _check_head, has_weight, tensor_shapes


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

    from openrlhf_orz.settings.derive import heads_cut
    from openrlhf_orz.settings.models import _check_fit

    config = SimpleNamespace(num_key_value_heads=2, num_attention_heads=14)
    tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0})
    args = SimpleNamespace(ds=SimpleNamespace(tensor_parallel_size=2), vllm=SimpleNamespace(tensor_parallel_size=2))
    _check_fit("--flag", config, tokenizer, args)
    args.ds.tensor_parallel_size = 4
    with pytest.raises(ConfigError, match="--ds.tensor_parallel_size 4 does not divide the model's 2 key-value heads"):
        _check_fit("--flag", config, tokenizer, args)
    args.ds.tensor_parallel_size, args.vllm.tensor_parallel_size = 1, 7  # vLLM's own is an assertion without words
    with pytest.raises(ConfigError, match="--vllm.tensor_parallel_size 7 neither divides the model's 2 key-value"):
        _check_fit("--flag", config, tokenizer, args)
    config.num_attention_heads, config.num_key_value_heads = 40, 10  # phi-4
    for engines, fits in ((2, True), (5, True), (10, True), (20, True), (4, False), (8, False)):
        assert heads_cut(10, engines) is fits


def head_check(folder, shape, *flags, **config):
    """What is said of a critic's directory that holds a head of this shape; hidden size 32."""
    name = config.pop("name", "score.weight")
    save_file({name: np.zeros(shape, np.float32)}, folder / "model.safetensors")
    args, _ = parse(["--actor.model_name_or_path", "m/m", "--data.prompt_dataset", "d", "--orz.device", "cpu", *flags])
    _check_head("--critic.model_name_or_path", folder, args, SimpleNamespace(hidden_size=32, **config))


def test_a_head_in_rows_is_taken_and_said(tmp_path, capsys):
    """The released 32B critic's is [8, 640] for [1, 5120]."""
    head_check(tmp_path, (4, 8))
    assert "score.weight" in (said := capsys.readouterr().out) and "[4, 8]: it is read as [1, 32]" in said
    head_check(tmp_path, (1, 32))
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigError, match=r"is \[4, 9\] instead of \[1, 32\]"):
        head_check(tmp_path, (4, 9))
    with pytest.raises(ConfigError, match=r"is \[4, 8\] instead of \[1, 32\]"):
        head_check(tmp_path, (4, 8), value_head_prefix="score")


def test_a_head_trained_by_another_loss_is_refused(tmp_path):
    bce, histogram = ("--orz.value_loss", "bce"), ("--orz.value_loss", "hl_gauss")
    saved = {"loss": "hl_gauss", "bins": 51, "low": 0.0, "high": 1.0}
    for shape, flags, config in (
        ((1, 32), bce, {}),
        ((1, 32), bce, {"name": "own.weight", "value_head_prefix": "own"}),
        ((1, 32), (), {"orz_values": {"loss": "bce"}, "name": "score.outputs.weight"}),
        ((51, 32), bce, {"orz_values": saved, "name": "score.outputs.weight"}),
        ((51, 32), (*histogram, "--orz.value_bins", "11"), {"orz_values": saved, "name": "score.outputs.weight"}),
    ):
        with pytest.raises(ConfigError, match="the value head in .* was trained with .*--orz.value_loss"):
            head_check(tmp_path, shape, *flags, **config)
    head_check(tmp_path, (51, 32), *histogram, orz_values=saved, name="score.outputs.weight")
    head_check(tmp_path, (40, 32), *histogram, name="embed.weight")  # a policy's own directory: the head is new
