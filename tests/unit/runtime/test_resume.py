"""What may change between a run and its resumption, and what happens to the lines after the checkpoint."""

import hashlib
import json
from argparse import Namespace
from types import SimpleNamespace

import pytest

from openrlhf_orz.runtime import checkpoints, resume
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.command_line import parse


def args(tmp_path, *more):
    flags = ["--actor.model_name_or_path", "m", "--data.prompt_dataset", "d", "--ckpt.output_dir", str(tmp_path)]
    return parse([*flags, "--orz.device", "cpu", "--ckpt.load_enable", *more])[0]


def checkpoint(tmp_path, step=3, prompts="same", versions=None, **changes):
    now = args(tmp_path)
    partial = checkpoints.partial_path(now.ckpt.path, f"global_step{step}")
    partial.mkdir(parents=True)
    state = {"global_step": step, "flags": {**resume.flag_values(now), **changes}, "prompts_sha256": prompts}
    state |= {} if versions is None else {"versions": versions}
    (partial / checkpoints.TRAINER).write_text(json.dumps(state))
    (partial / checkpoints.STATE).write_bytes(b"")
    return checkpoints.commit(partial)


def test_the_same_flags_resume_and_free_ones_may_change(tmp_path, capsys):
    found = checkpoint(tmp_path)
    more = ["--vllm.gpu_memory_utilization", "0.5", "--train.num_episodes", "9", "--orz.stop_timeout_s", "5"]
    assert resume.find_checkpoint(args(tmp_path, *more), "same") == found
    assert f"resuming from {found}: step 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, names",
    [
        (["--actor.adam.lr", "1e-3"], ["--actor.adam.lr was 1e-06, is 0.001"]),
        (
            ["--rollout.temperature", "0.5", "--orz.critic_updates", "2"],
            ["--rollout.temperature", "--orz.critic_updates"],
        ),
        (["--data.prompt_probs", "0.5,0.5", "--data.prompt_dataset", "a,b"], ["--data.prompt_probs was None"]),
    ],
)
def test_another_meaning_is_refused_by_name_unless_allowed(tmp_path, capsys, flags, names):
    found = checkpoint(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        resume.find_checkpoint(args(tmp_path, *flags), "same")
    assert all(name in str(refusal.value) for name in names) and "--orz.allow_changed_flags" in str(refusal.value)
    assert resume.find_checkpoint(args(tmp_path, *flags, "--orz.allow_changed_flags"), "same") == found
    assert names[0] in capsys.readouterr().out


@pytest.mark.parametrize("role", ["actor", "critic"])
@pytest.mark.parametrize("schedule", [("lr_scheduler", "cosine"), ("lr_warmup_ratio", "0.1")])
def test_more_episodes_would_stretch_a_schedule_that_ends_with_the_run(tmp_path, role, schedule):
    name, value = schedule
    before = {f"{role}.{name}": value if name == "lr_scheduler" else float(value)}
    before |= {f"orz.{role}_warmup_steps": None} if name == "lr_warmup_ratio" else {}
    found = checkpoint(tmp_path, **before)
    given = [f"--{role}.{name}", value]
    assert resume.find_checkpoint(args(tmp_path, *given), "same") == found
    with pytest.raises(ConfigError, match="--train.num_episodes was 1, is 9"):
        resume.find_checkpoint(args(tmp_path, *given, "--train.num_episodes", "9"), "same")


def test_other_versions_are_said(tmp_path, capsys):
    found = checkpoint(tmp_path, versions={**resume.stack_versions(), "torch": "1.0"})
    assert resume.find_checkpoint(args(tmp_path), "same") == found
    told = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert told == [f"[orz] warning: {found} was written with torch 1.0, this is {resume.stack_versions()['torch']}"]


def test_other_prompts_are_refused(tmp_path):
    checkpoint(tmp_path, prompts="others")
    with pytest.raises(ConfigError, match="--data.prompt_dataset"):
        resume.find_checkpoint(args(tmp_path), "same")


def test_another_cut_is_refused_whatever_is_allowed(tmp_path):
    checkpoint(tmp_path, **{"ds.tensor_parallel_size": 2, "ds.param_dtype": "fp16"})
    with pytest.raises(ConfigError) as refusal:
        resume.find_checkpoint(args(tmp_path, "--orz.allow_changed_flags"), "same")
    assert "--ds.tensor_parallel_size was 2, is 1" in str(refusal.value) and "--ds.param_dtype was fp16" in str(
        refusal.value
    )


def test_without_a_checkpoint_it_starts_anew_and_says_so(tmp_path, capsys):
    assert resume.find_checkpoint(args(tmp_path), "same") is None
    assert "no checkpoint to resume from" in capsys.readouterr().out


def test_a_damaged_one_is_named(tmp_path, capsys):
    old, new = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    (new / checkpoints.STATE).write_bytes(b"!")
    assert resume.find_checkpoint(args(tmp_path), "same") == old
    told = capsys.readouterr().out
    assert f"{new} is damaged: {checkpoints.STATE} has 1 bytes, not 0; it is now damaged-{new.name}" in told
    assert not new.exists() and (new.parent / f"damaged-{new.name}").is_dir()


@pytest.mark.parametrize(
    "name",
    ["algo.advantage.gamma", "algo.advantage.lambd", "algo.advantage.estimator", "algo.kl.init_coef", "actor.adam.lr",
     "rollout.batch_size", "orz.critic_updates", "orz.verifier_grades", "orz.fixed_micro_batches"],
)  # fmt: skip
def test_these_change_the_meaning(name):
    layout, meaning = resume.changed_flags({name: 1}, {name: 2})
    assert (layout, meaning) == ([], [f"--{name} was 1, is 2"])


@pytest.mark.parametrize("name", ["ds.param_dtype", "ds.tensor_parallel_size", "orz.value_bins"])
def test_these_cut_the_checkpoint_differently(name):
    assert resume.changed_flags({name: 1}, {name: 2}) == ([f"--{name} was 1, is 2"], [])


@pytest.mark.parametrize(
    "name",
    ["vllm.num_engines", "data.prompt_dataset", "orz.run_dir", "orz.sync_bucket_mib", "orz.check_sync",
     "ds.zero_stage", "critic.num_gpus_per_node"],
)  # fmt: skip
def test_these_may_differ(name):
    assert resume.changed_flags({name: 1}, {name: 2}) == ([], [])
    assert resume.changed_flags({name: 1}, {}) == resume.changed_flags({}, {name: 1}) == ([], [])


def test_secrets_stay_out():
    nested = Namespace(logger=SimpleNamespace(wandb=SimpleNamespace(key="secret", project="p")))
    assert resume.flag_values(nested) == {"logger.wandb.project": "p"}


def test_lines_after_the_step_go_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3)) + '{"step": 4, "rew')
    assert resume.rewind(path, 2) == 2
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    assert (tmp_path / "lost-metrics.jsonl").read_text() == '{"step": 3}\n{"step": 4, "rew\n'
    assert resume.rewind(path, 2) == 0 and resume.rewind(tmp_path / "none.jsonl", 0) == 0
    assert resume.rewind(path, 1) == 1  # what was lost before stays
    assert [line[:10] for line in (tmp_path / "lost-metrics.jsonl").read_text().splitlines()] == [
        '{"step": 3', '{"step": 4', '{"step": 2'
    ]  # fmt: skip


def test_a_line_without_its_end_goes_aside_whatever_its_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert resume.rewind(path, 2) == 1 and path.read_text() == '{"step": 1}\n'


def test_prompts_are_known_by_content_and_order(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1\n"), two.write_text("2\n")
    assert resume.prompts_sha256([one, two], 2) == hashlib.sha256(b"1\n2\n").hexdigest()
    assert resume.prompts_sha256([two, one], 2) == hashlib.sha256(b"2\n1\n").hexdigest()
    # two sets of which fewer are drawn: the position in the data would mean another prompt
    assert len({resume.prompts_sha256([one, two], drawn) for drawn in (1, 2, 3)}) == 3


def test_a_flag_that_one_version_lacks_is_no_difference():
    assert resume.changed_flags({"actor.adam.lr": 1, "a.new": 2}, {"actor.adam.lr": 1, "an.old": 2}) == ([], [])
    assert resume.changed_flags({"actor.adam.lr": 1}, {"actor.adam.lr": 2}) == (
        [], ["--actor.adam.lr was 1, is 2"]
    )  # fmt: skip


def test_all_flags_are_not_printed():
    assert repr(resume.flag_values(Namespace(train=Namespace(seed=1)))) == "(all flags)"
