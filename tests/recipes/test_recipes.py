"""Every shell recipe prints its command under DRY_RUN=1, and the real parser and checks accept it."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from openrlhf_orz.cli.flags import parse

ROOT = Path(__file__).parents[2]
RECIPES = sorted(ROOT.glob("examples/*.sh"))
MODULE = "openrlhf_orz.cli.train_ppo_ray"


def commands(recipe: Path) -> list[list[str]]:
    """The commands that a recipe would run."""
    env = os.environ | {"DRY_RUN": "1", "RUN_DIR": "run-dir"}
    result = subprocess.run(["bash", recipe], env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines() if line.strip()]


def test_there_are_recipes():
    assert {"quickstart.sh", "train_orz_qwen2.5_7b.sh"} <= {recipe.name for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipe_is_accepted(recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    training = [command for command in commands(recipe) if MODULE in command]
    assert training, f"{recipe.name} runs no training"
    for command in training:
        args, explicit = parse(command[command.index(MODULE) + 1 :])
        assert args.orz.run_dir == str(ROOT / "run-dir")
        assert "data.prompt_dataset" in explicit


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipe_is_in_strict_mode_with_a_header(recipe):
    lines = recipe.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("# ")
    assert "set -euo pipefail" in lines
    assert any("Hardware:" in line for line in lines[:20])


def test_7b_is_the_paper(monkeypatch):
    monkeypatch.chdir(ROOT)
    (command,) = commands(ROOT / "examples/train_orz_qwen2.5_7b.sh")
    args, _ = parse(command[command.index(MODULE) + 1 :])
    assert args.rollout.batch_size == 128 and args.rollout.n_samples_per_prompt == 64
    assert args.train.batch_size == 8192 and args.orz.policy_updates == 1 and args.orz.critic_updates == 12
    assert args.actor.adam.lr == 1e-6 and args.critic.adam.lr == 5e-6 and args.orz.warmup_steps == 50
    assert args.actor.adam.betas == (0.9, 0.95) and args.critic.adam.weight_decay == 0
    assert args.algo.advantage.gamma == args.algo.advantage.lambd == 1 and args.actor.eps_clip == 0.2
    assert args.algo.kl.init_coef == 0 and args.actor.entropy_coef is None and args.critic.value_clip is None
    assert args.ds.packing_samples and args.ds.zero_stage == 3 and args.vllm.enable_sleep and args.ds.enable_sleep
