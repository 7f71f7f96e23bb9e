"""A disk or a service that fails is reported and counted, and does not end the training."""

import json
from argparse import Namespace
from types import SimpleNamespace

import pytest

from openrlhf_orz.runtime.run_dir import RunDir, TolerantLogger, save_config


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
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["flags"] == {"orz": {"run_dir": str(tmp_path)}, "logger": {"wandb": {"key": "(not recorded)"}}}
    assert config["explicit"] == ["a", "b"] and config["versions"]["torch"] and "git_commit" in config
    assert args.logger.wandb.key == "secret", "the arguments themselves stay"
