"""Runs that are finished are not run again, others are, and one that fails does not stop the rest."""

import sys

import pytest
from miniature import arms, runner

# in place of the training: notes its call, and finishes unless the seed is 1
TRAINING = """
import json, os, pathlib, sys
flags = dict(zip(sys.argv[1:], sys.argv[2:]))
run = pathlib.Path(flags["--ckpt.output_dir"])
with open(run.parents[2] / "calls", "a") as calls:
    calls.write(f"{run.parent.name} {run.name} {len(os.sched_getaffinity(0))}\\n")
if flags["--train.seed"] == "1":
    sys.exit(3)
(run / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\\n" for step in range(1, STEPS + 1)))
(run / "eval.jsonl").write_text(json.dumps({"step": STEPS}))
"""
# in place of the evaluation: fails where the mark is
EVALUATION = """
import json, pathlib, sys
flags = dict(zip(sys.argv[1:], sys.argv[2:]))
out, (name, file) = pathlib.Path(flags["--out"]), flags["--data"].split("=")
with open(out.parents[3] / "evaluations", "a") as calls:
    calls.write(f"{out.parent.parent.name} {out.parent.name} {flags['--model'] == str(out.parent / 'hf')} {file}\\n")
if (out.parents[3] / "broken").exists():
    sys.exit(4)
out.mkdir()
(out / "results.json").write_text(json.dumps({"results": {name: {"avg_at_n": 0.25}}}))
"""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    script = tmp_path / "training.py"
    script.write_text(TRAINING.replace("STEPS", str(arms.STEPS)))
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, str(script)))
    evaluation = tmp_path / "evaluation.py"
    evaluation.write_text(EVALUATION)
    monkeypatch.setattr(runner, "EVALUATE", (sys.executable, str(evaluation)))
    return [runner.Run(arms.ARMS[name], seed, tmp_path) for seed in (0, 1, 2) for name in ("baseline", "critic-1")]


def calls(run):
    return sorted((run.out / "calls").read_text().splitlines())


def test_runs_once_and_again_what_failed(runs, capsys):
    first = runner.Runner(runs, jobs=2)
    first()
    assert calls(runs[0]) == sorted(f"{run.arm.name} seed-{run.seed} 1" for run in runs)  # each on one core
    assert {(run.arm.name, run.seed) for run in first.failed} == {("baseline", 1), ("critic-1", 1)}
    assert "FAILED with status 3: see" in capsys.readouterr().out
    runner.Runner(runs, jobs=1)()
    assert len(calls(runs[0])) == len(runs) + 2


def test_what_is_trained_is_evaluated_once(runs, capsys):
    run, out = runs[0], runs[0].out
    (out / "broken").touch()
    failing = runner.Runner([run], jobs=1)
    failing()
    assert failing.failed == [run] and "FAILED with status 4" in capsys.readouterr().out
    assert run.finished() and not run.complete() and run.greedy() is None
    (out / "broken").unlink()
    runner.Runner([run], jobs=1)()
    runner.Runner([run], jobs=1)()
    assert run.complete() and run.greedy() == 0.25 and len(calls(run)) == 1, "not trained again"
    questions = out / "counting" / "questions" / "held-out.jsonl"
    assert (out / "evaluations").read_text().splitlines() == [f"baseline seed-0 True {questions}"] * 2


def test_what_another_command_has_finished_meanwhile_stays(runs):
    run = runs[0]
    runner.Runner([run], jobs=1)()
    written = (run.path / "metrics.jsonl").stat().st_mtime_ns
    late = runner.Runner([run], jobs=1)
    late.one(run)  # it was missing when ``late`` looked
    assert (run.path / "metrics.jsonl").stat().st_mtime_ns == written and len(calls(run)) == 1


def test_other_flags_or_lost_steps_are_another_run(runs, monkeypatch):
    run = runs[0]
    runner.Runner([run], jobs=1)()
    assert run.finished()
    metrics = run.path / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-20])
    assert not run.finished()
    runner.Runner([run], jobs=1)()
    assert run.finished() and len(calls(run)) == 2
    (run.path / "eval.jsonl").write_text('{"step": 12}')
    assert not run.finished(), "its last evaluation is not there"
    monkeypatch.setitem(arms.SHARED, "actor.adam.lr", 1e-4)
    assert not run.finished()


def test_a_stopped_runner_starts_nothing(runs):
    stopped = runner.Runner(runs, jobs=2)
    stopped.stop()
    stopped()
    assert not (runs[0].out / "calls").exists() and not stopped.failed


def test_base_that_cannot_be_built_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "BUILD", tmp_path / "none.py")
    with pytest.raises(RuntimeError, match="see .*base.log"):
        runner.prepare(tmp_path, [arms.ARMS["baseline"]])
    home = tmp_path / "counting"
    assert (home / "questions" / "held-out.jsonl").exists() and not (home / "base").exists()
