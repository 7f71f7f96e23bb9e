"""The loop's glue: what a step adds to OpenRLHF's, in which order, and what happens when something fails."""

import json
import os
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import ray
import torch

pytest.importorskip("openrlhf")
from glue import Group, Tokenizer, make_args, make_sample, no_ray
from openrlhf.trainer.ppo_trainer import BasePPOTrainer, PPOTrainer
from openrlhf.trainer.ppo_trainer_async import GenerateSamplesActor

from openrlhf_orz.rollout.sync.check import SyncCheck
from openrlhf_orz.rollout.sync.checksums import SyncError
from openrlhf_orz.rollout.sync.transport import BroadcastBroken
from openrlhf_orz.runtime.run_dir import RunDir
from openrlhf_orz.runtime.stopping import Stopped, StopRequested, training_mark
from openrlhf_orz.runtime.watchdog import RunFailed
from openrlhf_orz.trainer import ppo_trainer as module
from openrlhf_orz.trainer import ppo_trainer_async
from openrlhf_orz.trainer.checkpoints import NoRollouts, TrainerCheckpoints
from openrlhf_orz.trainer.critic_beside import CriticBeside
from openrlhf_orz.trainer.metrics import StepMetrics
from openrlhf_orz.trainer.ppo_trainer import OrzPPOTrainer, OrzTrainer
from openrlhf_orz.trainer.ppo_trainer_async import OrzGenerateSamplesActor, OrzTrainingActor


def trainer_of(tmp_path, *flags, cls=OrzTrainer, changes=None, **run):
    """A trainer without models: its settings, run directory, metrics and checkpoints are real."""
    trainer = object.__new__(cls)
    trainer.args = make_args(tmp_path, *flags, changes=changes, **run)
    trainer.tokenizer = Tokenizer()
    trainer.run_dir = RunDir(trainer.args.orz.run_dir)
    trainer.logs = trainer.run_dir.path / "logs"
    trainer.metrics = StepMetrics(trainer.tokenizer, trainer.args.rollout.n_samples_per_prompt)
    trainer.calls = []
    trainer.actor_model_group = Group(calls=trainer.calls, name="actor")
    trainer.critic_model_group = Group(calls=trainer.calls, name="critic")
    trainer.wandb_logger = trainer.tensorboard_logger = None
    trainer.best_eval_metric_key, trainer.best_eval_metric_value = "eval_a_pass1", 0.5
    trainer._latest_eval_metric_value = 0.25
    trainer.sync_check = SyncCheck(trainer.args, print)
    trainer.hidden_size = 32
    trainer.kl_ctl = SimpleNamespace(value=0.25)
    trainer.experience_maker = SimpleNamespace(notes={}, early_values=None)
    trainer.critic_beside = CriticBeside()
    trainer.checkpoints = TrainerCheckpoints(
        trainer.args, [trainer.actor_model_group], trainer.run_dir, NoRollouts(), trainer.own_state
    )
    return trainer


def rollouts(n=4):
    return [make_sample(prompt=5, response=3 + i, reward=float(i % 2), verdict=1 - i % 2, rule=0, format=1, ended=-1)
            for i in range(n)]  # fmt: skip


def test_a_step_measures_responses_and_writes_rollouts(monkeypatch, tmp_path):
    trainer = trainer_of(tmp_path)
    monkeypatch.setattr(BasePPOTrainer, "train_step", lambda self, samples, step: ({"kl": 0.0}, step + 1))
    status, step = trainer.train_step(rollouts(), 6)
    trainer.run_dir.wait()
    assert step == 7
    record = trainer.metrics.record(step, status)
    assert record["response_length"] == 4.5 and record["response_tokens"] == 18  # responses alone
    assert record["tokens"] == 18 + 4 * 5 and record["reward"] == 0.5 and record["reflection"] == 0.0
    rows = [json.loads(line) for line in (tmp_path / "rollouts" / "step_7.jsonl").read_text().splitlines()]
    assert [row["tokens"] for row in rows] == [3, 4, 5, 6] and rows[1]["verdict"] == "right"
    assert rows[0]["response"] == "6 7 8" and rows[0]["stop_reason"] == "eos"  # the tokens behind the prompt's five


