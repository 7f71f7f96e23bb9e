"""Packed attention equals each sequence alone, whatever it is packed with; gradients too."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from openrlhf_orz.models import packed_attention
from openrlhf_orz.models.packed_attention import PACKED_ATTENTION, PackedSequence, group_by_length, make_groups

LENGTHS = [5, 33, 1, 170, 64, 7, 200, 199]


def models(**config):
    """The same random model with our attention and with SDPA."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, **config,
    )  # fmt: skip
    ours = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=PACKED_ATTENTION)
    theirs = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="sdpa")
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def sequences(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(50, (1, length), generator=generator) for length in lengths]


def packed(model, ids):
    positions = torch.cat([torch.arange(x.shape[1]) for x in ids])[None]
    return model(torch.cat(ids, 1), position_ids=positions).logits


def alone(model, ids):
    return torch.cat([model(x).logits for x in ids], 1)


def close(ours, theirs):
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("order", [1, -1])
def test_a_pack_equals_its_sequences_alone(order):
    ours, theirs = models()
    ids = sequences()[::order]
    got, expected = packed(ours, ids), alone(theirs, ids)
    close(got, expected)
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(2))
    (got * weights).sum().backward()
    (expected * weights).sum().backward()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        close(p.grad, q.grad)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_size_of_the_packs_does_not_matter(size):
    ours, _ = models()
    ids = sequences()
    whole = packed(ours, ids)
    parts = torch.cat([packed(ours, ids[i : i + size]) for i in range(0, len(ids), size)], 1)
    close(parts, whole)


def test_gradient_checkpointing():
    ours, theirs = models()
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ours.train()
    ids = sequences()
    packed(ours, ids).square().sum().backward()
    alone(theirs, ids).square().sum().backward()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        close(p.grad, q.grad)


def test_a_sliding_window():
    config = dict(use_sliding_window=True, sliding_window=16, max_window_layers=0)
    ours, theirs = models(**config)
    assert "sliding_attention" in ours.config.layer_types
    ids = sequences()
    close(packed(ours, ids), alone(theirs, ids))


def test_padded_batches_and_generation_still_work():
    ours, theirs = models()
    ids = torch.cat([torch.cat([x, x.new_zeros(1, 40 - x.shape[1])], 1) for x in sequences([5, 33, 40])])
    mask = (torch.arange(40) < torch.tensor([[5], [33], [40]])).long()
    real = mask.bool()
    close(ours(ids, attention_mask=mask).logits[real], theirs(ids, attention_mask=mask).logits[real])
    close(ours(ids).logits, theirs(ids).logits)
    prompt = sequences([6])[0]
    generate = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert ours.generate(prompt, **generate).tolist() == theirs.generate(prompt, **generate).tolist()


def test_memory_has_no_square_of_the_pack(monkeypatch):
    """What attention is asked for grows with the sequences, not with the pack they are in."""
    shapes = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, **kwargs):
        assert kwargs.get("attn_mask") is None
        shapes.append(q.shape[0] * q.shape[2] ** 2)
        return real(q, k, v, **kwargs)

    monkeypatch.setattr(packed_attention.F, "scaled_dot_product_attention", spy)
    ours, _ = models()
    packed(ours, sequences([20] * 100))
    assert shapes == [100 * 20**2] * 2  # two layers; the square of the pack would be 4,000,000


