"""The log-prob gap after a sync by hand, and what it is when an engine or the trainer is not well."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import RayActorError

from openrlhf_orz.rollout.sync import check
from openrlhf_orz.rollout.sync.check import CHECK_SEQUENCES, SyncCheck, engine_memory, fill_log_probs
from openrlhf_orz.rollout.sync.checksums import SyncError


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
        assert method_name == "log_probs_at_temperature_1" and set(kwargs) == {
            "sequences",
            "action_mask",
            "attention_mask",
        }
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


def settings(check_sync=False, on="warn", limit=1e9, resumed=False, asleep=False, data="", max_len=9):
    return SimpleNamespace(
        orz=SimpleNamespace(check_sync=check_sync, on_logprob_gap=on, max_logprob_gap=limit),
        run=SimpleNamespace(resume_from="there" if resumed else None),
        data=SimpleNamespace(prompt_dataset=f"{data},other", max_len=max_len),
        vllm=SimpleNamespace(enable_sleep=asleep),
    )


def kept(count=2, asleep=False):
    found = SyncCheck(settings(asleep=asleep), print)
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


def test_engines_that_sleep_are_woken_when_the_trainer_has_computed(monkeypatch):
    group, asked = Group(-1.0), []
    monkeypatch.setattr(check, "batch_vllm_engine_call", lambda engines, name: asked.append((name, list(group.asked))))
    kept(3).gap(group, [engine(-1.0)])
    assert asked == []
    kept(3, asleep=True).gap(group, [engine(-1.0)])
    ((name, computed),) = asked
    assert name == "wake_up" and computed


@pytest.mark.parametrize("ranks, duplicates", [(1, 1), (3, 1), (2, 2)])
def test_every_rank_computes_every_sequence(ranks, duplicates):
    group = Group(-1.0, ranks, duplicates)
    assert kept(3).gap(group, [engine(-1.0)])["sync_logprob_gap_max"] == 0
    assert group.asked == [0, 1, 2] * ranks


def test_nothing_before_the_first_rollout():
    assert SyncCheck(settings(), print).gap(None, []) == {}


def test_sequences_are_spread_over_the_first_rollout():
    found = SyncCheck(settings(), print)
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


def test_gaps_are_judged():
    """Warned of when they begin; with the flag, or the check of syncs, they end the run."""
    notes = []
    found = SyncCheck(settings(limit=0.05), notes.append)
    for gap in (None, 0.05, 0.06, 0.07, 0.01, 0.06):
        found.judge(gap)
    assert len(notes) == 2 and all("0.06" in note and "--orz.max_logprob_gap 0.05" in note for note in notes)
    for args in (settings(check_sync=True, limit=0.05), settings(on="error", limit=0.05)):
        SyncCheck(args, notes.append).judge(0.05)
        with pytest.raises(SyncError, match="0.07"):
            SyncCheck(args, notes.append).judge(0.07)
    SyncCheck(settings(on="mask", limit=0.05), notes.append).judge(0.07)
    assert len(notes) == 3


class Start:
    """A policy that syncs ``after`` into an engine that has loaded ``before``; its own log-probs are ``trainer``."""

    def __init__(self, monkeypatch, tmp_path, before=-1.0, after=-1.0, trainer=-1.0, **flags):
        self.calls, self.asked, self.notes = [], [], []
        self.value, self.trainer, self._actor_handlers, self.duplicate_actors = before, trainer, [None], 1
        self.after = after
        rows = ["ab", "c", "defghijklmnop", "qr", "st"]
        (tmp_path / "rows").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
        monkeypatch.setattr(check, "batch_vllm_engine_call", lambda engines, name: self.calls.append(name))
        self.check = SyncCheck(settings(data=tmp_path / "rows", **flags), self.notes.append)

    def async_run_method(self, method_name):
        self.calls.append(method_name)
        self.value = self.after
        return []

    def async_run_method_batch(self, method_name, sequences, action_mask, attention_mask):
        assert all(mask.all() for mask in (*action_mask, *attention_mask))
        return [[torch.full((1, ids.shape[1] - 1), self.trainer) for ids in sequences]]

    @property
    def sequence_log_probs(self):
        def log_probs(token_ids):
            self.calls.append("ask")
            self.asked = token_ids
            return [[self.value] * (len(ids) - 1) for ids in token_ids]

        return SimpleNamespace(remote=log_probs)

    def run(self):
        def tokenizer(text, add_special_tokens):
            return {"input_ids": list(map(ord, text))}

        self.check.start(self, [self], tokenizer)
        return self.check.take_start()


def test_the_first_sync(monkeypatch, tmp_path):
    run = Start(monkeypatch, tmp_path, trainer=-1.25, limit=0.05, check_sync=True)  # unlikely tokens: not judged
    assert run.run() == {"logprob_gap_start_mean": 0.25, "logprob_gap_start_max": 0.25}
    assert run.calls == ["ask", "broadcast_to_vllm", "ask"] and run.check.take_start() == {}
    assert [len(ids) for ids in run.asked] == [2, 8, 2]  # the first prompts of two tokens or more, cut to the context
    asleep = Start(monkeypatch, tmp_path, asleep=True, resumed=True)
    asleep.run()
    assert asleep.calls == ["wake_up", "broadcast_to_vllm", "ask", "sleep"]


def test_prompts_of_one_token_have_nothing_to_compare(monkeypatch, tmp_path):
    run = Start(monkeypatch, tmp_path, max_len=2)  # the engine adds the second
    assert run.run() == {} and run.calls == []


def test_a_first_sync_that_changes_what_the_engine_computes(monkeypatch, tmp_path):
    Start(monkeypatch, tmp_path, after=-1.005).run()
    for after in (-1.02, math.nan):
        with pytest.raises(SyncError, match="engine 0 computes other log-probs after the first weight sync"):
            Start(monkeypatch, tmp_path, after=after).run()
    Start(monkeypatch, tmp_path, after=-3.0, resumed=True).run()  # the engine had loaded the base model


def test_samples_without_log_probs_get_nan_where_others_have_some():
    mask = torch.ones(1, 2)
    none = [SimpleNamespace(rollout_log_probs=None, action_mask=mask) for _ in range(2)]
    fill_log_probs(none)
    assert none[0].rollout_log_probs is None
    some = SimpleNamespace(rollout_log_probs=torch.zeros(1, 2), action_mask=mask)
    fill_log_probs([*none, some])
    assert none[1].rollout_log_probs.isnan().all() and none[1].rollout_log_probs.shape == (1, 2)
    assert not some.rollout_log_probs.any()