def test_penalised_rewards_stand_beside_those_of_the_responses(monkeypatch, tmp_path):
    """What the advantages were made of goes into metrics and rollouts; a cut response is 1.0 by its answer here."""
    from openrlhf.trainer.ppo_utils.experience import Experience
    from openrlhf.trainer.ppo_utils.length_penalty import apply_length_penalties

    trainer = trainer_of(tmp_path, "--reward.stop_properly_penalty_coef", "-0.5")
    monkeypatch.setattr(BasePPOTrainer, "_compute_rollout_stats", lambda self, experiences: {})

    def train_step(self, samples, step):
        batches = []
        for part in ([2, 0], [3, 1]):  # packs are in another order than the responses
            batch = Experience.concat_experiences([samples[i] for i in part], 0)
            batch.index, batch.returns, batch.rewards = part, batch.action_mask, batch.rewards.clone()
            batches.append(batch)
        apply_length_penalties(batches, self.args)
        return self._compute_rollout_stats(batches), step + 1

    monkeypatch.setattr(BasePPOTrainer, "train_step", train_step)
    samples = rollouts()
    samples[1].truncated = torch.tensor([1.0])
    status, step = trainer.train_step(samples, 0)
    trainer.run_dir.wait()
    record = trainer.metrics.record(step, status)
    assert record["reward"] == 0.5 and record["reward_trained"] == pytest.approx((0 - 0.5 + 0 + 1) / 4)
    rows = [json.loads(line) for line in (tmp_path / "rollouts" / "step_1.jsonl").read_text().splitlines()]
    assert [(row["reward"], row["reward_trained"]) for row in rows] == [(0, 0), (1, -0.5), (0, 0), (1, 1)]


def test_rollouts_are_written_as_often_and_as_many_as_asked(monkeypatch, tmp_path):
    trainer = trainer_of(tmp_path, "--orz.rollout_dump_every", "2", "--orz.rollout_dump_max", "3")
    monkeypatch.setattr(BasePPOTrainer, "train_step", lambda self, samples, step: ({}, step + 1))
    for step in range(4):
        trainer.train_step(rollouts(), step)
    trainer.run_dir.wait()
    assert sorted(os.listdir(tmp_path / "rollouts")) == ["step_2.jsonl", "step_4.jsonl"]
    assert len((tmp_path / "rollouts" / "step_2.jsonl").read_text().splitlines()) == 3


def test_chosen_rows_have_values_by_token(monkeypatch, tmp_path):
    trainer = trainer_of(tmp_path, "--orz.rollout_values", "2", "--orz.rollout_dump_max", "3")
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]])

    def train_step(self, samples, step):
        batch = {"values": mask * 0.5, "advantages": mask * -0.5, "returns": mask.float(), "action_mask": mask}
        experience = SimpleNamespace(index=[1, 0, 2, 3], rewards=torch.zeros(4), **batch)
        monkeypatch.setattr(BasePPOTrainer, "_compute_rollout_stats", lambda self, experiences: {})
        return self._compute_rollout_stats([experience]), step + 1

    monkeypatch.setattr(BasePPOTrainer, "train_step", train_step)
    trainer.train_step(rollouts(), 0)
    trainer.run_dir.wait()
    rows = [json.loads(line) for line in (tmp_path / "rollouts" / "step_1.jsonl").read_text().splitlines()]
    assert [row.get("values") for row in rows] == [[0.5] * 3, [0.5] * 2, None], "two of the three rows written"
    assert rows[1]["advantages"] == [-0.5] * 2 and "".join(rows[0]["token_texts"]) == rows[0]["response"]
    assert trainer_of(tmp_path)._token_numbers([]) == {}


def test_the_metrics_of_a_step_do_not_leak_into_the_next(monkeypatch, tmp_path):
    trainer = trainer_of(tmp_path)
    monkeypatch.setattr(BasePPOTrainer, "train_step", lambda self, samples, step: ({}, step + 1))
    trainer.train_step(rollouts(), 0)
    trainer.metrics.add(sync_bytes=5.0)
    trainer.train_step(rollouts(), 1)
    assert "sync_bytes" not in trainer.metrics.record(2, {})


def test_a_line_is_written_before_the_checkpoint_and_holds_what_was_survived(monkeypatch, tmp_path):
    trainer = trainer_of(tmp_path, restarts=2)
    trainer.checkpoints.faults["checkpoints_failed"] = 3
    trainer.run_dir.failures = 4
    order = []
    monkeypatch.setattr(BasePPOTrainer, "save_logs_and_checkpoints", lambda self, step, logs, _: order.append(logs))
    monkeypatch.setattr(trainer.checkpoints, "after_step", lambda step, states: order.append((step, states)))
    monkeypatch.setattr(trainer.checkpoints, "warn_of_stop", lambda: order.append("how long a stop takes"))
    trainer.save_logs_and_checkpoints(5, {"values": 0.5, "generated_samples": ["x"]}, {"episode": 1})
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (line["step"], line["restarts"], line["checkpoints_failed"], line["writes_failed"]) == (5, 2, 3, 4)
    assert line["value_mean"] == 0.5 and "time" in line
    stop, logs, after = order
    assert stop and logs["generated_samples"] == ["x"] and "step" not in logs and after == (5, {"episode": 1})


def test_a_sync_is_measured(monkeypatch, tmp_path):
    no_ray(monkeypatch)
    trainer = trainer_of(tmp_path)
    handle = SimpleNamespace(sync_report=SimpleNamespace(remote=lambda: {"sync_bytes": 8.0}))
    trainer.actor_model_group._actor_handlers = [handle]
    memory = [SimpleNamespace(memory_mib=SimpleNamespace(remote=lambda mib=mib: mib)) for mib in (10.0, 30.0)]
    trainer.vllm_engines = memory
    monkeypatch.setattr(BasePPOTrainer, "broadcast_to_vllm", lambda self: self.calls.append("sync"))
    trainer.sync_check = SimpleNamespace(gap=lambda *groups: {"sync_logprob_gap_mean": len(groups) / 4})
    trainer.broadcast_to_vllm()
    assert trainer.metrics.values["sync_logprob_gap_mean"] == 0.5  # of the policy and the engines
    assert trainer.calls == ["sync"]
    assert trainer.metrics.values["sync_bytes"] == 8.0 and trainer.metrics.values["engine_memory_mib"] == 30.0
    assert trainer.metrics.values["driver_memory_mib"] > 0


