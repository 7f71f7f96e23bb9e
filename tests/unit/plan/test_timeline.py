"""The planned step as a picture."""

import shlex
import subprocess
from pathlib import Path

import pytest
from planned import COLOCATED, make, ranks

from openrlhf_orz.cli import plan as command
from openrlhf_orz.plan.layout import Lengths
from openrlhf_orz.plan.timeline import timeline

ROOT = Path(__file__).parents[3]
GIVEN = Lengths(100, 900, 4000, "test")
APART = ("--critic.num_gpus_per_node", 2, "--actor.num_gpus_per_node", 2, "--ds.zero_stage", 2)
NEVER = ("--orz.critic_beside", "never")


def ends(bars) -> dict[str, tuple[float, float]]:
    return {name: (start, start + seconds) for _, name, start, seconds in bars}


@pytest.mark.parametrize(
    "flags",
    [
        (*COLOCATED, *ranks(1, 8)), APART, (*APART, *NEVER), (*APART, "--critic.num_gpus_per_node", 1),
        (*APART, *NEVER, "--algo.kl.init_coef", 0.1), (*APART, "--algo.advantage.estimator", "group_norm"),
    ],
)  # fmt: skip
def test_a_step_is_filled_and_nobody_does_two_things(flags):
    found = make(*flags, lengths=GIVEN)
    bars, step = timeline(found), found.seconds.step
    for lane in {lane for lane, *_ in bars}:
        mine = sorted((start, start + seconds) for each, _, start, seconds in bars if each == lane)
        assert all(a[1] <= b[0] + 1e-6 for a, b in zip(mine, mine[1:])), (lane, mine)
    assert min(start for *_, start, _ in bars) == 0
    assert max(start + seconds for *_, start, seconds in bars) == pytest.approx(step)
    for name, seconds in found.seconds.passes.items():
        assert sum(each for _, other, _, each in bars if other == name) == pytest.approx(seconds, abs=1e-3), name


def test_models_that_share_gpus_take_turns_and_others_do_not():
    together = ends(timeline(make(*COLOCATED, *ranks(1, 8), lengths=GIVEN)))
    assert together["policy training"][0] == pytest.approx(together["critic training"][1])
    apart = ends(timeline(make(*APART, *NEVER, lengths=GIVEN)))
    assert apart["policy training"][0] == apart["critic training"][0] == pytest.approx(apart["values"][1])
    assert apart["values"][0] == pytest.approx(apart["generation"][1])
    beside = ends(timeline(make(*APART, lengths=GIVEN)))
    assert beside["values"][0] < beside["generation"][1] - 1, "of the responses that are there"


def test_a_slow_critic_holds_up_the_next_steps_values():
    found = make(*APART, "--critic.num_gpus_per_node", 1, lengths=GIVEN)
    bars, waiting = timeline(found), found.seconds.phases["waiting for the critic"]
    (values,) = (start for _, name, start, _ in bars if name == "values")
    (before,) = (start + seconds for _, name, start, seconds in bars if name == "critic training" and not start)
    assert waiting > 0 and values == pytest.approx(before)
    assert before == pytest.approx(found.seconds.phases["generation"] + waiting)


def test_asynchronous_training_has_no_order():
    found = make(*ranks(1, 4), "--train.colocate_all", "--vllm.num_engines", 4, "--train.async_enable", lengths=GIVEN)
    with pytest.raises(ValueError, match="leave --train.async_enable out"):
        timeline(found)


@pytest.mark.parametrize("arm", ["split", "colocated"])
def test_the_pictures_in_the_docs_are_the_plans(arm, tmp_path, capsys):
    env = {"DRY_RUN": "1", "RUN_DIR": "r", "PATH": "/usr/bin:/bin", "ARM": arm}
    script = ["bash", ROOT / "examples" / "train_orz_qwen2.5_32b.sh"]
    flags = shlex.split(subprocess.run(script, env=env, capture_output=True, text=True, check=True).stdout)[3:]
    more = ["--hardware", "h100x8x16", "--response_tokens", "4000", "--picture"]
    assert command.main([*flags, *more, str(tmp_path / "step.svg")]) == 0
    drawn, kept = (
        [part.split("</text>")[0].rsplit(">", 1)[-1] for part in path.read_text().split("<text")[1:]]
        for path in (tmp_path / "step.svg", ROOT / "docs" / f"step-{arm}.svg")
    )
    assert drawn == kept and any("s a step" in text for text in drawn) and "critic training" in drawn
    assert command.main([*flags, *more, str(tmp_path / "step.what")]) == 2
    assert "--picture" in capsys.readouterr().err
