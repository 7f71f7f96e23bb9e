"""The arms are what they say: the real parser and its checks take their flags, and one thing differs at a time."""

import json
import random
from pathlib import Path

import pytest
from miniature import arms, figures, forms, runner, task
from miniature.claims import CLAIMS

from openrlhf_orz.runtime.resume import flag_values
from openrlhf_orz.settings.command_line import parse

ROOT = Path(__file__).parents[3]
BASE = ROOT / "examples" / "tiny_base"
NAMES = list(arms.ARMS)
FREE = {"data.prompt_dataset", "train.num_episodes"}  # by the scale
BASE_OF = {arm: figure.base for figure in arms.FIGURES.values() for arm in figure.arms}
UNLIKE = ("ckpt.", "orz.run_dir", "logger.wandb.run_name")  # directories, and a name with the minute of the start
BASELINES = {figure.base for figure in arms.FIGURES.values()}


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """All parsed flags of an arm, flat. What the arms begin from is the quickstart's model here."""
    home = tmp_path_factory.mktemp("home")
    for name in ("base", arms.HALF, arms.PRETRAINED):
        (home / name).symlink_to(BASE)

    def parsed(name: str) -> dict:
        return dict(flag_values(parse(arms.flags(arms.ARMS[name], 3, home, Path("run")))[0]))

    return parsed


@pytest.fixture(scope="module", params=sorted(BASELINES))
def baseline(request, values):
    return values(request.param)


def test_baseline_is_the_paper(baseline):
    assert baseline["algo.advantage.lambd"] == baseline["algo.advantage.gamma"] == 1
    assert baseline["algo.kl.init_coef"] == 0 and baseline["rollout.temperature"] == baseline["rollout.top_p"] == 1
    assert baseline["orz.policy_updates"] == 1 and baseline["orz.critic_updates"] == 12
    assert baseline["train.seed"] == 3 and baseline["train.full_determinism_enable"]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BASELINES])
def test_arm_differs_in_what_it_names(name, values):
    arm = arms.ARMS[name]
    base = arms.ARMS[BASE_OF[name]]
    found, baseline = values(name), values(base.name)
    different = {key for key in found if found[key] != baseline[key] and not key.startswith(UNLIKE)}
    expected = set(arm.flags) | (FREE if arm.prompts != base.prompts else set())
    if arm.task == "counting" and arm.prompts != base.prompts:
        expected.add("data.max_samples")
    if arm.critic:
        expected |= {"critic.model_name_or_path"}
    if "orz.policy_updates" in arm.flags:
        expected.add("train.batch_size")  # follows from it
    assert different == expected and different
    for key, value in arm.flags.items():
        assert found[key] == value
    assert (arm.task, arm.steps) == (base.task, base.steps)
    distinct = found["data.max_samples"] if arm.task == "counting" else arm.prompts
    assert found["train.num_episodes"] * distinct == arm.steps * arms.PROMPTS and distinct <= arm.prompts


def test_figures_and_claims_name_arms():
    used = {name for figure in arms.FIGURES.values() for name in figure.arms}
    assert used == set(arms.ARMS) - BASELINES
    assert all(len(figure.arms) < len(figures.LINES) for figure in arms.FIGURES.values()), "each curve has a line"
    for claim in CLAIMS:
        assert claim.arm is None or claim.arm in arms.FIGURES[claim.figure].arms
    assert {claim.figure for claim in CLAIMS} == set(arms.FIGURES) - set(arms.CRITIC_STUDY)
    assert [arm.name for arm in arms.arms_of(["lambda", "reward-and-length"])] == ["baseline", "lambda-0.95"]
    assert [arm.name for arm in arms.arms_of(["critic-policy"])] == ["baseline", "positive-nll", "combined"]


def test_styles_by_hand():
    assert forms.tally((147, 2)) == " One by one: 1=148, 2=149. </think> <answer> \\boxed{149} </answer>"
    rng = random.Random(0)
    counts = [forms.count((147, 2), rng) for _ in range(2000)]
    assert set(counts) == {
        f" Counting: {items}. </think> <answer> \\boxed{{{n}}} </answer>"
        for items, n in (("148", 148), ("148, 149", 149), ("148, 149, 150", 150))
    }
    assert abs(sum("boxed{149}" in text for text in counts) / 2000 - 1 / 3) < 0.04
    right = sum(task.guess((120, 7), rng).endswith("\\boxed{127} </answer>") for _ in range(2000)) / 2000
    assert abs(right - 1 / 21) < 0.02


