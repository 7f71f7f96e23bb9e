"""tests/gpu/run.sh: its kernel checks run here on tiny shapes, so that they cannot rot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from openrlhf_orz.settings.command_line import parse

ROOT = Path(__file__).parents[3]


def run(*args, **env):
    given = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | env
    return subprocess.run(["bash", "tests/gpu/run.sh", *args], cwd=ROOT, env=given, capture_output=True, text=True)


def test_every_kernel_check_is_as_expected_on_a_cpu(tmp_path):
    """With torch and transformers alone: the rest of the stack cannot be imported."""
    for name in ("openrlhf", "vllm", "ray", "deepspeed"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    done = run("a", str(tmp_path), PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads((tmp_path / "kernels.json").read_text())["checks"]
    assert len(checks) == 8 and all(check["ok"] and check["expects"] for check in checks.values())
    assert "8 of 8 as expected on cpu" in done.stdout and done.stdout.count("ok  ") == 8
    assert checks["steps"]["found"]["tiny"]["actor"]["ours"]["mfu"] > 0


class PlannedRun:
    """Stands in for a run on a GPU: its flags are what the command takes, and its steps are those asked for."""

    made: list = []

    def __init__(self, run_dir, *flags, **env):
        self.args, _ = parse(list(map(str, ["--ckpt.output_dir", run_dir, *flags])), (1, 1))
        self.run_dir, self.killed = run_dir, False
        self.made.append(self)
        rows = [{"sync_verified": 1.0, "seconds_generation": 1.0 / (self.args.orz.max_num_seqs or 1)}] * self.steps()
        run_dir.mkdir()
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def steps(self):
        rows = min(64, self.args.data.max_samples)
        return int(rows // self.args.rollout.batch_size * self.args.train.num_episodes)

    def kill_engine(self):
        self.killed = True

    def wait_for_step(self, step, timeout):
        assert step <= self.steps()

    def wait(self, timeout):
        return 0


def test_the_checks_of_the_stack_are_runs_that_the_command_takes(monkeypatch, tmp_path):
    """They need a GPU; their flags do not."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "gpu"))
    import gpu_stack

    monkeypatch.setattr(gpu_stack, "Run", PlannedRun)
    monkeypatch.setattr(gpu_stack, "ROOT", ROOT)
    results = {name: check(tmp_path) for name, _, check in gpu_stack.CHECKS}
    assert list(results) == ["sync", "engine_killed", "sequences_at_once"]
    assert all(fine for _, fine in results.values()), results
    sync, *killed = PlannedRun.made[:5]
    assert sync.args.orz.check_sync and all(run.killed and run.args.vllm.enable_sleep for run in killed)
    assert all(run.args.train.colocate_all and run.args.orz.device == "cuda" for run in PlannedRun.made)
    assert run("c").returncode == 2


@pytest.mark.parametrize("visible", [None, "3"])
def test_its_runs_see_the_gpus(monkeypatch, tmp_path, visible):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "gpu"))
    import faults
    import gpu_stack

    started = []
    monkeypatch.setattr(faults.subprocess, "Popen", lambda command, env, **_: started.append((command, env)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    run = gpu_stack.start(tmp_path, "run", "--orz.check_sync", SOME="1")
    ((command, env),) = started
    assert env.get("CUDA_VISIBLE_DEVICES") == visible
    assert env["SOME"] == "1" and env["ORZ_TEST_RUN"] == str(run.run_dir)
    assert "--orz.put_aside" in command, "a second call finds the first one's runs"


def test_a_killed_engine_may_end_a_run_by_its_name_alone(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "gpu"))
    import gpu_stack

    class EndedRun(PlannedRun):
        said = ""

        def wait(self, timeout):
            return 1

        def output(self):
            return self.said

    for name in ("silent", "named", "short"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(gpu_stack, "Run", EndedRun)
    monkeypatch.setattr(gpu_stack, "ROOT", ROOT)
    assert not gpu_stack.engine_killed(tmp_path / "silent")[1]
    EndedRun.said = "[orz] error: engine 0 dies whenever it is started: ActorDiedError"
    found, fine = gpu_stack.engine_killed(tmp_path / "named")
    assert fine and found["0.0"]["cause"] == ["engine 0 dies whenever it is started: ActorDiedError"]
    monkeypatch.setattr(EndedRun, "wait", lambda run, timeout: 0)
    monkeypatch.setattr(EndedRun, "steps", lambda run: 11)
    assert not gpu_stack.engine_killed(tmp_path / "short")[1]
