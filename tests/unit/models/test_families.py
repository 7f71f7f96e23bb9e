"""Each family of docs/models.md, tiny and random: packed, with shared prefixes, and padded, against sequences alone.

The reference is each sequence by itself through the model's own code (``eager``): log-probs and all gradients.
"""

import functools

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from openrlhf_orz.models.dropout import CHANCE, chance_in_training, turn_off_dropout
from openrlhf_orz.models.log_prob_head import install_log_prob_head
from openrlhf_orz.models.shared_prefixes import install_prefix_sharing
from openrlhf_orz.settings.families import PACKED, family_of

VOCAB = 64
BASE = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=48, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    initializer_range=0.3,
)  # fmt: skip
MOE = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=1)
ROUTED = dict(**MOE, n_routed_experts=4, n_group=2, topk_group=1, first_k_dense_replace=1)
LATENT = dict(
    kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=12, num_key_value_heads=4
)
LINEAR = dict(
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
    layer_types=["linear_attention", "full_attention"],
)  # fmt: skip
MAMBA = dict(mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8, mamba_chunk_size=8)
WINDOWED = dict(sliding_window=6, layer_types=["sliding_attention", "full_attention"])
CAPPED = dict(**WINDOWED, attn_logit_softcapping=1.0, final_logit_softcapping=3.0, query_pre_attn_scalar=8)
TINY = {
    "cohere": {}, "cohere2": WINDOWED, "deepseek_v3": dict(**ROUTED | LATENT), "ernie4_5": {}, "exaone4": WINDOWED,
    "falcon": dict(new_decoder_architecture=True, head_dim=None),
    "falcon_h1": dict(**MAMBA, mamba_d_ssm=64, lm_head_multiplier=0.5), "gemma": {}, "gemma2": CAPPED,
    "gemma3_text": dict(**WINDOWED, query_pre_attn_scalar=8), "glm": {}, "glm4": {},
    "glm4_moe": ROUTED | {"n_group": 1},
    "gpt2": dict(n_embd=32, n_head=4, n_layer=2, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0), "gpt_neox": {},
    "gpt_oss": MOE | WINDOWED, "granite": dict(logits_scaling=2.0),
    "granitemoehybrid": dict(**MAMBA, **MOE, layer_types=["mamba", "attention"], shared_intermediate_size=16),
    "jamba": dict(**MOE, mamba_d_state=8, attn_layer_offset=1, attn_layer_period=2),
    "lfm2": dict(block_auto_adjust_ff_dim=False, layer_types=["conv", "full_attention"]), "llama": {},
    "llama4_text": dict(
        **MOE, attention_chunk_size=8, intermediate_size_mlp=48, no_rope_layers=[1, 0], floor_scale=4, attn_scale=0.5,
        layer_types=["chunked_attention", "full_attention"],
    ),
    "ministral3": dict(rope_parameters=dict(
        rope_type="yarn", rope_theta=1e4, factor=2.0, original_max_position_embeddings=8, llama_4_scaling_beta=0.5,
    )),
    "minimax_m2": MOE, "mistral": dict(sliding_window=6), "mixtral": MOE, "nemotron": {}, "olmo": {}, "olmo2": {},
    "olmo3": WINDOWED, "olmoe": MOE, "phi": {}, "phi3": dict(sliding_window=6),
    "qwen2": dict(WINDOWED, use_sliding_window=True), "qwen2_moe": dict(**MOE, shared_expert_intermediate_size=16),
    "qwen3": {}, "qwen3_5_text": LINEAR, "qwen3_moe": MOE,
    "qwen3_next": dict(**MOE, **LINEAR, shared_expert_intermediate_size=16), "seed_oss": dict(attention_dropout=0.0),
    "smollm3": {}, "stablelm": {}, "starcoder2": dict(sliding_window=6),
}  # fmt: skip


def config_of(name: str):
    return AutoConfig.for_model(name, **{key: x for key, x in {**BASE, **TINY[name]}.items() if x is not None})


def build(name: str, attention: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name), attn_implementation=attention, dtype=torch.float32)
    for key, param in model.named_parameters():
        if "sinks" in key:
            torch.nn.init.normal_(param)
    return model.eval()


@functools.cache
def sequences() -> list[torch.Tensor]:
    """Three that begin alike, as responses to one prompt do, and two of their own."""
    generator = torch.Generator().manual_seed(1)
    draw = functools.partial(torch.randint, 3, VOCAB, generator=generator)
    prompt = draw((7,))
    return [torch.cat([prompt, draw((n,))]) for n in (9, 14, 4)] + [draw((n,)) for n in (19, 3)]


