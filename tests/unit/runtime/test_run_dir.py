"""A disk or a service that fails is reported and counted, and does not end the training."""

import json
import resource
import subprocess
import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest

from openrlhf_orz.runtime import run_dir
from openrlhf_orz.runtime.run_dir import RunDir, TolerantLogger, held, save_config, start_clean
from openrlhf_orz.settings.checks import ConfigError


def test_rollouts_are_written_beside_the_training(tmp_path):
    run = RunDir(tmp_path / "run")
    run.dump_rollouts(3, lambda: [{"response": "é"}])
    run.wait()
    run.wait()  # nothing is pending
    (file,) = (tmp_path / "run" / "rollouts").iterdir()
    assert file.name == "step_3.jsonl" and file.read_text(encoding="utf-8") == '{"response": "é"}\n'
    assert run.failures == 0


def test_failures_are_counted_and_noted(tmp_path, capsys):
    run = RunDir(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    (tmp_path / "rollouts").write_text("no directory")
    run.append("metrics.jsonl", {"step": 1})
    run.dump_rollouts(1, list)
    run.dump_rollouts(2, list)  # waits for the first, which has failed
    assert run.failures == 2
    run.wait()
    assert run.failures == 3
    notes = (tmp_path / "warnings.log").read_text().splitlines()
    assert notes[0].startswith("cannot write metrics.jsonl: IsADirectoryError") and len(notes) == 3
    assert notes[1].startswith("cannot write a rollout dump: ") and notes[1] in capsys.readouterr().out


def test_a_warning_that_cannot_be_written_is_no_error(tmp_path):
    run = RunDir(tmp_path)
    (tmp_path / "warnings.log").mkdir()
    run.note("text")
    assert run.failures == 0


def test_numbers_that_are_not_finite_are_no_json(tmp_path):
    with pytest.raises(ValueError):
        RunDir(tmp_path).append("metrics.jsonl", {"reward": float("nan")})


def test_a_logger_that_fails_does_not_end_the_training(tmp_path):
    def log_train(step, logs):
        if step == 2:
            raise ConnectionError("no network")
        return step, logs

    run = RunDir(tmp_path)
    logger = TolerantLogger(SimpleNamespace(log_train=log_train), run)
    assert logger.log_train(1, logs={}) == (1, {}) and run.failures == 0
    assert logger.log_train(2, logs={}) is None and run.failures == 1
    assert "cannot write SimpleNamespace.log_train: ConnectionError" in (tmp_path / "warnings.log").read_text()
    with pytest.raises(AttributeError):
        logger.log_nothing  # noqa: B018  the access alone raises


def test_the_configuration_has_no_key_and_every_flag_once(tmp_path):
    args = Namespace(orz=Namespace(run_dir=tmp_path), logger=Namespace(wandb=Namespace(key="secret")))
    save_config(args, {"b", "a"}, tmp_path / "config.json")
    assert "changed" not in json.loads((tmp_path / "config.json").read_text())
    for step, changes in ((2, ["--a was 1, is 2"]), (3, []), (5, ["--b was 1, is 2"])):
        save_config(args, {"b", "a"}, tmp_path / "config.json", step, changes)
    changed = json.loads((tmp_path / "config.json").read_text())["changed"]
    assert [(part["after_step"], part["flags"]) for part in changed] == [
        (2, ["--a was 1, is 2"]), (5, ["--b was 1, is 2"]),
    ]  # fmt: skip
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["flags"] == {"orz": {"run_dir": str(tmp_path)}, "logger": {"wandb": {"key": "(not recorded)"}}}
    assert config["explicit"] == ["a", "b"] and config["versions"]["torch"] and "git_commit" in config
    assert args.logger.wandb.key == "secret", "the arguments themselves stay"


def test_a_line_that_failed_comes_before_the_next(tmp_path, monkeypatch):
    """A full disk (here: a limit on the size of files) cuts no line, and none is lost when there is space again."""
    run, path = RunDir(tmp_path), tmp_path / "metrics.jsonl"
    run.append("metrics.jsonl", {"step": 1})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, limit[1]))
    try:
        run.append("metrics.jsonl", {"step": 2})
        run.append("metrics.jsonl", {"step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_text() == '{"step": 1}\n' and run.failures == 2
    with pytest.raises(ValueError):
        run.append("metrics.jsonl", {"step": float("nan")})
    run.append("metrics.jsonl", {"step": 4})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_line_after_half_a_line_is_whole(tmp_path):
    """A killed run's last line."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste')
    RunDir(tmp_path).append("metrics.jsonl", {"step": 2})
    assert path.read_text() == '{"step": 1}\n{"ste\n{"step": 2}\n'


# ---- whose the directory is


def settings(folder, checkpoints=None, load=False, aside=False):
    return SimpleNamespace(
        orz=SimpleNamespace(run_dir=str(folder), put_aside=aside),
        ckpt=SimpleNamespace(path=str(checkpoints or folder / "checkpoints"), load_enable=load),
    )


HOLD = """
import sys
from types import SimpleNamespace
from openrlhf_orz.runtime.run_dir import held
args = SimpleNamespace(orz=SimpleNamespace(run_dir=sys.argv[1]), ckpt=SimpleNamespace(path=sys.argv[2]))
with held(args):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("shared", ["run", "checkpoints"])
def test_a_second_run_is_refused_and_told_whose_the_folder_is(tmp_path, shared):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), str(tmp_path / "checkpoints")]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    own = {"run": tmp_path / "other", "checkpoints": tmp_path / "more"} | {shared: tmp_path / shared}
    flag = {"run": "--ckpt.output_dir", "checkpoints": "--ckpt.path"}[shared]
    refused = pytest.raises(ConfigError, match=f"{flag}: another run writes into .*process {first.pid}, since")
    with refused, held(settings(own["run"], own["checkpoints"])):
        pass
    first.communicate()
    with held(settings(own["run"], own["checkpoints"])):
        pass