def test_a_countdown_that_is_given_up():
    assert task.countdown((147, 2)) == " One by one: 2=148, 1=149. </think> <answer> \\boxed{149} </answer>"
    assert task.countdown((147, 20), items=2) == " One by one: 20=148, 19=149"
    rng = random.Random(0)
    texts = [task.weary((147, 25), rng) for _ in range(4000)]
    kept = [text for text in texts if "and so on" not in text]
    assert set(kept) == {task.countdown((147, 25))}
    assert abs(len(kept) / 4000 - (1 - task.GIVES_UP) ** 24) < 0.03
    given_up = next(text for text in texts if "and so on" in text)
    items, guess = given_up.split(", and so on, about ")
    assert items == task.countdown((147, 25), items=items.count("="))
    assert abs(int(guess.split(".")[0]) - 172) <= 10 and given_up.endswith("</answer>")


def test_forms_by_hand():
    assert forms.question(("tiny", 147, 6)) == "What is 0.000000147+0.000000006?"
    assert forms.answers(("tiny", 147, 6)) == ["0.000000153"]
    assert forms.answers(("length", 147, 6)) == ["153 cm", "1.53 m"]
    assert forms.answers(("interval", 147, 6)) == ["[147,153]", r"147 \le x \le 153"]
    rng = random.Random(0)
    texts = [forms.STYLES["tally"](("length", 147, 6), rng) for _ in range(2000)]
    work = forms.tally((147, 6)).split("\\boxed")[0]
    shares = {form: sum(text == f"{work}\\boxed{{{form}}} </answer>" for text in texts) / 2000 for form in
              ("153 cm", "1.53 m", "153 m")}  # fmt: skip
    assert shares == {"153 cm": pytest.approx(0.5, abs=0.04), "1.53 m": pytest.approx(0.25, abs=0.04),
                      "153 m": pytest.approx(0.25, abs=0.04)}  # fmt: skip
    assert sum(shares.values()) == 1
    for terms in (forms.draw(rng) for _ in range(50)):
        reference, *others = forms.answers(terms)
        assert forms.kind_of(reference) == terms[0] and forms.is_right(reference, reference)
        assert all(forms.is_right(other, reference) for other in others) and not forms.is_right(None, reference)
    assert not forms.is_right("153 m", "153 cm") and not forms.is_right("(147,153)", "[147,153]")
    rows = [
        {"extracted": answer, "reference": reference, "reward": reward}
        for answer, reference, reward in (
            ("153 cm", "153 cm", 1.0), ("153 m", "153 cm", 1.0), ("1.53 m", "153 cm", 0.0), ("[1,7]", "[1,8]", 0.0),
        )
    ]  # fmt: skip
    assert forms.shares(rows) == {
        "right": 0.5, "right_length": 2 / 3, "right_interval": 0, "right_tiny": None, "rewarded_wrong": 0.25,
        "unrewarded_right": 0.25,
    }  # fmt: skip


def test_where_the_judges_of_the_reward_study_differ():
    from openrlhf_orz.reward import Grader

    cases = {
        "153 cm": [("153 cm", 1, 1), ("1.53 m", 1, 0), ("153 m", 0, 1), ("152 cm", 0, 0)],
        "[147,153]": [("[147,153]", 1, 1), (r"147 \le x \le 153", 1, 0), ("(147,153)", 0, 0)],
        "0.000000153": [("0.000000153", 1, 1), ("0.000000149", 0, 1)],
    }
    with Grader() as ours, Grader(plain=True) as plain:
        for reference, answers in cases.items():
            for answer, *expected in answers:
                text = f" </think> <answer> \\boxed{{{answer}}} </answer>"
                assert [judge.grade(text, reference).reward for judge in (ours, plain)] == expected, answer


def test_every_task_has_questions(tmp_path):
    for name, made in runner.QUESTIONS.items():
        task.write_questions(tmp_path / name, (4, 16), 8, seed=0, **made)
        rows = [json.loads(line) for line in (tmp_path / name / "train-16.jsonl").read_text().splitlines()]
        assert len(rows) == 16 and all(row["question"] and row["answer"] for row in rows)
    assert set(runner.QUESTIONS) == set(arms.TASKS) == {arms.ARMS[base].task for base in BASELINES}
    assert {forms.kind_of(row["answer"]) for row in rows} == set(forms.KINDS)


def test_questions_are_parts_of_each_other_and_held_out_ones_are_new(tmp_path):
    task.write_questions(tmp_path, (4, 16), 8, seed=0)
    small, large, held_out = (
        (tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("train-4", "train-16", "held-out")
    )
    assert small == large[:4] and len(set(large)) == 16 and len(set(held_out)) == 8
    assert not set(large) & set(held_out)
