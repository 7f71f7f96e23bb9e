"""The arms are what they say: the real parser and its checks take their flags, and one thing differs at a time."""

import random
from pathlib import Path

import pytest
from miniature import arms, task
from miniature.claims import CLAIMS

from openrlhf_orz.runtime.resume import flag_values
from openrlhf_orz.settings.command_line import parse

ROOT = Path(__file__).parents[3]
BASE = ROOT / "examples" / "tiny_base"
NAMES = list(arms.ARMS)
FREE = {"data.prompt_dataset", "train.num_episodes"}  # by the scale
UNLIKE = ("ckpt.", "orz.run_dir", "logger.wandb.run_name")  # directories, and a name with the minute of the start


def values(name: str) -> dict:
    """All parsed flags of an arm, flat."""
    args, _ = parse(arms.flags(arms.ARMS[name], 3, BASE, Path("questions"), Path("run")))
    return dict(flag_values(args))


@pytest.fixture(scope="module")
def baseline():
    return values(arms.BASELINE)


def test_baseline_is_the_paper(baseline):
    assert baseline["algo.advantage.lambd"] == baseline["algo.advantage.gamma"] == 1
    assert baseline["algo.kl.init_coef"] == 0 and baseline["rollout.temperature"] == baseline["rollout.top_p"] == 1
    assert baseline["orz.policy_updates"] == 1 and baseline["orz.critic_updates"] == 12
    assert baseline["train.seed"] == 3 and baseline["train.full_determinism_enable"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != arms.BASELINE])
def test_arm_differs_in_what_it_names(name, baseline):
    found = values(name)
    arm = arms.ARMS[name]
    different = {key for key in found if found[key] != baseline[key] and not key.startswith(UNLIKE)}
    expected = set(arm.flags) | (FREE if arm.prompts != arms.SCALES[-1] else set())
    if "orz.policy_updates" in arm.flags:
        expected.add("train.batch_size")  # follows from it
    assert different == expected and different
    for key, value in arm.flags.items():
        assert found[key] == value
    assert found["train.num_episodes"] * arm.prompts == arms.STEPS * arms.PROMPTS


def test_figures_and_claims_name_arms():
    used = {name for figure in arms.FIGURES.values() for name in figure.arms}
    assert used == set(arms.ARMS) - {arms.BASELINE}
    for claim in CLAIMS:
        assert claim.arm is None or claim.arm in arms.FIGURES[claim.figure].arms
    assert {claim.figure for claim in CLAIMS} == set(arms.FIGURES)
    assert [arm.name for arm in arms.arms_of(["lambda", "reward-and-length"])] == ["baseline", "lambda-0.95"]


def test_styles_by_hand():
    assert task.tally((147, 2)) == " One by one: 1=148, 2=149. </think> <answer> \\boxed{149} </answer>"
    rng = random.Random(0)
    counts = [task.count((147, 2), rng) for _ in range(2000)]
    assert set(counts) == {
        f" Counting: {items}. </think> <answer> \\boxed{{{n}}} </answer>"
        for items, n in (("148", 148), ("148, 149", 149), ("148, 149, 150", 150))
    }
    assert abs(sum("boxed{149}" in text for text in counts) / 2000 - 1 / 3) < 0.04
    right = sum(task.guess((120, 7), rng).endswith("\\boxed{127} </answer>") for _ in range(2000)) / 2000
    assert abs(right - 1 / 21) < 0.02


def test_questions_are_parts_of_each_other_and_held_out_ones_are_new(tmp_path):
    task.write_questions(tmp_path, (4, 16), 8, seed=0)
    small, large, held_out = (
        (tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("train-4", "train-16", "held-out")
    )
    assert small == large[:4] and len(set(large)) == 16 and len(set(held_out)) == 8
    assert not set(large) & set(held_out)