def test_a_run_on_another_machine_is_seen_by_its_heartbeat(tmp_path, monkeypatch):
    """Locks may not reach other machines."""
    (tmp_path / ".alive").mkdir()
    beat = tmp_path / ".alive" / "trainer-another-7"
    beat.touch()
    monkeypatch.setattr(run_dir.time, "sleep", lambda seconds: beat.write_text("beats on"))
    with pytest.raises(ConfigError, match="trainer-another-7 lives"), held(settings(tmp_path)):
        pass
    monkeypatch.setattr(run_dir.time, "sleep", lambda seconds: None)
    with held(settings(tmp_path)):
        pass  # it beats no more


@pytest.mark.parametrize("left", ["metrics.jsonl", "eval.jsonl", "rollouts/step_1.jsonl", "hf/config.json",
                                  "checkpoints/global_step20/trainer.json"])  # fmt: skip
def test_a_used_folder_is_refused_or_put_aside(tmp_path, left, capsys):
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_text("older")
    (tmp_path / "before-1").mkdir()
    with pytest.raises(ConfigError, match="--ckpt.output_dir: .* holds an older run .*--orz.put_aside"):
        start_clean(settings(tmp_path))
    start_clean(settings(tmp_path, load=True, aside=True))
    assert (tmp_path / left).exists(), "the run goes on with it"
    start_clean(settings(tmp_path, aside=True))
    (aside,) = [path for path in tmp_path.iterdir() if path.name.startswith("before-2")]
    assert (aside / left).read_text() == "older" and not (tmp_path / left).exists()
    assert str(aside) in capsys.readouterr().out
    start_clean(settings(tmp_path))


def test_checkpoints_elsewhere_are_put_aside_where_they_are(tmp_path):
    saved = tmp_path / "disk"
    (saved / "global_step7").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match="global_step7"):
        start_clean(settings(tmp_path / "run", saved))
    start_clean(settings(tmp_path / "run", saved, aside=True))
    (aside,) = saved.iterdir()
    assert aside.name.startswith("before-") and (aside / "global_step7").is_dir()
    start_clean(settings(tmp_path / "run", saved))


def test_a_start_that_was_refused_before_leaves_nothing_that_counts(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_text("{}" if name == "config.json" else "")
    start_clean(settings(tmp_path))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--ckpt.output_dir"):
        run_dir.make_run_dir(tmp_path / "file" / "run")
    run_dir.make_run_dir(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_tracker_is_closed_after_what_is_still_to_be_written(tmp_path):
    calls = []
    logger = SimpleNamespace(close=lambda: calls.append("closed"), log=calls.append)
    tolerant = TolerantLogger(logger, RunDir(tmp_path), lambda: calls.append("the last step"))
    tolerant.log("a step")
    tolerant.close()
    assert calls == ["a step", "the last step", "closed"]
