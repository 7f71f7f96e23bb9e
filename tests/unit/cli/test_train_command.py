"""The training command around the run: where it starts, what it tells when it fails, which logs it keeps."""

import contextlib
import os
from types import SimpleNamespace

import pytest

from openrlhf_orz.cli import run_prompts
from openrlhf_orz.cli import train_ppo_ray as command
from openrlhf_orz.data.sources import DataError
from openrlhf_orz.runtime import ray_session, resume
from openrlhf_orz.runtime.watchdog import PhaseTimeout
from openrlhf_orz.settings.checks import ConfigError, check_rollouts
from openrlhf_orz.settings.command_line import parse
from openrlhf_orz.settings.finished import RunFacts


def arguments(folder, *flags):
    base = (
        "--actor.model_name_or_path m/m --data.prompt_dataset d --orz.device cpu --rollout.batch_size 4 "
        "--rollout.n_samples_per_prompt 4 --orz.critic_updates 2"
    )
    return parse([*base.split(), "--ckpt.output_dir", str(folder), *flags])[0]


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Six prompts, prepared; no Ray runs."""
    prompts = tmp_path / "train.jsonl"
    prompts.write_text("{}\n")
    data = {"data.prompt_dataset": str(prompts), "data.input_key": "prompt"}
    monkeypatch.setattr(command, "prepare_data", lambda args, explicit: (data, 6))
    monkeypatch.setattr(ray_session, "running_ray", lambda: None)
    monkeypatch.delenv(command.RESTARTS_VARIABLE, raising=False)
    return data


def test_a_new_run(tmp_path, prepared, monkeypatch):
    args = arguments(tmp_path, "--ckpt.save_steps", "3", "--train.num_episodes", "2")
    (tmp_path / "checkpoints" / ".partial-global_step1").mkdir(parents=True)
    run = command.begin(args)
    assert (run.prompts, run.policy_steps) == (6, 4)  # two rollouts in each of two episodes
    assert run.data == prepared and run.prompts_sha256 == resume.prompts_sha256([prepared["data.prompt_dataset"]], 6)
    assert (run.resume_from, run.start_step, run.restarts, run.save_steps) == (None, 0, 0, 3)
    assert run.checkpoints == str(tmp_path / "checkpoints") and run.recorded_flags == resume.flag_values(args)
    assert run.own_ray and not run.shared and run.scratch.startswith("/dev/shm/orz-") and run.scratch.endswith("/")
    assert not list((tmp_path / "checkpoints").iterdir()), "what an interrupted write has left is gone"
    monkeypatch.setattr(ray_session, "running_ray", lambda: "127.0.0.1:6379")
    assert run.worker_python is None
    known = command.begin(args, scratch="/dev/shm/orz-1/", worker_python="python fork")
    assert (known.scratch, known.worker_python, known.prompts) == ("/dev/shm/orz-1/", "python fork", 6)
    joined = command.begin(args)
    assert not joined.own_ray and set(joined.shared) == {str(tmp_path), str(tmp_path / "checkpoints")}


@pytest.mark.parametrize(
    "flags, template",
    [
        ((), "paper"),
        (("--orz.prompt_template", "released"), "released"),
        (("--data.input_template", "Q: {}"), "Q: {}"),
        (("--data.apply_chat_template",), None),
    ],
)
def test_saved_models_ask_by_the_template_of_the_prompts(tmp_path, prepared, flags, template):
    assert command.begin(arguments(tmp_path, *flags)).template == template


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path, prepared, monkeypatch, capsys):
    args = arguments(tmp_path, "--ckpt.load_enable")
    found = tmp_path / "checkpoints" / "global_step2"
    monkeypatch.setattr(resume, "find_checkpoint", lambda args, prompts: found)
    monkeypatch.setenv(command.RESTARTS_VARIABLE, "2")
    for name in ("metrics.jsonl", "eval.jsonl"):
        (tmp_path / name).write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3)))
    run = command.begin(args)
    assert (run.resume_from, run.start_step, run.restarts) == (str(found), 2, 2)
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert (tmp_path / name).read_text() == '{"step": 1}\n{"step": 2}\n'
        assert (tmp_path / f"lost-{name}").read_text() == '{"step": 3}\n'
    assert "1 lines of metrics.jsonl lie after step 2" in capsys.readouterr().out


def test_a_finished_run_stays(tmp_path, prepared, monkeypatch, capsys):
    """The same command once more does nothing; what would begin anew in its place is refused."""
    sha = resume.prompts_sha256([prepared["data.prompt_dataset"]], 6)
    resume.mark_finished(arguments(tmp_path, "--ckpt.load_enable"), 2, sha)
    (tmp_path / "hf").mkdir()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    flags = ["--ckpt.output_dir", str(tmp_path), "--ckpt.load_enable"]

    def start(args, *given):
        command.begin(args)

    monkeypatch.setattr(command, "train", start)
    base = ("--actor.model_name_or_path m/m --data.prompt_dataset d --orz.device cpu --rollout.batch_size 4"
            " --rollout.n_samples_per_prompt 4 --orz.critic_updates 2").split()  # fmt: skip
    assert command.main([*base, *flags]) == 0
    assert f"the run in {tmp_path} is finished, 2 steps: nothing to do" in capsys.readouterr().out
    for more, why in (
        ("--train.num_episodes 2", "4 steps are asked for"),
        ("--critic.adam.lr 1e-4", "--critic.adam.lr was"),
    ):
        assert command.main([*base, *flags, *more.split()]) == 2
        told = capsys.readouterr().err
        assert why in told and "a finished run of 2 steps, and no checkpoint" in told and "--orz.put_aside" in told
    assert (tmp_path / "metrics.jsonl").read_text().count("step") == 2 and not (
        tmp_path / "lost-metrics.jsonl"
    ).exists()
    found = tmp_path / "checkpoints" / "global_step2"
    found.mkdir(parents=True)
    monkeypatch.setattr(resume, "find_checkpoint", lambda args, prompts: found)
    longer = command.begin(arguments(tmp_path, "--ckpt.load_enable", "--train.num_episodes", "2"))
    assert longer.start_step == 2 and (tmp_path / resume.FINISHED).exists(), "until it has begun"

    def refuse(args, prompts):
        raise ConfigError("of a run with another meaning")

    monkeypatch.setattr(resume, "find_checkpoint", refuse)
    assert command.main([*base, *flags, "--critic.adam.lr", "1e-4"]) == 2 == command.main([*base, *flags]) + 2
    assert "is finished, 2 steps" in capsys.readouterr().out, "what was refused has changed nothing"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"steps": 2}', '{"steps": "x", "flags": {}}', "[" * 100_000])
def test_a_damaged_mark_is_named(tmp_path, prepared, text):
    (tmp_path / resume.FINISHED).write_text(text)
    with pytest.raises(ConfigError, match=f"{resume.FINISHED} cannot be read .*: remove it"):
        command.begin(arguments(tmp_path, "--ckpt.load_enable"))


@pytest.mark.parametrize("error", [ConfigError("--data.prompt_dataset was a, is b"), DataError("no good row")])
def test_a_refused_resumption_leaves_the_data_of_the_steps_that_are_there(tmp_path, prepared, monkeypatch, error):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("prompts_train.jsonl", "bad_rows_train.jsonl"):
        (data / name).write_text("old\n")

    def prepare(args, explicit):
        for file in data.iterdir():
            file.write_text("new\n")
        if isinstance(error, DataError):
            raise error
        return prepared, 6

    def refuse(args, prompts):
        raise error

    monkeypatch.setattr(command, "prepare_data", prepare)
    monkeypatch.setattr(resume, "find_checkpoint", refuse)
    with pytest.raises(type(error)):
        command.begin(arguments(tmp_path, "--ckpt.load_enable"))
    assert (data / "prompts_train.jsonl").read_text() == "old\n"
    named = "new\n" if isinstance(error, DataError) else "old\n"
    assert (data / "bad_rows_train.jsonl").read_text() == named and not list(tmp_path.glob(".partial-*"))


class FromRay(Exception):
    __module__ = "ray.exceptions"


@pytest.mark.parametrize(
    "error, status",
    [
        (ConfigError("--a.b"), 2),
        (DataError("f.jsonl:3"), 2),
        (OSError(28, "full"), 2),
        (PhaseTimeout("training took more than 5 s"), 1),
        (FromRay("Traceback\nOSError: gone"), 1),
    ],
)
def test_what_ended_a_run_is_told(tmp_path, capsys, error, status):
    assert command.failed(error, arguments(tmp_path)) == status
    told = capsys.readouterr().err
    assert "error: " in told and str(error).splitlines()[-1] in told
    assert (str(tmp_path / "logs") in told) == (status == 1)


def test_what_nobody_foresaw_is_raised(tmp_path):
    with pytest.raises(ZeroDivisionError):
        command.failed(ZeroDivisionError(), arguments(tmp_path))


def test_the_drivers_output_goes_to_its_log(tmp_path, capfd):
    args = arguments(tmp_path)
    with command.driver_output(args):
        os.write(1, b"loud\n")
        os.write(2, b"louder\n")
    os.write(1, b"after\n")
    assert (tmp_path / "logs" / "driver.log").read_text() == "loud\nlouder\n" and capfd.readouterr().out == "after\n"
    with command.driver_output(arguments(tmp_path, "--orz.worker_logs")):
        os.write(1, b"shown\n")
    assert capfd.readouterr().out == "shown\n"


def test_the_summary_names_what_is_there(tmp_path):
    (tmp_path / "hf").mkdir()
    told = command.summary(arguments(tmp_path))
    assert str(tmp_path / "hf") in told and "metrics.jsonl" not in told


def test_a_short_last_rollout_is_said(tmp_path):
    args = arguments(tmp_path)
    assert command.short_rollout(args, 8) is None
    said = command.short_rollout(args, 9)
    assert "has 1 of 4 prompts and takes as many optimizer steps; --data.max_samples 8 leaves it out" in said
    assert "max_samples" not in command.short_rollout(args, 3)
    filtered = arguments(tmp_path, "--algo.dynamic_filtering_enable")
    assert "has what the filter leaves" in command.short_rollout(filtered, 8)


def test_a_policy_that_would_never_train_is_refused(tmp_path):
    args = arguments(tmp_path, "--critic.freezing_steps", "3")
    check_rollouts(args, 13)
    with pytest.raises(ConfigError, match="--critic.freezing_steps 3: the run has 3 steps"):
        check_rollouts(args, 12)


@pytest.mark.parametrize("cap, refused", [(30.0, True), (None, False)])
def test_a_float32_head_of_capped_logits_is_refused(tmp_path, cap, refused):
    from transformers import Gemma2Config

    Gemma2Config(num_hidden_layers=1, final_logit_softcapping=cap).save_pretrained(tmp_path)
    flags = ["--actor.model_name_or_path", str(tmp_path), "--data.prompt_dataset", "d", "--orz.device", "cpu"]
    args, _ = parse([*flags, "--orz.fp32_head"])
    if not refused:
        return command.require_plain_head(args)
    with pytest.raises(ConfigError, match="--orz.fp32_head: gemma2 .*Leave the flag out"):
        command.require_plain_head(args)


def test_the_trainer_runs_on_the_drivers_machine(tmp_path, monkeypatch):
    """Driver and trainer speak by files of the run directory, and metrics and checkpoints are written there."""
    import ray

    from openrlhf_orz.runtime.stopping import StopHandler
    from openrlhf_orz.settings import families, upstream

    args, started, node = arguments(tmp_path), {}, "ab" * 28
    here = SimpleNamespace(get_node_id=lambda: node, get_job_id=lambda: "1")
    private = SimpleNamespace(worker=SimpleNamespace(global_worker=SimpleNamespace(node=SimpleNamespace(
        get_logs_dir_path=lambda: str(tmp_path)))))  # fmt: skip
    joined = SimpleNamespace(remote=ray.remote, get_runtime_context=lambda: here, _private=private)
    facts = RunFacts(checkpoints=str(tmp_path), scratch=f"{tmp_path}/scratch-", prompts=4)
    monkeypatch.setattr(families, "fit_to_models", lambda args, explicit: (args, []))
    mark = tmp_path / resume.FINISHED
    monkeypatch.setattr(command, "begin", lambda *given, **facts_given: facts)
    monkeypatch.setattr(command, "driver_output", lambda args: contextlib.nullcontext())
    monkeypatch.setattr(ray_session, "ray_session", lambda *given: contextlib.nullcontext(joined))
    resume.mark_finished(args, 5, "")
    monkeypatch.setattr(upstream, "launch", lambda args, **classes: started.update(classes, marked=mark.exists()))
    command.run_held(args, set(), StopHandler(args), {})
    assert not started["marked"], "a run that begins is not finished"
    assert '"steps": 1' in (tmp_path / resume.FINISHED).read_text()
    where = started["trainer_cls"]._default_options["scheduling_strategy"]
    assert where.node_id == node and not where.soft, "never elsewhere"
    assert "scheduling_strategy" not in started["policy_cls"]._default_options


@pytest.mark.parametrize("flags, left", [
    (["--data.max_samples", "4"], "b"), (["--data.max_samples", "5"], None), ([], None),
    (["--data.max_samples", "4", "--data.prompt_probs", "0.5,0.5"], None),
])  # fmt: skip
def test_a_set_of_which_nothing_would_be_trained_on_is_refused(tmp_path, flags, left):
    args = arguments(tmp_path, *flags, "--data.prompt_dataset", "a,b")
    if left is None:
        assert run_prompts.drawn_prompts(args, [4, 9]) == min(args.data.max_samples, 13 if len(flags) < 4 else 10**9)
    else:
        with pytest.raises(ConfigError, match="--data.max_samples 4 takes .* and none of b: .*--data.prompt_probs"):
            run_prompts.drawn_prompts(args, [4, 9])
