import random

import pytest
import torch

from openrlhf_orz.algo.minibatch import (
    balance_ranks,
    count_micro_batches,
    cut_group_batches,
    cut_micro_batches,
    cut_mini_batches,
    sharing_key,
)


def test_sizes_by_hand():
    assert [len(part) for part in cut_mini_batches(8192, 12)] == [683] * 8 + [682] * 4
    assert cut_mini_batches(5, 2) == [[0, 1, 2], [3, 4]]
    assert cut_mini_batches(3, 3) == [[0], [1], [2]]


def test_every_sample_once_and_shuffled():
    parts = cut_mini_batches(100, 7, random.Random(3))
    assert sorted(sum(parts, [])) == list(range(100)) != sum(parts, [])
    assert parts == cut_mini_batches(100, 7, random.Random(3))
    assert parts != cut_mini_batches(100, 7, random.Random(4))


def test_shuffled_mini_batches_are_not_sorted_by_length():
    """The mean lengths of 12 mini-batches of a heavy-tailed rollout stay close, where a sorted cut's do not."""
    rng = random.Random(0)
    lengths = sorted((int(rng.lognormvariate(6, 1)) for _ in range(1200)), reverse=True)
    means = [sum(lengths[i] for i in part) / len(part) for part in cut_mini_batches(1200, 12, rng)]
    assert max(means) / min(means) < 2
    in_order = [sum(lengths[i] for i in part) / len(part) for part in cut_mini_batches(1200, 12)]
    assert max(in_order) / min(in_order) > 10


def test_groups_stay_whole_and_are_shuffled():
    keys = [bytes([i % 5]) for i in range(20)]
    parts = cut_group_batches(keys, 3, random.Random(1))
    assert sorted(sum(parts, [])) == list(range(20)) and [len(part) for part in parts] == [8, 8, 4]
    assert all({keys[i] for i in a}.isdisjoint(keys[i] for i in b) for a in parts for b in parts if a is not b)
    assert parts != cut_group_batches(keys, 3, random.Random(2)) != cut_group_batches(keys, 3)
    assert cut_group_batches([b"a", b"b", b"a"], 2) == [[0, 2], [1]]
    with pytest.raises(ValueError, match="non-empty"):
        cut_group_batches([b"a", b"a"], 2)


def test_ranks_cut_the_groups_of_all_of_them_alike():
    keys = [[bytes([i % 5]) for i in range(9)], [bytes([i % 3 + 3]) for i in range(9)]]
    groups = [bytes([i]) for i in range(6)]
    one, other = (
        [{keys[rank][i] for i in part} for part in cut_group_batches(keys[rank], 3, random.Random(1), groups)]
        for rank in (0, 1)
    )
    for number, part in enumerate(one):
        assert part.isdisjoint(key for at, others in enumerate(other) for key in others if at != number)
    assert cut_group_batches([b"a"], 2, None, [b"a", b"b"]) == [[0], []]


@pytest.mark.parametrize("samples, updates", [(3, 4), (0, 1), (5, 0)])
def test_no_empty_mini_batch(samples, updates):
    with pytest.raises(ValueError, match="non-empty"):
        cut_mini_batches(samples, updates)


def test_count_by_hand():
    # padded, sorted 5 4 3 2 1, in 6 tokens: [5] [4] [3 2] [1]; packed in the order of the keys: [1 2 3] [4] [5]
    assert count_micro_batches([1, 2, 3, 4, 5], 6) == 4
    assert count_micro_batches([1, 2, 3, 4, 5], 6, [b"a", b"b", b"c", b"d", b"e"]) == 3
    assert count_micro_batches([50], 6) == 1  # longer than the budget: one of its own


@pytest.mark.parametrize("packed", [False, True])
def test_cut_within_budget_and_complete(packed):
    rng = random.Random(1)
    for _ in range(200):
        lengths = [rng.randint(1, 100) for _ in range(rng.randint(1, 40))]
        keys = [rng.randbytes(1) for _ in lengths] if packed else None
        needed = count_micro_batches(lengths, 150, keys)
        for count in {needed, min(len(lengths), needed + 3)}:
            parts = cut_micro_batches(lengths, count, keys)
            assert len(parts) == count and sorted(sum(parts, [])) == list(range(len(lengths)))
            for part in parts:
                tokens = [lengths[i] for i in part]
                assert (sum(tokens) if packed else max(tokens) * len(tokens)) <= 150
            if packed:
                assert [keys[i] for part in parts for i in part] == sorted(keys)


def test_more_micro_batches_than_samples():
    with pytest.raises(ValueError, match="2 samples into 3"):
        cut_micro_batches([1, 2], 3)


def test_samples_of_one_prompt_are_neighbours():
    """Prompts 0..3 of different lengths, four responses each, in any order: a cut into four is by prompt."""
    rng = random.Random(0)
    samples = [(p, [50 + p] * (10 + p), [rng.randrange(50) for _ in range(20)]) for p in range(4) for _ in range(4)]
    rng.shuffle(samples)
    keys = [sharing_key(torch.tensor(prompt + response), len(response)) for _, prompt, response in samples]
    parts = cut_micro_batches([len(p) + len(r) for _, p, r in samples], 4, keys)
    assert sorted(sorted({samples[i][0] for i in part}) for part in parts) == [[0], [1], [2], [3]]


def test_balance_by_hand():
    # work with hidden size 1: L + L^2 / 12, so 24 -> 72, 12 -> 24, 6 -> 9: the long one against all others
    assert balance_ranks([24, 12, 6, 12], 2, hidden_size=1) == [[0, 2], [1, 3]]
    assert balance_ranks([5, 5, 5], 2, hidden_size=64) == [[0, 2], [1]]
    with pytest.raises(ValueError, match="2 samples among 3"):
        balance_ranks([1, 2], 3, 64)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_balance_on_heavy_tails(ranks):
    """Nearly equal work, where an interleaving by length leaves one rank the tail; every sample once."""
    rng = random.Random(0)
    lengths = [min(32000, int(rng.lognormvariate(7, 1.2))) for _ in range(ranks * 40 + 1)]

    def spread(shares):
        work = [sum(lengths[i] + lengths[i] ** 2 / (12 * 896) for i in share) for share in shares]
        return max(work) / (sum(work) / ranks)

    shares = balance_ranks(lengths, ranks, 896)
    assert sorted(sum(shares, [])) == list(range(len(lengths)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    dealt = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    assert spread(shares) < 1.02 and spread(shares) <= spread([dealt[r::ranks] for r in range(ranks)])
