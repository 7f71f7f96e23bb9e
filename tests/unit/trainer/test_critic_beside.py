"""The critic that works while the next rollout is generated: what waits for it, and when a step's line is written."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("openrlhf")
from glue import Group, make_args, make_sample, no_ray
from openrlhf.trainer.ppo_trainer import BasePPOTrainer, PPOTrainer
from test_experience_maker import maker_of
from test_ppo_trainer import trainer_of

from openrlhf_orz.runtime.stopping import Stopped, StopRequested, stop_mark
from openrlhf_orz.trainer import ppo_trainer as module
from openrlhf_orz.trainer.critic_beside import EarlyValues
from openrlhf_orz.trainer.ppo_trainer import OrzPPOTrainer, OrzTrainer

BESIDE = ["--orz.critic_beside", "always", "--ckpt.save_steps", "2"]


def lines(folder) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    """Its critic's loss comes with ``ray.get``; OpenRLHF's ppo_train fits the groups that it finds."""
    no_ray(monkeypatch)
    trainer = trainer_of(tmp_path, *BESIDE, cls=OrzPPOTrainer, save_steps=2)
    trainer.critic_model_group.results["fit"] = {"critic_loss": 0.5}

    def ppo_train(self, step):
        groups = [group for group in (self.critic_model_group, self.actor_model_group) if group is not None]
        self.calls.extend((group.name, "trained", {}) for group in groups)
        return {f"{group.name}_loss": 1.0 for group in groups}

    monkeypatch.setattr(BasePPOTrainer, "ppo_train", ppo_train)
    monkeypatch.setattr(BasePPOTrainer, "train_step", lambda self, samples, step: (self.ppo_train(step), step + 1))
    monkeypatch.setattr(BasePPOTrainer, "save_logs_and_checkpoints", lambda self, step, logs, states: None)
    monkeypatch.setattr(trainer.checkpoints, "save", lambda tag: trainer.calls.append(tag))
    return trainer


def step(trainer, number):
    samples = [make_sample(reward=float(number), verdict=1, rule=0, format=1, ended=-1) for _ in range(4)]
    status, after = trainer.train_step(samples, number - 1)
    status["timing/step_total"] = 2.0
    trainer.save_logs_and_checkpoints(after, status, {"global_step": after})
    return status


def test_a_steps_line_waits_for_its_critic(trainer, tmp_path):
    status = step(trainer, 1)
    assert [call[:2] for call in trainer.calls] == [("critic", "fit"), ("actor", "trained")], "both at once"
    assert status["actor_loss"] == 1.0 and "critic_loss" not in status and lines(tmp_path) == []
    assert trainer.critic_model_group.name == "critic" and trainer.checkpoints.last_states == {"global_step": 1}
    trainer.metrics.values["reward"] = 0.25  # of the first step still, whatever generation takes
    step(trainer, 2)  # its rollout is there; a checkpoint is due after it
    first, second = lines(tmp_path)
    assert (first["step"], first["reward"], first["critic_loss"]) == (1, 0.25, 0.5)
    assert 0 <= first["seconds_critic_wait"] < 60 and first["seconds_step"] == 2.0 + first["seconds_critic_wait"]
    assert second["step"] == 2 and second["critic_loss"] == 0.5 and trainer.calls[-1] == "global_step2"


@pytest.mark.parametrize("why", ["stop", "end", "never"])
def test_nobody_works_on_after_the_end_or_a_stop(monkeypatch, trainer, tmp_path, why):
    if why == "stop":
        stop_mark(trainer.args).touch()
        with pytest.raises(Stopped):
            step(trainer, 1)
    elif why == "end":
        trainer.checkpoints.rollouts = SimpleNamespace(exhausted=True, faults={})
        step(trainer, 1)
    else:
        trainer.args = make_args(tmp_path, "--orz.critic_beside", "never")
        assert step(trainer, 1)["critic_loss"] == 1.0, "OpenRLHF's way"
    assert [line["step"] for line in lines(tmp_path)] == [1] and not trainer.critic_beside.lasts


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_ends_while_the_critic_works_waits_for_it(monkeypatch, trainer, tmp_path, stopped):
    """A stop while the next rollout is generated, or a last rollout of which nothing was left."""

    def fit(self):
        step(self, 1)
        assert lines(tmp_path) == []
        if stopped:
            raise StopRequested

    monkeypatch.setattr(PPOTrainer, "fit", fit)
    monkeypatch.setattr(trainer.checkpoints, "save_models", lambda: trainer.calls.append("models"))
    if stopped:
        with pytest.raises(Stopped):
            OrzTrainer.fit(trainer)
        assert trainer.calls[-1] == "global_step1"
    else:
        OrzTrainer.fit(trainer)
        assert trainer.calls[-1] == "models"
    assert [line["critic_loss"] for line in lines(tmp_path)] == [0.5]


def test_a_run_that_fails_in_the_next_rollout_has_its_last_line(monkeypatch, trainer, tmp_path):
    import ray

    ready = []
    monkeypatch.setattr(ray, "wait", lambda refs, num_returns, timeout: (refs[: len(ready)], refs[len(ready) :]))

    def fit(self):
        step(self, 1)
        raise RuntimeError("an engine is lost")

    monkeypatch.setattr(PPOTrainer, "fit", fit)
    for each, loss in (([], None), ([1], 0.5)):
        ready[:] = each
        with pytest.raises(RuntimeError, match="an engine is lost"):
            OrzTrainer.fit(trainer)
        line = lines(tmp_path)[-1]
        assert line["step"] == 1 and line.get("critic_loss") == loss, "with the critic's numbers where they are there"


def test_a_best_checkpoint_waits_for_the_critic(monkeypatch, trainer, tmp_path):
    saved = []
    monkeypatch.setattr(BasePPOTrainer, "save_best_checkpoint", lambda self, *given: saved.append(lines(tmp_path)))
    monkeypatch.setattr(trainer.checkpoints, "attempt", lambda tag, write: write())
    step(trainer, 1)
    trainer.save_best_checkpoint({"eval_a_pass1": 0.9}, 1, {})
    assert [line["critic_loss"] for line in saved[0]] == [0.5]


def test_waiting_has_the_limit_of_training(monkeypatch, trainer):
    limits = []
    monkeypatch.setattr(module, "phase_limit", lambda *given: limits.append(given[:3]) or no_limit())
    step(trainer, 1)
    limits.clear()
    trainer.finish_critic()
    trainer.finish_critic()
    limit = (trainer.args.orz.training_timeout_s, "training", "training_timeout_s")
    assert limits == [limit], "nothing is waited for twice"


def no_limit():
    from contextlib import nullcontext

    return nullcontext()


def test_a_critic_that_fails_ends_the_run(monkeypatch, trainer, tmp_path):
    import ray

    step(trainer, 1)

    def get(refs):
        raise FloatingPointError("critic")

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(FloatingPointError):
        step(trainer, 2)
    assert lines(tmp_path) == []


# ---- values of responses that are there early


class Critic(Group):
    """Values: a tenth of the token that is read, and as many more as batches were asked for before."""

    duplicate_actors = 1

    def async_run_method_batch(self, method_name, sequences, action_mask, attention_mask):
        assert method_name == "forward"
        self.calls.append([len(rows) for rows in sequences])
        found = [rows[:, 1:] * 0.1 * mask for rows, mask in zip(sequences, action_mask)]
        ranks = len(self._actor_handlers)
        assert len(found) >= ranks, "each rank needs a batch"
        size = -(-len(found) // ranks)
        return [found[i : i + size] for i in range(0, len(found), size)]


def early_of(monkeypatch, tmp_path, ranks=1, in_turn=False, budget=12):
    no_ray(monkeypatch)
    maker = maker_of(
        tmp_path, ds__packing_samples=True, rollout__max_tokens_per_gpu=budget, actor__num_gpus_per_node=ranks,
        train__full_determinism_enable=in_turn,
    )  # fmt: skip
    maker.critic_model_group = Critic(ranks, calls=[])
    return maker, EarlyValues(maker)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("in_turn", [False, True])
def test_early_values_are_those_of_the_batches(monkeypatch, tmp_path, ranks, in_turn):
    maker, early = early_of(monkeypatch, tmp_path, ranks, in_turn)
    prompts = {number: [make_sample(3, 2 + number + i) for i in range(2)] for number in range(6)}
    for _ in range(2):  # nothing is left for the next
        for number in (1, 0, 5, 2, 3):  # the sixth prompt's come at the end
            early.add(0, number, prompts[number])
        asked = sum(sum(sizes) for sizes in maker.critic_model_group.calls)
        assert 0 < asked < 12
        samples = [sample for number in range(6) for sample in prompts[number]]
        batches = maker.split_rollout_samples(samples)
        early.ask_rest(samples)
        values = early.take(samples, batches)
        for batch, found in zip(batches, values, strict=True):
            assert torch.equal(found, batch.sequences[:, 1:] * 0.1 * batch.action_mask)
        assert early.share == asked / 12
        maker.critic_model_group.calls.clear()


def test_in_turn_what_is_computed_together_does_not_depend_on_who_is_first(monkeypatch, tmp_path):
    def asked(order):
        maker, early = early_of(monkeypatch, tmp_path, in_turn=True)
        for number in order:
            early.add(4, number, [make_sample(3, number)] * 2)
        return maker.critic_model_group.calls

    assert len({str(asked(order)) for order in itertools.permutations([4, 5, 6, 7])}) == 1
    assert asked([4, 5, 6, 7]) != []
    assert asked([7, 6, 5]) == [], "the first prompt's are not there"


def test_a_few_late_responses_are_enough_for_every_rank(monkeypatch, tmp_path):
    maker, early = early_of(monkeypatch, tmp_path, ranks=3, budget=8)
    samples = [make_sample(3, 6 + i) for i in range(7)]
    early.add(0, 0, samples[:6])
    early.ask_rest(samples)
    batches = maker.split_rollout_samples(samples)
    values = early.take(samples, batches)
    assert early.share == 6 / 7 and sum(maker.critic_model_group.calls[-1]) == 3
    for batch, found in zip(batches, values, strict=True):
        assert torch.equal(found, batch.sequences[:, 1:] * 0.1 * batch.action_mask)


def test_gpus_that_compute_a_batch_together_are_one_rank(tmp_path):
    early = EarlyValues(
        maker_of(tmp_path, ds__ring_attn_size=2, actor__num_gpus_per_node=4, rollout__max_tokens_per_gpu=9)
    )
    assert (early.ranks, early.together, early.enough) == (2, 2, 2 * 4 * 9)


def test_no_pack_is_larger_than_the_budget(monkeypatch, tmp_path):
    """Also where the samples are no multiple of the ranks."""
    maker, early = early_of(monkeypatch, tmp_path, ranks=32, budget=16)
    samples = [make_sample(4, 12) for _ in range(40)]
    early.ask_rest(samples)
    (sizes,) = maker.critic_model_group.calls
    assert len(sizes) == 64 and set(sizes) == {1}, "of 16 tokens"


def test_responses_need_no_log_probs_of_vllms(monkeypatch, tmp_path):
    """Which an agent of one's own may give for some alone; the trainer fills them later."""
    maker, early = early_of(monkeypatch, tmp_path)
    samples = [make_sample(), make_sample()]
    samples[0].rollout_log_probs = torch.zeros_like(samples[0].action_mask)
    early.ask_rest(samples)
    assert sum(maker.critic_model_group.calls[0]) == 2