def test_the_memory_of_sleeping_engines_is_a_metric(monkeypatch, tmp_path):
    trainer = trainer_of(tmp_path, cls=OrzPPOTrainer)
    monkeypatch.setattr(OrzTrainer, "broadcast_to_vllm", lambda self: self.calls.append("sync"))
    trainer.samples_generator = SimpleNamespace(engines=SimpleNamespace(asleep={"gpu_memory_mib_asleep": 7.0}))
    trainer.broadcast_to_vllm()
    assert trainer.calls == ["sync"] and trainer.metrics.values["gpu_memory_mib_asleep"] == 7.0


@pytest.mark.parametrize(
    "error", [ray.exceptions.RayTaskError("sync", "traceback", RuntimeError("engine")), ray.exceptions.RayActorError()]
)
@pytest.mark.parametrize("revived, syncs", [((0, 1), 2), ((0, 0), 1), ((2, 1), 2)])
def test_a_sync_is_repeated_once_if_an_engine_had_died(monkeypatch, tmp_path, revived, syncs, error):
    """It may die while a rank sends it the weights, and while it wakes for them, which the trainer calls itself."""
    trainer, found = trainer_of(tmp_path, cls=OrzPPOTrainer), iter(revived)

    def revive_dead(between_steps):
        assert not between_steps
        return next(found)

    trainer.samples_generator = SimpleNamespace(engines=SimpleNamespace(revive_dead=revive_dead))

    def sync(self):
        self.calls.append("sync")
        if len(self.calls) == 1:
            raise error

    monkeypatch.setattr(BasePPOTrainer, "broadcast_to_vllm", sync)
    if syncs == 2:
        trainer.send_weights()
    else:
        with pytest.raises(type(error)):
            trainer.send_weights()
    assert trainer.calls == ["sync"] * syncs


def test_a_broadcast_in_which_an_engine_was_lost_is_not_repeated(monkeypatch, tmp_path):
    """The engines that live wait in it for ever."""
    trainer = trainer_of(tmp_path, cls=OrzPPOTrainer)
    trainer.samples_generator = SimpleNamespace(engines=SimpleNamespace(revive_dead=lambda between_steps: 1))

    def sync(self):
        self.calls.append("sync")
        raise ray.exceptions.RayTaskError("sync", "traceback", BroadcastBroken("lost")).as_instanceof_cause()

    monkeypatch.setattr(BasePPOTrainer, "broadcast_to_vllm", sync)
    with pytest.raises(BroadcastBroken):
        trainer.send_weights()
    assert trainer.calls == ["sync"]


def test_cross_fitting_trains_the_critic_first(monkeypatch, tmp_path):
    no_ray(monkeypatch)
    trainer = trainer_of(tmp_path, "--orz.cross_fit_values")
    trainer.critic_model_group.results["take_values"] = "values"
    trainer.actor_model_group.results["set_values"] = [{"explained_variance": 0.25}]

    def ppo_train(self, step):
        groups = [group for group in (self.critic_model_group, self.actor_model_group) if group is not None]
        self.calls.extend((group.name, "fit", {}) for group in groups)
        return {f"{group.name}_loss": 1.0 for group in groups}

    monkeypatch.setattr(BasePPOTrainer, "ppo_train", ppo_train)
    groups = trainer.actor_model_group, trainer.critic_model_group
    status = trainer.ppo_train(3)
    assert [call[:2] for call in trainer.calls] == [
        ("critic", "fit"), ("critic", "take_values"), ("actor", "set_values"),
        ("actor", "fit"),
    ]  # fmt: skip
    assert trainer.calls[2][2] == {"values": ["values"]}
    assert status == {"critic_loss": 1.0, "actor_loss": 1.0, "explained_variance": 0.25}
    assert (trainer.actor_model_group, trainer.critic_model_group) == groups


def test_models_are_back_in_place_after_a_failure(monkeypatch, tmp_path):
    trainer = trainer_of(tmp_path, "--orz.cross_fit_values")
    groups = trainer.actor_model_group, trainer.critic_model_group

    def ppo_train(self, step):
        raise FloatingPointError("critic")

    monkeypatch.setattr(BasePPOTrainer, "ppo_train", ppo_train)
    with pytest.raises(FloatingPointError):
        trainer.ppo_train(3)
    assert (trainer.actor_model_group, trainer.critic_model_group) == groups