@pytest.mark.parametrize("name", TINY)
def test_no_forward_of_training_is_left_to_chance(name):
    """With all that a configuration has for it: two forwards give the same, and what evaluation gives."""
    config = config_of(name)
    given = [key for key in config.to_dict() if CHANCE.search(key) and not isinstance(getattr(config, key), bool)]
    for key in given:
        setattr(config, key, 0.3)
    assert sorted(chance_in_training(config)) == sorted(given)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).train()
    turn_off_dropout(model)
    assert not chance_in_training(model.config)
    ids = torch.randint(3, VOCAB, (2, 12))
    first, second = (model(ids, use_cache=False).logits for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, model.eval()(ids, use_cache=False).logits, rtol=0, atol=0)


def labels_of(ids):
    return torch.roll(ids, -1, -1)


def gradients(model, log_probs):
    """Of a loss that weighs each token's log-prob by another number."""
    weights = torch.randn(sum(map(len, log_probs)), generator=torch.Generator().manual_seed(2))
    (torch.cat(log_probs) * weights).sum().backward()
    found = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def alone(model):
    rows = [
        model(ids[None], attention_mask=torch.ones_like(ids)[None], use_cache=False).logits[0] for ids in sequences()
    ]
    return [row.log_softmax(-1).gather(1, labels_of(ids)[:, None])[:, 0] for row, ids in zip(rows, sequences())]


def forward(model, ids, labels, **kwargs):
    """As OrzActor: by the head that gives log-probs alone, if it fits the model."""
    head = model.get_output_embeddings()
    if not hasattr(head, "labels"):
        return model(ids, use_cache=False, **kwargs).logits.log_softmax(-1).gather(2, labels[..., None])[..., 0]
    head.labels = labels
    return model(ids, use_cache=False, logits_to_keep=torch.arange(ids.shape[1]), **kwargs).logits[..., 0]


def packed(model):
    ids = torch.cat(sequences())[None]
    positions = torch.cat([torch.arange(len(each)) for each in sequences()])[None]
    labels = torch.cat([labels_of(each) for each in sequences()])[None]
    return list(forward(model, ids, labels, position_ids=positions)[0].split([len(each) for each in sequences()]))


def padded(model):
    ids = torch.nn.utils.rnn.pad_sequence(sequences(), batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence([labels_of(each) for each in sequences()], batch_first=True)
    mask = (torch.arange(ids.shape[1]) < torch.tensor([len(each) for each in sequences()])[:, None]).long()
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    rows = forward(model, ids, labels, attention_mask=mask, position_ids=positions)
    return [row[: len(each)] for row, each in zip(rows, sequences())]


def agree(found, expected, tolerance=1e-4):
    largest = max(x.abs().max() for x in expected.values())
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert (found[name] - values).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("name", sorted(TINY))
def test_family(name):
    reference = build(name, "eager")
    expected = alone(reference)
    expected_grads = gradients(reference, expected)
    family = family_of(reference.config)
    assert (family.padded is None) == (name in PACKED)
    model = build(name, family.attention)
    model.load_state_dict(reference.state_dict())
    install_log_prob_head(model)
    ways = [padded] if family.padded else [padded, packed, packed]
    for i, way in enumerate(ways):
        if i == 2 and install_prefix_sharing(model) is None:
            break
        found = way(model)
        agree(dict(enumerate(found)), dict(enumerate(expected)), 1e-5)
        agree(gradients(model, found), expected_grads)


def test_no_family_is_packed_without_having_been_compared():
    assert set(TINY) >= PACKED


@pytest.mark.parametrize("name", ["qwen3_next", "falcon_h1", "lfm2", "llama4_text", "ministral3"])
def test_what_is_padded_would_be_wrong_packed(name):
    """Were it right, it should be packed: or it is told to leave packing alone, which is right, too."""
    model = build(name, "orz_packed")
    expected = alone(build(name, "eager"))
    try:
        found = packed(model)
    except NotImplementedError as error:
        assert "--ds.packing_samples" in str(error)
        return
    assert max((a - b).abs().max() for a, b in zip(found, expected)) > 0.01


def test_what_a_layer_asks_for_beyond_what_we_compute_is_an_error():
    from openrlhf_orz.models.packed_attention import packed_attention

    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(NotImplementedError, match="Linear wants attention with position_bias.*eager"):
        packed_attention(torch.nn.Linear(1, 1), q, q, q, None, position_bias=torch.zeros(1))