def test_the_trainer_hands_responses_on_where_the_critic_works_beside(monkeypatch, tmp_path):
    def built(*flags):
        trainer = trainer_of(tmp_path, *flags, cls=OrzPPOTrainer)
        trainer.experience_maker = maker_of(tmp_path)
        trainer.samples_generator = SimpleNamespace(engines=SimpleNamespace(set_sync=lambda sync: None))
        monkeypatch.setattr(OrzTrainer, "__init__", lambda self: None)
        trainer.__init__()
        return trainer

    trainer = built(*BESIDE)
    assert trainer.samples_generator.on_responses == trainer.experience_maker.early_values.add
    assert built().experience_maker.early_values is None
    assert built(*BESIDE, "--algo.dynamic_filtering_enable").experience_maker.early_values is None


def test_the_experience_maker_takes_them(monkeypatch, tmp_path):
    maker, maker.early_values = early_of(monkeypatch, tmp_path)
    monkeypatch.setattr("ray.put", lambda value: value)
    samples = [make_sample() for _ in range(4)]
    maker.batches = maker.split_rollout_samples(samples)
    refs = maker._dispatch_forward(maker.critic_model_group, False, action_mask=[])
    assert maker.critic_model_group.calls, "the critic is at work while OpenRLHF asks the reference model"
    values = maker._flatten_results(refs, 1)
    assert [len(rows) for rows in values] == [len(batch.index) for batch in maker.batches]
    assert maker._flatten_results([["a"], ["b"]], 1) == ["a", "b"], "of others as OpenRLHF does"
