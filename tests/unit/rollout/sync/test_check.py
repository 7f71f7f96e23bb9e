"""The log-prob gap after a sync by hand, and what it is when an engine or the trainer is not well."""

import math
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import RayActorError

from openrlhf_orz.rollout.sync import check
from openrlhf_orz.rollout.sync.check import CHECK_SEQUENCES, SyncCheck, engine_memory


@pytest.fixture(autouse=True)
def plain_ray(monkeypatch):
    """References are the values themselves; an error is raised."""

    def get(refs):
        for each in refs:
            if isinstance(each, Exception):
                raise each
        return refs

    monkeypatch.setattr(check, "ray", SimpleNamespace(get=get, exceptions=check.ray.exceptions))


def sample(number, tokens=(1, 2, 3), action=(0, 1)):
    return SimpleNamespace(
        sequences=torch.tensor([[number, *tokens[1:]]]), action_mask=torch.tensor([action]),
        attention_mask=torch.ones(1, len(tokens)),
    )  # fmt: skip


class Group:
    """Actors of ``ranks`` data-parallel ranks; all log-probs are ``value``, the first is of no response."""

    def __init__(self, value, ranks=1, duplicates=1):
        self._actor_handlers, self.duplicate_actors = [None] * ranks * duplicates, duplicates
        self.value, self.ranks = value, ranks

    def async_run_method_batch(self, method_name, **kwargs):
        assert method_name == "forward" and set(kwargs) == {"sequences", "action_mask", "attention_mask"}
        self.asked = [int(ids[0, 0]) for ids in kwargs["sequences"]]
        share = len(self.asked) // self.ranks
        return [
            [torch.tensor([[math.inf, self.value + n]]) for n in self.asked[rank * share : (rank + 1) * share]]
            for rank in range(self.ranks)
        ]


def engine(value):
    return SimpleNamespace(
        sequence_log_probs=SimpleNamespace(remote=lambda ids: [[math.nan, value + each[0]] for each in ids])
    )


def kept(count=2):
    found = SyncCheck()
    found.keep([sample(n) for n in range(count)])
    return found


def test_by_hand():
    """Only response tokens count; the largest of all engines; how far the trainer has moved, from the second on."""
    found = kept()
    engines = [engine(-1.0), engine(-1.5)]
    assert found.gap(Group(-1.0), engines) == {"sync_logprob_gap_mean": 0.25, "sync_logprob_gap_max": 0.5}
    assert found.gap(Group(-3.0), engines) == {
        "sync_logprob_gap_mean": 1.75, "sync_logprob_gap_max": 2.0, "sync_logprob_moved_mean": 2.0,
    }  # fmt: skip
    assert found.gap(Group(-3.0), engines)["sync_logprob_moved_mean"] == 0.0


@pytest.mark.parametrize("ranks, duplicates", [(1, 1), (3, 1), (2, 2)])
def test_every_rank_computes_every_sequence(ranks, duplicates):
    group = Group(-1.0, ranks, duplicates)
    assert kept(3).gap(group, [engine(-1.0)])["sync_logprob_gap_max"] == 0
    assert group.asked == [0, 1, 2] * ranks


def test_nothing_before_the_first_rollout():
    assert SyncCheck().gap(None, []) == {}


def test_sequences_are_spread_over_the_first_rollout():
    found = SyncCheck()
    found.keep([sample(n) for n in range(3 * CHECK_SEQUENCES)])
    found.keep([sample(100)])
    assert [int(each.sequences[0, 0]) for each in found.samples] == list(range(0, 3 * CHECK_SEQUENCES, 3))
    assert len(kept(5).samples) == 5 and len(kept(CHECK_SEQUENCES + 3).samples) == CHECK_SEQUENCES


@pytest.mark.parametrize("trainer, engines, side", [
    (math.nan, [-1.0], "the trainer's"), (-1.0, [-1.0, -math.inf], "engine 1's"), (-1.0, [math.nan], "engine 0's"),
])  # fmt: skip
def test_what_is_not_finite_is_named(trainer, engines, side):
    with pytest.raises(FloatingPointError, match=side):
        kept().gap(Group(trainer), list(map(engine, engines)))


def test_engine_memory_is_the_largest_or_unknown():
    def with_memory(value):
        return SimpleNamespace(memory_mib=SimpleNamespace(remote=lambda: value))

    assert engine_memory([with_memory(3.0), with_memory(5.0)]) == 5.0
    assert math.isnan(engine_memory([with_memory(3.0), with_memory(RayActorError())]))
