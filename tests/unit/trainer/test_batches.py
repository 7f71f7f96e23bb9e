"""Samples in batches: the same as OpenRLHF makes of them one by one."""

from dataclasses import fields

import pytest
import torch

pytest.importorskip("openrlhf")
from glue import make_sample
from openrlhf.trainer.ppo_utils.experience import Experience, make_experience_batch, split_experience_batch

from openrlhf_orz.trainer.batches import regroup, with_tokens

PAD = 7
PARTS = [[5, 0, 3], [1, 6], [2, 4]]


def samples_of(count=7):
    """Of 2 to 6 tokens and more; the third response is empty. Numbers of all types, and what is no number."""
    generator, samples = torch.Generator().manual_seed(0), []
    for i in range(count):
        sample = make_sample(prompt=2, response=1 + i % 5, reward=0.1 * i)
        sample.sequences = torch.randint(10, 150_000, sample.sequences.shape, generator=generator)
        sample.rollout_log_probs = torch.rand(sample.action_mask.shape, generator=generator)
        sample.attention_mask = torch.ones(1, 1, dtype=torch.long).expand_as(sample.sequences)
        sample.info = {"reward": torch.tensor([0.1 * i]), "cut": torch.tensor([i == 1]), "tokens": torch.tensor([i]),
                       "exact": torch.tensor([0.1 * i], dtype=torch.float64), "own": [f"text {i}"],
                       "listed": [0.1 * i]}  # fmt: skip
        sample.index, sample.prompts, sample.labels, sample.images = [i], [f"prompt {i}"], [str(i)], [None]
        samples.append(sample)
    samples[2].action_mask.zero_()
    return samples


def same(ours, theirs, leave=()):
    for name in (each.name for each in fields(Experience) if each.name not in leave):
        a, b = getattr(ours, name), getattr(theirs, name)
        for x, y in zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else [(a, b)]:
            assert type(x) is type(y), name
            if torch.is_tensor(x):
                assert x.dtype == y.dtype and x.shape == y.shape and x.is_contiguous(), name
                assert torch.equal(x.nan_to_num(9.0), y.nan_to_num(9.0)), name
            else:
                assert x == y, name


def as_numbers(item):
    item.info = {key: x.item() if torch.is_tensor(x) and not x.dim() else x for key, x in item.info.items()}
    return item


def test_batches_are_those_of_single_samples_to_the_last_bit():
    """First in packs, padded with the padding token; then, with what the forwards add, in shares of the ranks."""
    samples = samples_of()
    packs = regroup(samples, PARTS, PAD)
    for pack, part in zip(packs, PARTS, strict=True):
        expected = Experience.concat_experiences([samples[i] for i in part], PAD)
        same(pack, expected, leave=["info"])
        assert list(pack.info) == list(expected.info) and pack.index == part
    for pack in packs:
        for number, name in enumerate(("action_log_probs", "values", "returns", "advantages"), 1):
            setattr(pack, name, pack.rollout_log_probs * number)
        pack.values[0, -1] = torch.nan
    shares = [[6, 1], [0, 5, 3, 2]]  # places in the packs, one after the other
    found = regroup(packs, shares)
    items = [as_numbers(item) for pack in packs for item in split_experience_batch(pack)]
    for ours, share in zip(found, shares, strict=True):
        same(ours, make_experience_batch([items[i] for i in share]), leave=["index"])
    assert (found[0].sequences == PAD).any() and found[0].base_action_log_probs is None
    assert found[0].info["exact"].dtype == torch.float32 and found[0].info["own"] == ["text 4", "text 0"]


def test_batches_share_no_memory_with_their_samples():
    """The maker writes zeros into advantages, and Ray sends a tensor's own memory."""
    samples = samples_of()
    (pack,) = regroup(samples, [[0]])
    pack.action_mask.zero_()
    pack.attention_mask[0, 0] = 0
    assert samples[0].action_mask.any() and samples[0].attention_mask.all()


def test_a_number_that_some_samples_lack_is_named():
    samples = samples_of()
    del samples[3].info["tokens"]
    with pytest.raises(ValueError, match="6 of 7 samples have tokens"):
        regroup(samples, PARTS)


def test_samples_of_what_the_critic_is_given_alone():
    samples = [Experience(sequences=s.sequences, action_mask=s.action_mask) for s in samples_of()[:2]]
    (pack,) = regroup(samples, [[1, 0, 0]], PAD)
    assert pack.action_mask.shape == (3, 3) and pack.attention_mask is None and pack.info == {}
    assert pack.sequences[1:, -1].tolist() == [PAD, PAD] and pack.prompts == []


def test_empty_responses_are_not_trained_on(caplog):
    packs = regroup(samples_of(), PARTS)
    assert with_tokens(packs) == [0, 1, 2, 3, 4, 6], "the empty response is the first of the last pack"
