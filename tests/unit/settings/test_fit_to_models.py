"""How each family trains follows from its configuration; what cannot be computed rightly is refused by flag."""

from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.families import family_of, fit_to_models


def write(path, name, **config):
    AutoConfig.for_model(name, **config).save_pretrained(path)
    return str(path)


def settings(policy, critic=None, attention="orz_packed", packing=True, max_len=64, ring=1, tensor=1):
    return SimpleNamespace(
        actor=SimpleNamespace(model_name_or_path=policy),
        critic=SimpleNamespace(model_name_or_path=critic),
        ds=SimpleNamespace(
            attn_implementation=attention, packing_samples=packing, ring_attn_size=ring, tensor_parallel_size=tensor
        ),
        data=SimpleNamespace(max_len=max_len),
        orz=SimpleNamespace(trust_remote_code=False, device="cpu"),
    )


@pytest.mark.parametrize("name, config, padded, attention", [
    ("qwen3_moe", {}, None, "orz_packed"),
    ("qwen3_next", {}, "linear_attention", "sdpa"),
    ("lfm2", {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}, "conv", "orz_packed"),
    ("llama4_text", {}, "chunked_attention", "orz_packed"),
    ("ministral3", {}, "place in the row", "orz_packed"),
    ("falcon", {}, "nobody has measured", "sdpa"),
    ("bloom", {}, "nobody has measured", "eager"),
    ("opt", {}, "nobody has measured", "orz_packed"),
    ("llama", {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2}, None, "orz_packed"),
    ("llama", {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}, "linear", "orz_packed"),
])  # fmt: skip
def test_family(name, config, padded, attention):
    found = family_of(AutoConfig.for_model(name, **config))
    assert found.name == name and found.attention == attention
    assert found.padded is None if padded is None else padded in found.padded


@pytest.mark.parametrize("name, config, flags, reason", [
    ("qwen2", {}, {"tensor": 2, "ring": 2}, None),
    ("qwen3_moe", {}, {"tensor": 2}, "--ds.tensor_parallel_size 2: DeepSpeed cannot cut qwen3_moe"),  # by its styles
    ("gpt2", {}, {"tensor": 2}, "cannot cut gpt2"),  # without a plan
    ("arcee", {}, {"tensor": 2}, None),
    ("falcon", {}, {"ring": 2}, "--ds.ring_attn_size 2: it needs packs, and of falcon nobody has measured"),
    ("mistral", {"sliding_window": 32}, {"ring": 2}, "counts mistral's windows of 32 tokens"),
    ("mistral", {"sliding_window": 64}, {"ring": 2}, None),  # no sequence is longer
    ("mistral", {"sliding_window": None}, {"ring": 2}, None),
    ("gemma2", {"sliding_window": None}, {"ring": 2}, "no soft cap, which gemma2's attention has"),
])  # fmt: skip
def test_what_cannot_be_cut_is_refused(tmp_path, name, config, flags, reason):
    args = settings(write(tmp_path / "m", name, **config), **flags)
    if reason is None:
        fit_to_models(args, set())
    else:
        with pytest.raises(ConfigError, match=reason):
            fit_to_models(args, set())


def test_what_is_padded_says_so(tmp_path):
    args = settings(write(tmp_path / "p", "qwen2"))
    assert fit_to_models(args, set()) == (args, [])
    args = settings(write(tmp_path / "n", "falcon"))
    changed, lines = fit_to_models(args, set())
    assert not changed.ds.packing_samples and changed.ds.attn_implementation == "sdpa"
    assert args.ds.packing_samples and len(lines) == 1 and lines[0].startswith("falcon trains in padded micro-batches")


def test_policy_and_critic_share_what_both_can(tmp_path):
    policy = write(tmp_path / "p", "qwen2")
    critic = write(tmp_path / "c", "lfm2", layer_types=["conv", "full_attention"], num_hidden_layers=2)
    changed, lines = fit_to_models(settings(policy, critic), set())
    assert not changed.ds.packing_samples and "lfm2" in lines[0]
    assert changed.ds.attn_implementation == "orz_packed"
    assert fit_to_models(settings(policy, policy), set())[1] == []
    unpacked, lines = fit_to_models(settings(critic, packing=False, attention="eager"), {"ds.attn_implementation"})
    assert unpacked.ds.attn_implementation == "eager" and lines == []


ROPE = dict(rope_type="longrope", original_max_position_embeddings=32, rope_theta=1e4)
LONG = dict(
    original_max_position_embeddings=32,
    rope_parameters=dict(**ROPE, short_factor=[1.0] * 8, long_factor=[2.0] * 8),
)


@pytest.mark.parametrize("name, config, given, options, words", [
    ("falcon", {}, {"ds.packing_samples"}, {}, "--ds.packing_samples: falcon .*leave the flag out"),
    ("bloom", {}, {"ds.attn_implementation"}, {}, "--ds.attn_implementation orz_packed: bloom .*takes eager"),
    ("gemma2", {}, {"ds.attn_implementation"}, {"attention": "sdpa"}, "drops the soft cap of gemma2"),
    ("phi3", LONG, set(), {}, "--data.max_len 64: phi3 .*give at most 32"),
    ("gpt_oss", {}, set(), {}, "gpt_oss cannot be synced into vLLM on a CPU"),
    ("falcon_h1", {}, set(), {"critic": True}, "falcon_h1 cannot be a critic.*--algo.advantage.estimator"),
])  # fmt: skip
def test_refused(tmp_path, name, config, given, options, words):
    path = write(tmp_path / "m", name, **{"hidden_size": 64, "num_attention_heads": 4, **config})
    if "critic" in options:
        options["critic"] = path
    with pytest.raises(ConfigError, match=words):
        fit_to_models(settings(path, **options), given)


def test_a_length_within_the_first_is_not_stretched(tmp_path):
    path = write(tmp_path / "m", "phi3", hidden_size=64, num_attention_heads=4, **LONG)
    fit_to_models(settings(path, max_len=32), set())
