"""What may change between a run and its resumption, and what happens to the lines after the checkpoint."""

import json
from argparse import Namespace
from types import SimpleNamespace

import pytest

from openrlhf_orz.runtime import checkpoints, resume
from openrlhf_orz.settings.command_line import parse
from openrlhf_orz.settings.derive import ConfigError
from openrlhf_orz.settings.flags import FLAGS


def args(tmp_path, *more):
    flags = ["--actor.model_name_or_path", "m", "--data.prompt_dataset", "d", "--ckpt.output_dir", str(tmp_path)]
    return parse([*flags, "--orz.device", "cpu", "--ckpt.load_enable", *more])[0]


def checkpoint(tmp_path, step=3, prompts="same", **changes):
    now = args(tmp_path)
    partial = checkpoints.partial_path(now.ckpt.path, f"global_step{step}")
    partial.mkdir(parents=True)
    state = {"global_step": step, "flags": {**resume.flat(now), **changes}, "prompts_sha256": prompts}
    (partial / checkpoints.TRAINER).write_text(json.dumps(state))
    (partial / checkpoints.STATE).write_bytes(b"")
    return checkpoints.commit(partial)


def test_the_same_flags_resume_and_free_ones_may_change(tmp_path, capsys):
    found = checkpoint(tmp_path)
    more = ["--vllm.gpu_memory_utilization", "0.5", "--train.num_episodes", "9", "--orz.stop_timeout_s", "5"]
    assert resume.find(args(tmp_path, *more), "same") == found
    assert f"resuming from {found}: step 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, names",
    [
        (["--actor.adam.lr", "1e-3"], ["--actor.adam.lr was 1e-06, is 0.001"]),
        (
            ["--rollout.temperature", "0.5", "--orz.critic_updates", "2"],
            ["--rollout.temperature", "--orz.critic_updates"],
        ),
    ],
)
def test_another_meaning_is_refused_by_name_unless_allowed(tmp_path, capsys, flags, names):
    found = checkpoint(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        resume.find(args(tmp_path, *flags), "same")
    assert all(name in str(refusal.value) for name in names) and "--orz.allow_changed_flags" in str(refusal.value)
    assert resume.find(args(tmp_path, *flags, "--orz.allow_changed_flags"), "same") == found
    assert names[0] in capsys.readouterr().out


def test_other_prompts_are_refused(tmp_path):
    checkpoint(tmp_path, prompts="others")
    with pytest.raises(ConfigError, match="--data.prompt_dataset"):
        resume.find(args(tmp_path), "same")


def test_other_ranks_are_refused_whatever_is_allowed(tmp_path):
    checkpoint(tmp_path, **{"actor.num_gpus_per_node": 2, "ds.zero_stage": 3})
    with pytest.raises(ConfigError) as refusal:
        resume.find(args(tmp_path, "--orz.allow_changed_flags"), "same")
    assert "--actor.num_gpus_per_node was 2, is 1" in str(refusal.value) and "--ds.zero_stage was 3" in str(
        refusal.value
    )


def test_without_a_checkpoint_it_starts_anew_and_says_so(tmp_path, capsys):
    assert resume.find(args(tmp_path), "same") is None
    assert "no checkpoint to resume from" in capsys.readouterr().out


def test_a_damaged_one_is_named(tmp_path, capsys):
    old, new = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    (new / checkpoints.STATE).write_bytes(b"!")
    assert resume.find(args(tmp_path), "same") == old
    assert f"{new} is damaged: {checkpoints.STATE} has 1 bytes, not 0" in capsys.readouterr().out


def test_every_flag_of_ours_is_either_free_or_part_of_the_meaning():
    meaning = {
        "policy_updates", "critic_updates", "warmup_steps", "value_head_init", "old_log_probs", "cross_fit_values",
        "stop", "plain_math_verify", "device", "trust_remote_code",
    }  # fmt: skip
    free = {name.removeprefix("orz.") for name in resume.FREE if name.startswith("orz.")}
    assert {flag.name for flag in FLAGS} - free == meaning


def test_secrets_stay_out():
    nested = Namespace(logger=SimpleNamespace(wandb=SimpleNamespace(key="secret", project="p")))
    assert resume.flat(nested) == {"logger.wandb.project": "p"}


def test_lines_after_the_step_go_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3)) + '{"step": 4, "rew')
    assert resume.rewind(path, 2) == 2
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    assert (tmp_path / "lost-metrics.jsonl").read_text() == '{"step": 3}\n{"step": 4, "rew\n'
    assert resume.rewind(path, 2) == 0 and resume.rewind(tmp_path / "none.jsonl", 0) == 0
