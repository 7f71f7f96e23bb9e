"""Sharing what sequences have in common changes no value and no gradient."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from openrlhf_orz.models import cpu_ops, packed_attention
from openrlhf_orz.models.packed_attention import PACKED_ATTENTION, find_sequences
from openrlhf_orz.models.shared_prefixes import install_prefix_sharing, share_prefixes
from openrlhf_orz.runtime.cores import in_threads


def pack(sequences: list[list[int]]):
    return torch.tensor(sum(sequences, [])), torch.cat([torch.arange(len(s)) for s in sequences])


def test_by_hand():
    """Two answers to one prompt, a repetition of the second, its beginning alone, and another prompt."""
    ids, positions = pack([[7, 8, 1, 2], [7, 8, 3], [7, 8, 3], [7, 8], [9, 8]])
    kept, source = share_prefixes(ids, positions)
    assert kept.tolist() == [0, 1, 2, 3, 6, 12, 13]
    assert source.tolist() == [0, 1, 2, 3, 0, 1, 4, 0, 1, 4, 0, 1, 5, 6]
    assert positions[kept].tolist() == [0, 1, 2, 3, 2, 0, 1]
    found = find_sequences(positions[kept])
    assert [(each.rows.tolist(), each.shared) for each in found] == [([0, 1, 2, 3], 0), ([0, 1, 4], 2), ([5, 6], 0)]


def test_a_sequence_that_goes_on_from_the_one_before():
    """[1, 2] and [1, 2, 3] are one sequence for a causal model."""
    ids, positions = pack([[1, 2], [1, 2, 3], [1, 4]])
    kept, source = share_prefixes(ids, positions)
    assert kept.tolist() == [0, 1, 4, 6] and source.tolist() == [0, 1, 0, 1, 2, 0, 3]
    assert [each.rows.tolist() for each in find_sequences(positions[kept])] == [[0, 1, 2], [0, 3]]


@pytest.mark.parametrize("seed", range(20))
def test_any_sequences_can_be_read_back(seed):
    """Over an alphabet of two, everything is shared in every way; the sequences found hold each one as it was."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (12,), generator=generator).tolist()
    sequences = [torch.randint(2, (n,), generator=generator).tolist() for n in lengths]
    ids, positions = pack(sequences)
    kept, source = share_prefixes(ids, positions)
    assert torch.equal(ids[kept][source], ids) and torch.equal(positions[kept][source], positions)
    found = [each.rows for each in find_sequences(positions[kept])]
    start = 0
    for sequence in sequences:
        rows = source[start : start + len(sequence)]
        start += len(sequence)
        assert any(torch.equal(whole[: len(rows)], rows) for whole in found)


def models(**config):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, **config,
    )  # fmt: skip
    ours = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=PACKED_ATTENTION)
    theirs = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="sdpa")
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def rollout(prompts=3, samples=4):
    """Responses of several lengths to prompts of several lengths; two of them equal, one cut short."""
    generator = torch.Generator().manual_seed(1)
    sequences = []
    for prompt in range(prompts):
        head = torch.randint(50, (20 + 9 * prompt,), generator=generator).tolist()
        for sample in range(samples):
            sequences.append(head + torch.randint(50, (1 + 13 * sample,), generator=generator).tolist())
        sequences += [sequences[-1], sequences[-1][:-5]]
    return sequences


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("window", [None, 16])
def test_values_and_gradients_equal_each_sequence_alone(checkpointing, window):
    config = {} if window is None else dict(use_sliding_window=True, sliding_window=window, max_window_layers=0)
    ours, theirs = models(**config)
    if checkpointing:
        ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        ours.train()
    sharing = install_prefix_sharing(ours)
    sequences = rollout()
    ids, positions = pack(sequences)
    got = ours(ids[None], position_ids=positions[None]).logits
    assert len(sharing.pack.source) == len(ids) and int(sharing.pack.source.max()) + 1 < 0.7 * len(ids)
    expected = torch.cat([theirs(torch.tensor([s])).logits for s in sequences], 1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(2))
    (got * weights).sum().backward()
    (expected * weights).sum().backward()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        assert (p.grad - q.grad).abs().max() <= 1e-5 * q.grad.abs().max()


def test_what_is_no_pack_passes_by():
    ours, theirs = models()
    sharing = install_prefix_sharing(ours)
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]])
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)
    assert sharing.pack.source is None
    ours.config._attn_implementation = "sdpa"  # whose mask knows nothing of shared prefixes
    ids, positions = pack([[1, 2, 3], [1, 2, 4]])
    ours(ids[None], position_ids=positions[None])
    assert sharing.pack.source is None


def test_not_with_dropout_or_a_router():
    assert install_prefix_sharing(models(attention_dropout=0.1)[0]) is None
    routed = models()[0]
    routed.config.output_router_logits = True
    assert install_prefix_sharing(routed) is None


def test_packs_in_several_threads_do_not_meet():
    """Values are taken so: each thread reads its own pack's prefixes and sequences."""
    ours, _ = models()
    install_prefix_sharing(ours)
    packs = [pack(rollout(prompts, samples)) for prompts in (1, 2, 3) for samples in (2, 3, 5)] * 3

    @torch.no_grad()
    def logits(given):
        ids, positions = given
        return ours(ids[None], position_ids=positions[None]).logits

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [logits(given) for given in packs]
        torch.set_num_threads(4)
        together = in_threads(logits, packs)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(alone, together):
        assert torch.equal(a, b)


@pytest.mark.parametrize("window", [None, 16])
def test_varlen_attention_shares_prefixes_too(monkeypatch, window):
    """A sequence's own tokens are queries; its keys are also the tokens that it shares."""
    import varlen_on_cpu  # noqa: F401  registers the kernel

    monkeypatch.setattr(packed_attention, "by_varlen", lambda *args: True)
    test_values_and_gradients_equal_each_sequence_alone(True, window)


@pytest.mark.parametrize("window", [None, 16])
def test_attention_by_blocks_leaves_shared_queries_out(monkeypatch, window):
    """As on a CPU in bfloat16, here in float32. Layers with a window compute them, in the same groups."""
    monkeypatch.setattr(packed_attention, "by_blocks", lambda *args: True)
    for module in (packed_attention, cpu_ops):
        monkeypatch.setattr(module, "BLOCK", 16)
    groups = packed_attention.make_groups(rollout_sequences(), "cpu", blocks=True)
    assert {0} < {g.first for g in groups}
    test_values_and_gradients_equal_each_sequence_alone(False, window)


def rollout_sequences():
    ids, positions = pack(rollout())
    kept, _ = share_prefixes(ids, positions)
    return find_sequences(positions[kept])