@pytest.mark.parametrize("step, dropped", [(0, True), (1, True), (2, False)])
def test_the_policys_rollout_is_dropped_while_it_is_frozen(monkeypatch, tmp_path, step, dropped):
    no_ray(monkeypatch)
    trainer = trainer_of(tmp_path, "--critic.freezing_steps", "2")
    trainer.metrics.start(rollouts())
    monkeypatch.setattr(BasePPOTrainer, "ppo_train", lambda self, step: {} if self.metrics.pending else None)
    status = trainer.ppo_train(step)
    assert [call[1] for call in trainer.calls] == (["drop_buffer"] if dropped else [])
    assert status == ({"policy_updates": 0} if dropped else {}), "the metrics say that the critic trained alone"


def test_samples_are_shared_among_ranks_by_work(tmp_path):
    from openrlhf.trainer.ppo_utils.experience import Experience

    trainer = trainer_of(tmp_path)
    trainer.actor_model_group = Group(ranks=2)
    samples = [make_sample(2, n) for n in (9, 1, 8, 2)]
    empty = make_sample(2, 1)
    empty.action_mask.zero_()
    batch = Experience.concat_experiences([*samples, empty], 0)
    first, second = trainer.balance_experiences([batch], trainer.args)
    assert sorted(first.response_length.tolist()) in ([1, 9], [2, 8]) and len(second.response_length) == 2
    assert trainer.metrics.values == {"samples_per_rank_min": 2.0, "samples_per_rank_max": 2.0}


def test_rollout_stats_hold_the_critics_fit(monkeypatch, tmp_path):
    monkeypatch.setattr(BasePPOTrainer, "_compute_rollout_stats", lambda self, experiences: {"old": 1.0})
    trainer = trainer_of(tmp_path)
    experience = SimpleNamespace(
        action_mask=torch.tensor([[1.0, 1.0, 0.0]]), returns=torch.tensor([[0.0, 2.0, 50.0]]),
        values=torch.tensor([[0.0, 1.0, 9.0]]), rewards=torch.ones(1), index=[0],
    )  # fmt: skip
    stats = trainer._compute_rollout_stats([experience])
    assert stats == {"old": 1.0, "return_mean": 1.0, "explained_variance": pytest.approx(0.75)}
    assert trainer.metrics.values == {}
    trainer.experience_maker.notes = {"lambda_policy": 0.5}
    experience.values = None
    assert "explained_variance" not in trainer._compute_rollout_stats([experience])
    assert trainer.metrics.values == {"lambda_policy": 0.5}, "how the advantages were made"


def test_fit_marks_that_it_trains_and_ends_as_stopped(monkeypatch, tmp_path):
    trainer = trainer_of(tmp_path)
    seen = []

    def fit(self, *args):
        seen.append(training_mark(self.args).exists())
        raise StopRequested

    monkeypatch.setattr(BasePPOTrainer, "fit", fit)
    with pytest.raises(Stopped, match="before the first step"):
        trainer.fit()
    assert seen == [True] and not training_mark(trainer.args).exists()


def test_the_first_sync_and_the_base_models_evaluation_come_before_the_first_step(monkeypatch, tmp_path):
    monkeypatch.setattr(PPOTrainer, "fit", lambda self: self.calls.append("fit"))

    def evaluate(self, step, **kwargs):
        self.calls.append((step, kwargs))
        return {"eval_a_pass1": 0.1}

    monkeypatch.setattr(OrzPPOTrainer, "evaluate", evaluate)
    monkeypatch.setattr(OrzPPOTrainer, "check_start", lambda self: self.calls.append("check"))
    monkeypatch.setattr(TrainerCheckpoints, "save_models", lambda self: None)
    flags = ["--eval.dataset", "d", "--eval.steps", "5", "--eval.temperature", "0.3"]
    flags += ["--eval.n_samples_per_prompt", "3"]

    def run(*flags, **start):
        trainer = trainer_of(tmp_path, *flags, cls=OrzPPOTrainer, **start)
        trainer.eval_dataloader, trainer.generate_kwargs = ["d"], {"temperature": 1.0, "top_p": 0.9}
        trainer.fit()
        return trainer

    trainer = run(*flags)
    expected = {"temperature": 0.3, "n_samples_per_prompt": 3, "top_p": 0.9}
    assert trainer.calls == ["check", (0, expected), "fit"] and trainer.best_eval_metric_value == 0.1
    assert run(*flags, resume_from="/ckpt").calls == ["check", "fit"]
    assert run().calls == ["check", "fit"]  # --eval.steps is infinite: never
    monkeypatch.setattr(OrzPPOTrainer, "evaluate", lambda self, step, **kwargs: {})
    assert run(*flags).best_eval_metric_value == 0.5  # without a metric there is nothing to beat


