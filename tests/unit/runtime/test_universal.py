"""When a checkpoint is converted for other ranks or another ZeRO stage, and what is refused by name."""

import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from openrlhf_orz.runtime import checkpoints, resume, universal
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.command_line import parse


def settings(tmp_path, *more, ranks=1):
    flags = ["--actor.model_name_or_path", "m", "--data.prompt_dataset", "d", "--ckpt.output_dir", str(tmp_path)]
    flags += ["--actor.num_gpus_per_node", str(ranks), "--critic.num_gpus_per_node", str(ranks)]
    return parse([*flags, "--orz.device", "cpu", "--ds.zero_stage", "2", *more])[0]


def saved(tmp_path, *more, ranks=1):
    """A checkpoint of these flags, as far as the conversion looks at it itself."""
    folder = tmp_path / "checkpoints" / "global_step3"
    for role in ("_actor", "_critic"):
        (folder / role).mkdir(parents=True)
        for rank in range(ranks):
            (folder / role / f"rank{rank}.pt").write_bytes(b"state")
    flags = resume.flag_values(settings(tmp_path, *more, ranks=ranks))
    state = {"flags": flags, "prompts_sha256": "", "global_step": 3}
    (folder / checkpoints.TRAINER).write_text(json.dumps(state))
    return folder


@pytest.fixture
def commands(monkeypatch):
    """What would be run; the last line of the converter's output can be set."""
    ran = SimpleNamespace(commands=[], status=0, output="")

    def run(command, env, **how):
        assert env["DS_ACCELERATOR"] == "cpu" and how["start_new_session"], "Ctrl-C stops the run, which stops it"
        ran.commands.append(command[3:])
        return SimpleNamespace(returncode=ran.status, stdout=ran.output)

    monkeypatch.setattr(subprocess, "run", run)
    return ran


def test_what_deepspeed_can_load_itself_is_left_alone(tmp_path, commands, capsys):
    assert universal.universal_copy(None, settings(tmp_path)) is None
    found = saved(tmp_path, ranks=2)
    assert universal.universal_copy(found, settings(tmp_path, ranks=2)) is None
    assert commands.commands == [] and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "before, after, stages",
    [((2, ()), (1, ()), "2 2"), ((1, ()), (1, ("--ds.zero_stage", "3")), "2 3"),
     ((1, ("--ds.zero_stage", "1", "--ds.grad_accum_dtype", "fp32")), (1, ("--ds.zero_stage", "1",
      "--ds.grad_accum_dtype", "bf16")), "1 1")],
)  # fmt: skip
def test_other_ranks_and_stages_are_converted(tmp_path, commands, capsys, before, after, stages):
    found = saved(tmp_path, *before[1], ranks=before[0])
    left = found.with_name(".partial-universal-global_step3")
    left.mkdir()  # of a conversion that was killed
    copy = universal.universal_copy(found, settings(tmp_path, *after[1], ranks=after[0]))
    assert copy == str(left) and not left.exists()
    folders = [[f"{place}/{role}/global_step3" for place in (found, copy)] for role in ("_actor", "_critic")]
    assert [command[:2] for command in commands.commands] == folders
    was, now = stages.split()
    told = capsys.readouterr().out
    assert f"from ZeRO-{was} to ZeRO-{now}" in told and commands.commands[0][2] == now
    assert ("other ranks (of actor 2, now 1" in told) is (before[0] != after[0])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_follows_from_ranks_and_stage_hinders_no_resumption(tmp_path, device):
    flags = [resume.flag_values(settings(tmp_path, "--orz.device", device, "--ds.zero_stage", stage, ranks=ranks))
             for stage, ranks in (("3", 4), ("1", 2))]  # fmt: skip
    assert flags[0] != flags[1] and resume.changed_flags(*flags) == ([], [])


def test_without_zero_each_rank_holds_all(tmp_path, commands, capsys):
    found = saved(tmp_path, "--ds.zero_stage", "0", ranks=2)
    assert universal.universal_copy(found, settings(tmp_path, "--ds.zero_stage", "0")) is None
    assert commands.commands == [] and "other ranks" in capsys.readouterr().out


@pytest.mark.parametrize(
    "before, after, named",
    [
        ("--ds.zero_stage 0", "--ds.zero_stage 3", ["give --ds.zero_stage 0"]),
        ("--ds.zero_stage 3 --ds.zpg 2", "--ds.zero_stage 3 --ds.zpg 2", ["--ds.zpg 2 cuts it, too"]),
        ("--ds.param_dtype bf16 --ds.tensor_parallel_size 2",) * 2 + (["--ds.tensor_parallel_size 2 cuts"],),
        ("--critic.optim muon --critic.max_norm 0",) * 2 + (["no --critic.optim muon: resume on as many ranks"],),
        (
            "--orz.freeze_critic embeddings --critic.model_name_or_path a",
            "--orz.freeze_critic embeddings --critic.model_name_or_path b",
            ["weights that do not train", "give --critic.model_name_or_path a"],
        ),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(tmp_path, commands, before, after, named):
    found = saved(tmp_path, *before.split(), ranks=4)
    with pytest.raises(ConfigError) as refusal:
        universal.universal_copy(found, settings(tmp_path, *after.split(), ranks=2))
    assert all(words in str(refusal.value) for words in named) and commands.commands == []


def test_a_disk_that_is_too_small_is_said_before(tmp_path, commands, monkeypatch):
    found = saved(tmp_path, ranks=2)
    needed = universal.COPIES * checkpoints.size_of(found)
    for free in (needed - 1, needed):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        if free < needed:
            with pytest.raises(ConfigError, match="Make room, or resume on as many ranks"):
                universal.universal_copy(found, settings(tmp_path))
    assert universal.universal_copy(found, settings(tmp_path)) and len(commands.commands) == 2
