"""The miniature's runner with the real training command: two steps, and nothing is run twice."""

import json
import shutil
from pathlib import Path

import pytest
from miniature import arms, runner
from miniature.results import load
from miniature.task import write_questions

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


def test_a_run_is_run_once(tmp_path, monkeypatch):
    monkeypatch.setattr(arms, "PROMPTS", 4)
    monkeypatch.setitem(arms.SHARED, "rollout.batch_size", 4)
    monkeypatch.setitem(arms.TASKS["counting"], "eval.steps", 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    home = tmp_path / "counting"
    write_questions(home / "questions", (8,), 4, seed=0)
    (home / "base").mkdir()
    for file in (ROOT / "examples" / "tiny_base").glob("*.*"):
        shutil.copy(file, home / "base")
    run = runner.Run(arms.Arm("critic-1", "", {"orz.critic_updates": 1}, prompts=8, steps=2), 0, tmp_path)
    first = runner.Runner([run], jobs=1)
    first()
    assert not first.failed, (run.path / "run.log").read_text()[-3000:]
    curves = load([run])["critic-1"][0]
    assert len(curves.values("reward")) == len(curves.values("held_out")) == 2  # the latter before and after
    assert len(curves.values("greedy")) == 1
    config = json.loads((run.path / "config.json").read_text())
    assert config, "the run keeps its flags"
    written = (run.path / "metrics.jsonl").stat().st_mtime_ns
    runner.Runner([run], jobs=1)()
    assert (run.path / "metrics.jsonl").stat().st_mtime_ns == written
