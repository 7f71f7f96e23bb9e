"""What a run cannot start with is refused before Ray starts: the status, and a message with flag or file and remedy.

Each case goes through the real command line, in this process; a case that would start Ray fails.
"""

import logging
import shutil
from pathlib import Path

import pytest
from command_line import GOOD

from openrlhf_orz.cli.train_ppo_ray import main

BASE = Path(__file__).parents[3] / "examples" / "tiny_base"


class RayStarted(BaseException):
    """Raised in place of starting Ray."""


@pytest.fixture(autouse=True)
def no_ray_and_no_network(monkeypatch):
    import datasets
    import huggingface_hub
    import ray

    def start(*args, **kwargs):
        raise RayStarted

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # transformers' handler keeps an earlier test's stderr
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OPENRLHF_TRUST_REMOTE_CODE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command on a small model and one good row, in ``tmp_path``; returns (status, output)."""
    shutil.copytree(BASE, tmp_path / "model", ignore=shutil.ignore_patterns("*.py", "*.md"))
    (tmp_path / "rows.jsonl").write_text(GOOD)

    def command(*flags):
        argv = [
            "--actor.model_name_or_path",
            "{tmp}/model",
            "--data.prompt_dataset",
            "{tmp}/rows.jsonl",
            "--ckpt.output_dir",
            "{tmp}/run",
            "--orz.device",
            "cpu",
            "--data.max_len",
            "480",
            "--rollout.batch_size",
            "4",
            "--rollout.n_samples_per_prompt",
            "4",
            "--orz.critic_updates",
            "3",
            *flags,
        ]
        try:
            status = main([flag.replace("{tmp}", str(tmp_path)) for flag in argv])
        except SystemExit as exit:
            status = exit.code
        except RayStarted:
            status = "starts"
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return command