@pytest.mark.parametrize("colocated, device, waits", [(True, "cuda", 2), (False, "cuda", 0), (True, "cpu", 0)])
def test_models_load_when_the_engines_on_their_gpus_have_measured_their_memory(
    monkeypatch, tmp_path, colocated, device, waits
):
    waited, changes = [], {"orz.device": device, "train.colocate_all": colocated}
    monkeypatch.setattr(module.ray, "wait", lambda refs, num_returns: waited.extend(refs))
    trainer = trainer_of(tmp_path, cls=OrzPPOTrainer, changes=changes)
    engine = SimpleNamespace(start=SimpleNamespace(remote=lambda: len(waited)))
    trainer.vllm_engines, trainer.max_steps = [engine, engine], 7
    assert trainer.get_max_steps() == 7 and len(waited) == waits
    trainer.vllm_engines = None  # --orz.replay
    assert trainer.get_max_steps() == 7 and len(waited) == waits


def test_the_first_set_decides_on_the_best_checkpoint(tmp_path):
    trainer = trainer_of(tmp_path)
    logs = {"eval_math500_pass1": 0.4, "eval_math500_pass2": 0.5, "eval_aime_pass1": 0.9, "eval_num_samples": 3.0}
    trainer.best_eval_metric_key = ""
    assert trainer._detect_eval_metric_key(logs) == trainer.best_eval_metric_key == "eval_math500_pass1"
    for key, found in (("none", None), ("eval_aime_pass1", "eval_aime_pass1")):
        trainer.best_eval_metric_key = key
        assert trainer._detect_eval_metric_key(logs) == found
    trainer.best_eval_metric_key = "eval_gpqa_pass1"
    with pytest.raises(RunFailed, match="--ckpt.best_metric_key eval_gpqa_pass1: .* eval_math500_pass1, .*aime_pass1"):
        trainer._detect_eval_metric_key(logs)
    trainer.best_eval_metric_key = ""
    assert trainer._detect_eval_metric_key({}) is None


@pytest.mark.parametrize(
    "given, flags, kept",
    [
        ("", {}, True),
        ("", {"eval.steps": 9}, True),
        ("eval_a_pass1", {}, True),
        ("eval_b_pass1", {}, False),
        ("", {"eval.temperature": 0.1}, False),
        ("", {"eval.dataset": "other"}, False),
        ("", None, True),  # a checkpoint of before flags were in it
    ],
)
def test_the_best_of_another_measure_is_forgotten(tmp_path, given, flags, kept):
    measure = {"eval.steps": 5, "eval.dataset": "d", "eval.temperature": 1.0}
    changes = {"ckpt.best_metric_key": given}
    trainer = trainer_of(tmp_path, changes=changes, recorded_flags=measure)
    trainer.best_eval_metric_key, trainer.best_eval_metric_value = given, float("-inf")
    states = {"best_eval_metric_key": "eval_a_pass1", "best_eval_metric_value": 0.5}
    trainer.restore_best_checkpoint_state(states | ({} if flags is None else {"flags": measure | flags}))
    found = trainer.best_eval_metric_key, trainer.best_eval_metric_value
    assert found == (("eval_a_pass1", 0.5) if kept else (given, float("-inf")))


@pytest.mark.parametrize("target, states, coefficient", [
    (0.1, {"kl_coef": 0.02}, 0.02), (0.1, {}, 0.25), (None, {"kl_coef": 0.02}, 0.25),
])  # fmt: skip
def test_an_adapted_kl_coefficient_goes_on_where_it_was(monkeypatch, tmp_path, target, states, coefficient):
    trainer = trainer_of(tmp_path, changes={"algo.kl.target": target})
    monkeypatch.setattr(trainer.checkpoints, "resume", lambda: {"global_step": 3, **states})
    assert trainer.init_checkpoint_states()["global_step"] == 3 and trainer.kl_ctl.value == coefficient


def test_an_asynchronous_sync_is_timed_with_the_engines_at_hand(monkeypatch, tmp_path):
    """The lock, which a rollout holds, is waited for outside of --orz.sync_timeout_s."""
    trainer, calls = trainer_of(tmp_path, cls=OrzTrainingActor), []

    @contextmanager
    def limited(seconds, what, *rest):
        calls.append(what)
        yield
        calls.append(f"end of {what}")

    def remote(name):
        return SimpleNamespace(remote=lambda: calls.append(name))

    no_ray(monkeypatch)
    monkeypatch.setattr("openrlhf.trainer.ppo_trainer_async.ray.get", lambda refs: refs)
    monkeypatch.setattr(module, "phase_limit", limited)
    monkeypatch.setattr(module, "engine_memory", lambda engines: 0)
    monkeypatch.setattr(BasePPOTrainer, "broadcast_to_vllm", lambda self: calls.append("weights"))
    trainer.vllm_lock = SimpleNamespace(acquire=remote("acquired"), release=remote("released"))
    trainer._partial_rollout, trainer.vllm_engines = False, []
    trainer.actor_model_group._actor_handlers = [SimpleNamespace(sync_report=SimpleNamespace(remote=dict))]
    trainer.broadcast_to_vllm()
    assert calls == ["acquired", "weight-sync", "weights", "end of weight-sync", "released"]


