"""tests/gpu/run.sh: its kernel checks run here on tiny shapes, so that they cannot rot."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run(*args, **env):
    given = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | env
    return subprocess.run(["bash", "tests/gpu/run.sh", *args], cwd=ROOT, env=given, capture_output=True, text=True)


def test_every_kernel_check_is_as_expected_on_a_cpu(tmp_path):
    done = run("a", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads((tmp_path / "kernels.json").read_text())["checks"]
    assert len(checks) == 8 and all(check["ok"] and check["expects"] for check in checks.values())
    assert "8 of 8 as expected on cpu" in done.stdout and done.stdout.count("ok  ") == 8
    assert checks["steps"]["found"]["tiny"]["actor"]["ours"]["mfu"] > 0


def test_the_checks_of_the_stack_can_be_read(monkeypatch):
    """They need a GPU; their imports do not."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "gpu"))
    import gpu_stack

    assert [name for name, _, _ in gpu_stack.CHECKS] == ["sync", "engine_killed", "sequences_at_once"]
    assert run("c").returncode == 2
