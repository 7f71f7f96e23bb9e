"""Finished settings do not change; what OpenRLHF is started with is made of them and of what the run found out."""

import copy
import math
import pickle

import pytest

from openrlhf_orz.settings import upstream
from openrlhf_orz.settings.command_line import parse
from openrlhf_orz.settings.finished import RunFacts, changed, critic_steps, for_openrlhf, policy_steps, warmup_ratio

BASE = (
    "--actor.model_name_or_path m/m --data.prompt_dataset d --orz.device cpu --rollout.batch_size 4 "
    "--rollout.n_samples_per_prompt 4 --orz.critic_updates 3"
)


def settings(*flags):
    return parse([*BASE.split(), *flags])[0]


def run(**fields):
    return RunFacts(**{"checkpoints": "/c", "scratch": "/s-", **fields})


def test_settings_are_read_only_also_in_other_processes():
    args = settings()
    for one in (args, pickle.loads(pickle.dumps(args)), copy.deepcopy(args)):
        with pytest.raises(AttributeError, match="finished"):
            one.rollout.batch_size = 5
        with pytest.raises(AttributeError, match="finished"):
            del one.orz
        assert one.rollout.batch_size == 4


def test_changes_make_others():
    args = settings()
    other = changed(args, {"rollout.batch_size": 7, "run": run()})
    assert (args.rollout.batch_size, other.rollout.batch_size) == (4, 7) and not hasattr(args, "run")
    assert other.run.scratch == "/s-"


@pytest.mark.parametrize("max_steps", [1, 7, 50, 51, 1000, 99_999])
def test_warm_up_is_as_many_steps_as_asked(max_steps):
    for steps in {0, 1, 2, min(50, max_steps), max_steps}:
        if steps <= max_steps:
            assert math.ceil(max_steps * warmup_ratio(steps, max_steps)) == steps


def test_steps_of_a_run():
    args = settings("--train.num_episodes", "3", "--orz.policy_updates", "2")
    steps = policy_steps(args, prompts=9)
    assert steps == 3 * 3 * 2  # three rollouts an episode, the last of one prompt
    assert critic_steps(args, steps) == 9 * 3
    assert critic_steps(settings("--orz.policy_updates", "2", "--orz.critic_epochs", "2"), steps) == 9 * 3 * 2


def test_each_models_warm_up_is_in_its_own_steps():
    args = for_openrlhf(settings("--orz.warmup_steps", "5"), run(policy_steps=100))
    assert math.ceil(100 * args.actor.lr_warmup_ratio) == 5 and math.ceil(300 * args.critic.lr_warmup_ratio) == 5
    own = for_openrlhf(settings("--orz.warmup_steps", "5", "--critic.lr_warmup_ratio", "0.5"), run(policy_steps=100))
    assert own.critic.lr_warmup_ratio == 0.5 and math.ceil(100 * own.actor.lr_warmup_ratio) == 5


def test_openrlhf_neither_saves_nor_writes_into_its_arguments():
    args = for_openrlhf(settings("--ckpt.save_steps", "2"), run(save_steps=2))
    assert args.ckpt.save_steps == float("inf") and args.eval.steps == float("inf") and args.run.save_steps == 2
    assert args.ckpt.load_enable is False and args.ckpt.path.endswith("checkpoints")
    resumed = for_openrlhf(settings(), run(resume_from="/c/global_step3"))
    assert resumed.ckpt.load_enable is True and resumed.ckpt.path == "/c/global_step3"
    assert resumed.run.checkpoints == "/c"


@pytest.mark.parametrize("estimator, gamma", [("gae", 0.9), ("reinforce", 0.9), ("group_norm", 1.0), ("rloo", 1.0)])
def test_estimators_without_discount_have_none(estimator, gamma):
    args = settings("--algo.advantage.estimator", estimator, "--algo.advantage.gamma", "0.9")
    assert for_openrlhf(args, run()).algo.advantage.gamma == gamma


def test_prepared_prompts_take_the_place_of_the_data_set():
    args = for_openrlhf(settings(), run(data={"data.prompt_dataset": "/p.jsonl", "data.input_key": "prompt"}))
    assert args.data.prompt_dataset == "/p.jsonl" and args.data.input_key == "prompt"


def test_without_its_patches_the_package_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(upstream, "PATCHES", tmp_path)
    with pytest.raises(upstream.WrongBuild, match="checkout.*bash tools/setup.sh"):
        upstream.check_openrlhf()