@pytest.mark.parametrize(
    "step, done, evaluates", [(4, [2], True), (4, [2, 4], False), (3, [2], False), (0, [], False)]
)
def test_an_evaluation_that_a_stop_came_before_is_made_up_for(monkeypatch, tmp_path, step, done, evaluates):
    """A stopped run saves its step and ends; OpenRLHF evaluates after that."""
    trainer, asked = trainer_of(tmp_path, cls=OrzPPOTrainer, changes={"eval.steps": 2}), []
    trainer.eval_dataloader, trainer.generate_kwargs = ["q"], {"top_p": 1.0}
    for each in done:
        trainer.run_dir.append("eval.jsonl", {"step": each})
    monkeypatch.setattr(OrzTrainer, "restore_best_checkpoint_state", lambda self, states: asked.append("restored"))
    monkeypatch.setattr(
        trainer, "evaluate", lambda step, **kwargs: asked.append((step, kwargs)) or {"eval_a_pass1": 1}
    )
    monkeypatch.setattr(trainer, "save_best_checkpoint", lambda *given: asked.append(given))
    monkeypatch.setattr(trainer, "broadcast_to_vllm", lambda: asked.append("weights"))
    states = {"global_step": step}
    trainer.restore_best_checkpoint_state(states)
    own = trainer.args.eval
    kwargs = {"top_p": 1.0, "temperature": own.temperature, "n_samples_per_prompt": own.n_samples_per_prompt}
    expected = ["weights", (step, kwargs), ({"eval_a_pass1": 1}, step, states)] if evaluates else []
    assert asked == ["restored", *expected]


def test_an_asynchronous_best_checkpoint_is_of_the_step_of_its_weights(monkeypatch, tmp_path):
    trainer = trainer_of(tmp_path, cls=OrzTrainingActor)
    saved = []
    monkeypatch.setattr(trainer.checkpoints, "attempt", lambda tag, write: saved.append(tag))
    trainer.save_best_checkpoint({"eval_a_pass1": 0.9}, 4, {"global_step": 6})
    assert saved == ["best_global_step6"]


def test_a_run_ends_when_everything_is_written(monkeypatch, tmp_path):
    trainer = trainer_of(tmp_path)
    monkeypatch.setattr(BasePPOTrainer, "fit", lambda self: self.calls.append("fit"))
    monkeypatch.setattr(trainer.checkpoints, "wait_for_commit", lambda: trainer.calls.append("committed"))
    monkeypatch.setattr(trainer.checkpoints, "save_models", lambda: trainer.calls.append("saved"))
    monkeypatch.setattr(trainer.run_dir, "wait", lambda: trainer.calls.append("written"))
    trainer.fit()
    assert trainer.calls == ["fit", "saved", "committed", "written"]


