"""Parameters counted from a configuration are exactly those of the model that transformers builds from it."""

from dataclasses import replace

import pytest

from openrlhf_orz.cli.plan import built_shape
from openrlhf_orz.plan.shapes import KNOWN, Shape, UnknownShape, shape_of

# config.json of the hub, as far as it says what has parameters
QWEN25 = {
    "Qwen/Qwen2.5-0.5B": dict(hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
                              intermediate_size=4864, vocab_size=151936, tie_word_embeddings=True),
    "Qwen/Qwen2.5-1.5B": dict(hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
                              intermediate_size=8960, vocab_size=151936, tie_word_embeddings=True),
    "Qwen/Qwen2.5-7B": dict(hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
                            intermediate_size=18944, vocab_size=152064, tie_word_embeddings=False),
    "Qwen/Qwen2.5-14B": dict(hidden_size=5120, num_hidden_layers=48, num_attention_heads=40, num_key_value_heads=8,
                             intermediate_size=13824, vocab_size=152064, tie_word_embeddings=False),
    "Qwen/Qwen2.5-32B": dict(hidden_size=5120, num_hidden_layers=64, num_attention_heads=40, num_key_value_heads=8,
                             intermediate_size=27648, vocab_size=152064, tie_word_embeddings=False),
}  # fmt: skip
SMALL = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
             vocab_size=100)  # fmt: skip
EXPERTS = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32)
CASES = {
    **{name: ("qwen2", values) for name, values in QWEN25.items()},
    "tiny": ("qwen2", dict(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                           intermediate_size=384, vocab_size=512, tie_word_embeddings=True)),
    "smollm2-135m": ("llama", dict(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                                   intermediate_size=1536, vocab_size=49152, tie_word_embeddings=True)),
    "qwen2, untied": ("qwen2", SMALL | dict(tie_word_embeddings=False)),
    "llama, all biases": ("llama", SMALL | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=False)),
    "llama, as 3.1 8B": ("llama", dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
                                       num_key_value_heads=8, intermediate_size=14336, vocab_size=128256,
                                       tie_word_embeddings=False)),
    "mistral": ("mistral", SMALL | dict(head_dim=24)),
    "qwen3, as 0.6B": ("qwen3", dict(hidden_size=1024, num_hidden_layers=28, num_attention_heads=16,
                                     num_key_value_heads=8, head_dim=128, intermediate_size=3072, vocab_size=151936,
                                     tie_word_embeddings=True)),
    "qwen3, biases": ("qwen3", SMALL | dict(head_dim=32, attention_bias=True)),
    "qwen3_moe": ("qwen3_moe", SMALL | EXPERTS | dict(head_dim=32)),
    "qwen3_moe, one layer dense": ("qwen3_moe", SMALL | EXPERTS | dict(head_dim=16, mlp_only_layers=[1])),
    "qwen2_moe": ("qwen2_moe", SMALL | EXPERTS | dict(shared_expert_intermediate_size=48, decoder_sparse_step=2)),
    "mixtral": ("mixtral", SMALL | dict(num_local_experts=5, num_experts_per_tok=2)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_as_many_as_transformers(name):
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    kind, values = CASES[name]
    config = AutoConfig.for_model(kind, **values)
    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(config)
        body = AutoModel.from_config(config)
    shape = shape_of(config)
    assert shape.policy_parameters() == sum(p.numel() for p in policy.parameters())
    assert shape.body_parameters() == sum(p.numel() for p in body.parameters())
    assert shape.critic_parameters() == shape.body_parameters() + values["hidden_size"]


@pytest.mark.parametrize("name", QWEN25)
def test_table_of_known_shapes(name):
    assert KNOWN[name] == shape_of({"model_type": "qwen2", **QWEN25[name]})


def test_published_sizes():
    cards = [0.49, 1.54, 7.61, 14.7, 32.5]  # billions, from the model cards, which round
    for shape, card in zip(KNOWN.values(), cards, strict=True):
        assert shape.policy_parameters() == pytest.approx(card * 1e9, rel=0.01)


def test_by_hand():
    # embedding 10 x 4, one layer: q and o 2 x 4 x 4, k and v 2 x 4 x 2, MLP 3 x 4 x 8, two norms; the last norm
    shape = Shape("llama", 4, 1, 2, 1, 2, 8, 10, tied=True)
    assert shape.policy_parameters() == 40 + 32 + 16 + 96 + 8 + 4 == 196
    assert shape.kv_bytes_per_token(2) == 2 * 1 * 2 * 2


@pytest.mark.parametrize("name", ["llama, all biases", "qwen3_moe, one layer dense", "qwen2_moe", "mixtral"])
def test_families_without_a_formula_are_built(name):
    """Built, these have the numbers of their formulas; a token is multiplied with its own experts alone."""
    kind, values = CASES[name]
    by_formula = shape_of({"model_type": kind, **values})
    built = built_shape({"model_type": kind, **values})
    assert built.counted == (by_formula.body_parameters(), by_formula.layer_products())
    assert (built.policy_parameters(), built.critic_parameters(), built.kv_bytes_per_token(2)) == (
        by_formula.policy_parameters(), by_formula.critic_parameters(), by_formula.kv_bytes_per_token(2)
    )  # fmt: skip


def test_the_size_of_a_built_model():
    found = built_shape({"model_type": "gpt_oss"})  # transformers' defaults are the 120B's
    assert found.policy_parameters() == pytest.approx(116.83e9, rel=1e-4), "as on its card"
    assert found.layer_products() + found.hidden * found.vocabulary == pytest.approx(5.13e9, rel=1e-2), "active ones"


@pytest.mark.parametrize(
    "config, named",
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": "no_such"}, "no_such"),
        ({"model_type": "qwen2", "num_attention_heads": 2}, "hidden_size"),
    ],
)
def test_what_cannot_be_counted_is_said(config, named):
    with pytest.raises(UnknownShape, match=named):
        (shape_of if named == "hidden_size" else built_shape)(config)


def test_requests_together_read_all_experts_that_any_is_sent_to():
    """Of 128 experts 8 for one token, 95 for 21 at random, all for many: Qwen3-30B-A3B's first layer reads so much."""
    one = KNOWN["Qwen/Qwen2.5-0.5B"]
    assert one.products_read(100) == one.layer_products()
    moe = replace(one, moe_layers=one.layers, experts=128, active_experts=8, expert_intermediate=768)
    each = 3 * moe.hidden * 768 * moe.layers
    hit = [(moe.products_read(n) - moe.layer_products()) / each + 8 for n in (1, 21, 64, 10**6)]
    assert hit == pytest.approx([8, 95, 126, 128], abs=0.5)
