"""The policy's log-probs and entropies are those of the sampling distribution, packed and padded."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from openrlhf_orz.models.packed_attention import PACKED_ATTENTION
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.trainer.actor import OrzActor

LENGTHS = [9, 12, 5, 12]


def model(attention):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.1, attn_implementation=attention,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def batch():
    """Right-padded sequences with a prompt of two tokens, the same for two of them; their action mask."""
    generator = torch.Generator().manual_seed(1)
    sequences = torch.randint(1, 64, (len(LENGTHS), max(LENGTHS)), generator=generator)
    sequences[1, :2] = sequences[0, :2]
    attention = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    action = attention[:, 1:].clone()
    action[:, :1] = 0
    return sequences, attention, action


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_at_the_sampling_temperature(packed, on_cpu, temperature):
    plain = model("sdpa")
    actor = OrzActor(
        model(PACKED_ATTENTION if packed else "sdpa"), temperature=temperature, share=packed, on_cpu=on_cpu
    )
    actor.packing_samples = packed
    sequences, attention, action = batch()
    log_probs, output = actor(sequences, action, attention_mask=attention, return_entropy=True, return_output=True)
    log_p = (plain(sequences, attention_mask=attention).logits[:, :-1] / temperature).log_softmax(-1)
    expected = log_p.gather(-1, sequences[:, 1:, None])[..., 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    mask = action.bool()
    torch.testing.assert_close(log_probs[mask], expected[mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.entropy[mask], entropy[mask], rtol=1e-4, atol=1e-5)
    log_probs[mask].sum().backward()
    expected[mask].sum().backward()
    for p, q in zip(actor.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("weighed", [False, True])
def test_a_routers_loss_is_asked_for_where_it_is_weighed(weighed):
    """OpenRLHF asks for it in all models from a path; it forbids sharing, and takes memory by tokens and experts."""
    config = AutoConfig.for_model("qwen3_moe", vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                  moe_intermediate_size=8, num_attention_heads=2, num_key_value_heads=2, head_dim=4,
                                  num_experts=2, num_experts_per_tok=1, output_router_logits=True)  # fmt: skip
    actor = OrzActor(AutoModelForCausalLM.from_config(config), router_loss=weighed)
    assert actor.model.config.output_router_logits is weighed
    output = actor.model(torch.tensor([[1, 2, 3]]))
    assert (output.aux_loss is not None) is weighed
    assert bool(actor.model.model._forward_pre_hooks) is not weighed, "prefixes are shared"


def test_the_base_models_dropout_is_off():
    noisy = model("sdpa")
    noisy.config.attention_dropout = 0.3
    OrzActor(noisy)
    assert noisy.config.attention_dropout == 0


def test_the_model_is_saved_and_synced_under_its_own_names():
    """Exchanged heads and norms change no name; afterwards the head gives logits as ever."""
    plain, actor = model("sdpa"), OrzActor(model("sdpa"), on_cpu=True)
    assert [name for name, _ in actor.model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert actor.model.state_dict().keys() == plain.state_dict().keys()
    assert [name for name in actor.state_dict() if not name.startswith("model.")] == []
    actor.packing_samples = False
    sequences, attention, action = batch()
    actor(sequences, action, attention_mask=attention)
    assert actor.model(sequences).logits.shape == (*sequences.shape, 64)


def test_log_probs_of_all_tokens_where_nobody_says_which():
    """As in ring attention, where each rank has a part of the pack: no logits over the vocabulary either."""
    actor = OrzActor(model("sdpa"))
    sequences = batch()[0]
    positions = torch.arange(sequences.shape[1]).expand_as(sequences)
    labels = sequences.roll(-1, 1)
    output, log_probs, entropy = actor.forward_tokens(sequences, None, positions, labels, None)
    expected = actor.model(sequences, position_ids=positions).logits.log_softmax(-1).gather(-1, labels[..., None])
    torch.testing.assert_close(log_probs, expected[..., 0], rtol=1e-4, atol=1e-5)
    assert output["logits"].shape == (*sequences.shape, 2) and entropy is None


def test_a_float32_head_needs_a_head_of_ours():
    """Capped logits come from the model's own head, in half precision: refused, never trained so in silence."""
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
                 num_key_value_heads=1, head_dim=16)  # fmt: skip
    capped = Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=30.0))
    with pytest.raises(ConfigError, match="--orz.fp32_head: gemma2 .*Leave the flag out"):
        OrzActor(capped, fp32_head=True)
    OrzActor(capped)
    actor = OrzActor(model("sdpa").bfloat16(), fp32_head=True)
    sequences, attention, _ = batch()
    hidden = actor.model.model(sequences, attention_mask=attention).last_hidden_state
    logits = hidden.float() @ actor.model.lm_head.weight.float().T
    rounded = (hidden @ actor.model.lm_head.weight.T).float()
    found = actor.model(sequences, attention_mask=attention).logits.float()
    assert (found - logits).abs().max() < 0.01 * (rounded - logits).abs().max()