def test_ranks_that_hold_the_same_samples_are_one(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.actor_model_group = Group(ranks=6)
    assert trainer.ranks == 6
    trainer.actor_model_group.duplicate_actors = 3  # ring attention or tensor parallel
    assert trainer.ranks == 2


def test_values_are_taken_once_from_ranks_that_hold_the_same_samples(monkeypatch, tmp_path):
    no_ray(monkeypatch)
    trainer = trainer_of(tmp_path, "--orz.cross_fit_values")
    monkeypatch.setattr(BasePPOTrainer, "ppo_train", lambda self, step: {})
    trainer.critic_model_group._actor_handlers *= 4
    trainer.critic_model_group.duplicate_actors = 2
    trainer.critic_model_group.results["take_values"] = "values"
    trainer.actor_model_group.results["set_values"] = [{}]
    trainer.ppo_train(3)
    assert trainer.calls[1][2] == {"values": ["values"] * 2}


def test_the_process_that_draws_shows_that_it_lives(monkeypatch):
    beats = []
    monkeypatch.setattr(ppo_trainer_async, "start_heartbeat", lambda *given: beats.append(given))
    monkeypatch.setattr(GenerateSamplesActor, "__init__", lambda self, args: setattr(self, "args", args))
    OrzGenerateSamplesActor("settings")
    assert beats == [("settings", "generator")]


def test_where_to_begin(monkeypatch, tmp_path):
    monkeypatch.setattr(BasePPOTrainer, "init_checkpoint_states", lambda self: "start")
    trainer = trainer_of(tmp_path)
    assert trainer.init_checkpoint_states() == "start"
    monkeypatch.setattr(trainer.checkpoints, "resume", lambda: {"global_step": 3})
    assert trainer.init_checkpoint_states() == {"global_step": 3}


def test_a_best_checkpoint_is_attempted_under_its_name(monkeypatch, tmp_path):
    trainer = trainer_of(tmp_path)
    monkeypatch.setattr(BasePPOTrainer, "save_best_checkpoint", lambda self, *given: self.calls.append(given))
    monkeypatch.setattr(trainer.checkpoints, "attempt", lambda tag, write: trainer.calls.append(tag) or write())
    trainer.save_best_checkpoint({"eval_a_pass1": 1.0}, 4, {"episode": 0})
    assert trainer.calls == ["best_global_step4", ({"eval_a_pass1": 1.0}, 4, {"episode": 0})]


@pytest.mark.parametrize("exhausted, begins", [(False, 2), (True, 3)])
def test_an_asynchronous_run_resumes_in_the_episode_that_has_prompts_left(monkeypatch, exhausted, begins):
    monkeypatch.setattr(GenerateSamplesActor, "fit", lambda self, episode, consumed: (episode, consumed))
    generator = object.__new__(OrzGenerateSamplesActor)
    generator.prompts_dataloader = SimpleNamespace(exhausted=exhausted)
    assert generator.fit(2, 10) == (begins, 10)


def test_prompts_count_a_partial_last_rollout(monkeypatch, tmp_path):
    loader = SimpleNamespace(dataset=list(range(10)))
    dataset = type("Prompts", (list,), {"collate_fn": staticmethod(list)})(range(10))
    loader.dataset = dataset
    limits = []

    def prepare_datasets(strategy, tokenizer):
        limits.append(strategy.args.data.max_samples)
        return loader, "held out", 99

    monkeypatch.setattr(module, "prepare_datasets", prepare_datasets)
    args = make_args(tmp_path, "--train.num_episodes", "2", "--orz.policy_updates", "2")
    prompts, held_out, steps = module.load_prompts(SimpleNamespace(args=args), None)
    assert held_out == "held out" and len(prompts) == 10
    assert steps == 3 * 2 * 2  # three rollouts of four prompts, two episodes, two updates each
    args = make_args(tmp_path, "--data.max_samples", "5")
    prompts, _, steps = module.load_prompts(SimpleNamespace(args=args), None)
    assert sorted(item for batch in prompts for item in batch) == [0, 1, 2, 3, 4] and steps == 2
    assert args.data.max_samples == 5 < min(limits), "the evaluation's questions are not cut by it"


class Tracker:
    """Stands where W&B or TensorBoard is."""

    def __init__(self, fails=False):
        self.logged, self.fails = [], fails

    def log_eval(self, step, logs):
        if self.fails:
            raise ConnectionError("gone")
        self.logged.append((step, logs))


def answering(asked, answer):
    """A function that notes its keywords in ``asked``."""

    def call(**kwargs):
        asked.append(kwargs)
        return answer

    return call


def test_an_evaluation_is_logged_everywhere(monkeypatch, tmp_path):
    trainer = trainer_of(tmp_path, cls=OrzPPOTrainer)
    trainer.tensorboard_logger = Tracker()
    trainer.eval_dataloader, asked = ["questions"], []
    trainer.samples_generator = SimpleNamespace(
        generate_eval_samples=lambda **kwargs: asked.append(kwargs) or "samples"
    )
    seen = []

    def evaluate_samples(*given):
        seen.append(given)
        return {"eval_a_pass1": 0.5}

    monkeypatch.setattr(module, "evaluate_samples", evaluate_samples)
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: next(clock)))
    logs = trainer.evaluate(4, temperature=0.3, n_samples_per_prompt=3)
    assert logs == {"eval_a_pass1": 0.5, "eval_seconds": 2.5}
    assert asked == [{"temperature": 0.3, "n_samples_per_prompt": 3}]
    assert seen == [(["questions"], "samples", 3, trainer.tokenizer, trainer.args)]
    assert trainer.tensorboard_logger.logged == [(4, logs)]
    assert json.loads((tmp_path / "eval.jsonl").read_text()) == {"step": 4, **logs}


def test_an_asynchronous_evaluation_is_written_under_its_step(monkeypatch, tmp_path):
    generator = object.__new__(OrzGenerateSamplesActor)
    generator.args = make_args(
        tmp_path,
        "--eval.dataset",
        "d",
        "--eval.steps",
        "5",
        "--eval.temperature",
        "0.3",
        "--eval.n_samples_per_prompt",
        "3",
    )
    asked, seen = [], []
    generator.samples_generator = SimpleNamespace(
        generate_eval_samples=answering(asked, "samples"), tokenizer="tokenizer"
    )
    generator.generate_kwargs, generator.eval_dataloader, generator._last_eval_step = {"top_p": 0.9}, ["q"], 5

    def evaluate_samples(*given):
        seen.append(given)
        return {"eval_a_pass1": 0.5}

    monkeypatch.setattr(ppo_trainer_async, "evaluate_samples", evaluate_samples)
    assert generator._run_eval() == {"eval_a_pass1": 0.5}
    assert asked == [{"top_p": 0.9, "temperature": 0.3, "n_samples_per_prompt": 3}]
    assert seen == [(["q"], "samples", 3, "tokenizer", generator.args)]
    assert json.loads((tmp_path / "eval.jsonl").read_text()) == {"step": 5, "eval_a_pass1": 0.5}


