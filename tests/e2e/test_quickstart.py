"""The README's first command, shortened: the tiny base learns, and works more as it learns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ENV, read_jsonl

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
STEPS = 36


def mean(values):
    return sum(values) / len(values)


@pytest.mark.skipif(not (Path(sys.prefix) / ".orz").is_dir(), reason="not in an environment made by tools/setup.sh")
def test_quickstart_learns(tmp_path):
    env = ENV | {"ORZ_VENV": sys.prefix, "RUN_DIR": str(tmp_path / "run"), "STEPS": str(STEPS)}
    result = subprocess.run(["bash", ROOT / "examples/quickstart.sh"], env=env, capture_output=True, text=True,
                            timeout=1500, cwd=os.sep)  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert sum(line.startswith("step ") for line in result.stdout.splitlines()) == STEPS
    assert f"{tmp_path / 'run' / 'hf'}" in result.stdout
    metrics = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    reward = [m["reward"] for m in metrics]
    length = [m["response_length"] for m in metrics]
    assert mean(reward[:5]) <= 0.45, reward
    assert mean(reward[-5:]) >= mean(reward[:5]) + 0.25, reward
    assert mean(length[-5:]) >= mean(length[:5]) + 5, length
    # for the paper's reason: worked solutions earn the reward, guesses do not
    right, wrong = metrics[0]["response_length_right"], metrics[0]["response_length_wrong"]
    assert right > wrong + 5