def test_groups():
    assert group_by_length([10, 500, 40, 400]) == [[1, 3], [2, 0]]
    assert group_by_length([7]) == [[0]]
    lengths = torch.randint(1, 4000, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    groups = group_by_length(lengths)
    assert sorted(i for group in groups for i in group) == list(range(300))
    for group in groups:
        assert all(lengths[group[0]] <= 1.25 * lengths[i] + 32 for i in group)


def test_groups_of_attention_by_blocks():
    """Of other lengths they have the shapes of a product that has been compiled; tokens and lengths stay."""
    shapes = set()
    for seed in range(20):
        lengths = torch.randint(1, 700, (12,), generator=torch.Generator().manual_seed(seed)).tolist()
        ends = torch.tensor(lengths).cumsum(0)
        sequences = [PackedSequence(torch.arange(end - n, end), 0) for n, end in zip(lengths, ends)]
        groups = make_groups(sequences, "cpu", blocks=True)
        assert sorted(n for g in groups for n in g.lengths) == sorted(lengths)
        assert torch.cat([g.own_rows for g in groups]).sort()[0].equal(torch.arange(sum(lengths)))
        for g in groups:
            assert g.longest - 32 < g.lengths[0] <= g.longest and g.longest % 32 == 0
            assert torch.equal(g.rows[g.own_slots], g.own_rows) and len(g.rows) == g.count * g.longest
            assert g.lengths[0] <= 1.5 * g.lengths[-1] + 64
        shapes.update(g.longest for g in groups)
    assert len(shapes) <= 700 // 32 + 1


def test_groups_of_sequences_that_share():
    """By blocks they are apart from those whose tokens they share, and their shared queries are left out."""
    prompt = torch.arange(100)
    sequences = [PackedSequence(torch.arange(120), 0)]
    sequences += [PackedSequence(torch.cat([prompt, torch.arange(at, at + 20)]), 100) for at in (120, 140)]
    little = torch.cat([torch.arange(160, 170), torch.arange(230, 289)])
    sequences += [PackedSequence(torch.arange(160, 230), 0), PackedSequence(little, 10)]
    rest, sharing = make_groups(sequences, "cpu", blocks=True)
    assert (rest.lengths, rest.first, sharing.lengths, sharing.first) == ([120, 70, 69], 0, [120, 120], 96)
    assert torch.cat([rest.own_rows, sharing.own_rows]).sort()[0].equal(torch.arange(289))
    assert [g.first for g in make_groups(sequences, "cpu")] == [0, 0], "SDPA computes all queries"


def test_a_pack_by_blocks_equals_its_sequences_alone(monkeypatch):
    """As on a CPU in bfloat16, here in float32, so that a wrong token shows."""
    monkeypatch.setattr(packed_attention, "by_blocks", lambda q, v: True)
    test_a_pack_equals_its_sequences_alone(1)


def test_positions_that_do_not_begin_with_0_are_refused():
    ours, _ = models()
    with pytest.raises(ValueError, match="begin with 0"):
        ours(torch.ones(1, 4, dtype=torch.long), position_ids=torch.tensor([[3, 4, 5, 0]]))
    with pytest.raises(ValueError, match="where others have been"):
        ours(torch.ones(1, 4, dtype=torch.long), position_ids=torch.tensor([[0, 1, 3, 4]]))


def test_bfloat16_on_a_cpu_goes_by_blocks(monkeypatch):
    """And stays as near to float32 as SDPA does."""
    called = []
    real = packed_attention.CausalAttention.apply
    monkeypatch.setattr(packed_attention.CausalAttention, "apply", lambda *args: called.append(1) or real(*args))
    ours, exact = models()
    theirs = copy.deepcopy(exact).bfloat16()
    ours.bfloat16()
    ids = sequences()
    for model, run in ((ours, packed), (theirs, alone), (exact, alone)):
        run(model, ids).float().square().sum().backward()
    assert called
    other = torch.zeros(1, 1, 2, 3, dtype=torch.bfloat16)  # values of another size, as DeepSeek-V3's, go to SDPA
    assert packed_attention.by_blocks(other, other) and not packed_attention.by_blocks(other, other[..., :2])
    for p, q, r in zip(*(model.parameters() for model in (ours, theirs, exact))):
        assert (p.grad.float() - r.grad).norm() <= 2 * (q.grad.float() - r.grad).norm() + 0.01 * r.grad.norm()


@pytest.fixture
def varlen(monkeypatch):
    """Packs go by varlen attention, as on CUDA in half precision, here in float32 by a kernel for CPUs."""
    import varlen_on_cpu  # noqa: F401  registers the kernel

    monkeypatch.setattr(packed_attention, "by_varlen", lambda *args: True)


def test_a_pack_by_varlen_attention_equals_its_sequences_alone(varlen):
    test_a_pack_equals_its_sequences_alone(1)
    test_a_sliding_window()
    test_gradient_checkpointing()


def test_varlen_attention_must_show_that_it_is_right(varlen, monkeypatch, caplog):
    """On the device itself, before it is used; else packs take the slower way, and a line says so."""
    from openrlhf_orz.models import packs

    given = torch.device("cpu"), torch.bfloat16, 4, 2, 8
    assert packs.varlen_is_right.__wrapped__(*given) and not caplog.records

    def upper_left(q, k, v, bounds, *args):
        queries = [x[: len(q)] for x in (q, k, v)]
        return torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in queries), is_causal=True, enable_gqa=True
        )[0].transpose(0, 1)

    monkeypatch.setattr(packs, "varlen_attention", upper_left)
    assert not packs.varlen_is_right.__wrapped__(*given) and "differs from SDPA" in caplog.text

    def no_kernel(*args):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nmore")

    monkeypatch.setattr(packs, "varlen_attention", no_kernel)
    assert not packs.varlen_is_right.__wrapped__(*given) and "supports Ampere GPUs or newer.; packs" in caplog.text


def test_that_it_is_right_is_shown_inside_of_gradient_checkpointing_too(varlen, monkeypatch):
    """Where the first layer first asks for it."""
    from openrlhf_orz.models import packs

    def ask(q, key_heads, dropout):
        return packs.varlen_is_right.__wrapped__(q.device, q.dtype, q.shape[1], key_heads, q.shape[2])

    monkeypatch.setattr(packed_attention, "by_varlen", ask)
    test_gradient_checkpointing()


def test_a_layer_waits_for_nothing(varlen):
    """A number that the host reads and an index that it sends both stop a GPU; the pack's first layer does, once."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):
        names: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(func.overloadpacket.__name__)
            if self.names[-1] == "_varlen_attn":
                return args[0], args[0], args[0]  # the kernel itself, which is no CUDA kernel here
            return func(*args, **(kwargs or {}))

    layer = models()[0].model.layers[0].self_attn
    positions = torch.cat([torch.arange(30), torch.arange(4, 20), torch.arange(9)])[None]
    qkv = [torch.randn(1, heads, positions.shape[1], 8) for heads in (4, 2, 2)]
    waits = {"_local_scalar_dense", "nonzero", "lift_fresh", "_to_copy", "item", "cumsum", "arange"}
    with torch.no_grad():
        for expected in (True, False, False):
            with Calls() as calls:
                calls.names.clear()
                packed_attention.packed_attention(layer, *qkv, None, position_ids=positions)
            assert bool(waits & set(calls.names)) == expected, calls.names