def test_what_a_trainer_is_made_of(monkeypatch, tmp_path):
    beats = []
    monkeypatch.setattr(module, "start_heartbeat", lambda args, name: beats.append(name))
    text = SimpleNamespace(hidden_size=48)
    config = SimpleNamespace(get_text_config=lambda: text)
    asked = []
    monkeypatch.setattr(
        module.AutoConfig,
        "from_pretrained",
        lambda name, trust_remote_code: asked.append((name, trust_remote_code)) or config,
    )
    actor, critic = Group(name="actor"), Group(name="critic")

    def init(self, args):
        self.args, self.tokenizer, self.actor_model_group, self.critic_model_group = args, Tokenizer(), actor, critic
        self.wandb_logger, self.tensorboard_logger = None, Tracker(fails=True)

    monkeypatch.setattr(BasePPOTrainer, "__init__", init)
    trainer = OrzTrainer(make_args(tmp_path, save_steps=3))
    assert beats == ["trainer"] and trainer.hidden_size == 48 and asked == [("none/none", False)]
    assert trainer.run_dir.path == tmp_path and trainer.logs == tmp_path / "logs" and trainer.wandb_logger is None
    trainer.tensorboard_logger.log_eval(1, {})  # whose failure is counted and ends nothing
    assert trainer.run_dir.failures == 1
    assert trainer.checkpoints.groups == [actor, critic] and type(trainer.checkpoints.rollouts) is NoRollouts
    assert trainer.checkpoints.own_state == trainer.own_state
    critic = None
    assert OrzTrainer(make_args(tmp_path)).checkpoints.groups == [actor]


def test_the_synchronous_trainer_draws_its_rollouts_and_gives_engines_their_weights(monkeypatch, tmp_path):
    no_ray(monkeypatch)
    given = []
    generator = SimpleNamespace(engines=SimpleNamespace(set_sync=given.append), faults={"engines_restarted": 2})

    def init(self, args):
        self.args, self.samples_generator, self.prompts_dataloader = args, generator, "loader"
        self.actor_model_group = Group(calls=given, name="actor")

    monkeypatch.setattr(OrzTrainer, "__init__", init)
    trainer = OrzPPOTrainer(make_args(tmp_path))
    assert given == [trainer.sync_engine]
    drawn = trainer.rollouts()
    assert (drawn.generator, drawn.loader) == (generator, "loader") and drawn.faults == {"engines_restarted": 2}
    trainer.sync_engine(1)
    assert given[1] == ("actor", "sync_engine", {"index": 1})


def test_the_trainers_part_of_a_checkpoint(tmp_path):
    assert trainer_of(tmp_path).own_state() == {
        "kl_coef": 0.25, "best_eval_metric_key": "eval_a_pass1", "best_eval_metric_value": 0.5,
        "latest_eval_metric_value": 0.25,
    }  # fmt: skip


def test_the_first_sync_waits_for_engines_outside_of_its_limit(monkeypatch, tmp_path):
    """On a busy machine engines start for minutes, and --orz.sync_timeout_s is for a sync."""
    calls = []

    @contextmanager
    def limited(*args):
        calls.append("limit")
        yield

    trainer = trainer_of(tmp_path)
    remote = SimpleNamespace(remote=lambda: calls.append("start"))
    trainer.vllm_engines = [SimpleNamespace(start=remote)] * 2
    monkeypatch.setattr(ray, "wait", lambda refs, num_returns: calls.append(f"wait for {num_returns}"))
    monkeypatch.setattr(module, "phase_limit", limited)
    trainer.sync_check = SimpleNamespace(start=lambda *args: calls.append("sync"))
    trainer.check_start()
    assert calls == ["start", "start", "wait for 2", "limit", "sync"]


def test_gaps_of_the_start_and_of_the_step(monkeypatch, tmp_path):
    """The first step's line has the start's; a step's gap is judged; what has no log-probs gets nan."""
    status = {"logprob_gap_mean": 0.2}
    monkeypatch.setattr(BasePPOTrainer, "train_step", lambda self, samples, step: (status, step + 1))
    trainer = trainer_of(tmp_path)
    notes = []
    trainer.sync_check.note, trainer.sync_check.at_start = notes.append, {"logprob_gap_start_mean": 0.1}
    samples = rollouts()
    samples[0].rollout_log_probs = torch.zeros_like(samples[0].action_mask, dtype=torch.float32)
    for step in (0, 1):
        trainer.train_step(samples, step)
        assert trainer.metrics.record(step, status).get("logprob_gap_start_mean") == (0.1 if step == 0 else None)
    trainer.run_dir.wait()
    assert len(notes) == 1 and samples[1].rollout_log_probs.isnan().all()
    strict = trainer_of(tmp_path, "--orz.on_logprob_gap", "error", "--orz.max_logprob_gap", "0.1")
    with pytest.raises(SyncError, match="--orz.max_logprob_gap 0.1"):
        strict.train_step(samples, 0)


def test_fixed_sequences_are_kept_only_for_the_check(monkeypatch, tmp_path):
    monkeypatch.setattr(BasePPOTrainer, "train_step", lambda self, samples, step: ({}, step + 1))
    for flags, kept in (((), 0), (("--orz.check_sync",), 4)):
        trainer = trainer_of(tmp_path, *flags)
        trainer.train_step(rollouts(), 0)
        trainer.run_dir.wait()
        assert len(trainer.sync_check.samples) == kept
