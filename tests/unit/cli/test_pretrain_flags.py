"""The flags of pretrain_critic: what of training it takes, and what it refuses by name."""

import json

import pytest

pytest.importorskip("openrlhf")
from openrlhf_orz.cli.pretrain_critic import (
    check_own,
    fit_table,
    limits_of,
    pretrain,
    pretraining_parser,
    same_as_before,
    training_settings,
)
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.trainer.pretraining import StoredExperiences, rounds_of


def options(folder, *flags):
    return pretraining_parser().parse_known_args(
        ["--rollouts", "run", "--model", "none/none", "--output", str(folder), *flags]
    )[0]


def settings(folder, *rest):
    return training_settings(options(folder), ["--orz.device", "cpu", *rest])[0]


def test_training_flags_of_the_critic_act_and_others_are_refused(tmp_path):
    args = settings(tmp_path, "--critic.adam.lr", "1e-3", "--orz.value_loss", "hl_gauss", "--orz.value_bins", "21")
    assert (args.critic.adam.lr, args.orz.value_loss, args.orz.value_bins) == (1e-3, "hl_gauss", 21)
    assert args.critic.save_value_network and args.orz.critic_updates == 12 and args.orz.critic_warmup_steps == 50
    for flag in (["--actor.adam.lr", "1e-6"], ["--orz.lambda_policy", "0.9"], ["--ds.lora.rank", "8"],
                 ["--critic.freezing_steps", "2"], ["--critic.value_clip", "0.2"]):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{flag[0]} does nothing"):
            settings(tmp_path, *flag)


@pytest.mark.parametrize("flags", [("--patience", "0"), ("--held_out", "1"), ("--responses", "0"), ("--rounds", "0")])
def test_numbers_out_of_range_are_refused(tmp_path, flags):
    with pytest.raises(ConfigError, match=flags[0]):
        check_own(options(tmp_path, *flags))


def test_ranks_and_used_folders_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="holds something else"):
        pretrain(options(tmp_path), [])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="without torchrun"):
        pretrain(options(tmp_path / "new"), [])


def test_rewards_must_be_in_the_range_of_the_loss(tmp_path):
    assert limits_of(settings(tmp_path), [-3.0, 2.0]) == (-3.0, 2.0)
    with pytest.raises(ConfigError, match=r"from -3 to 2, and it is for \[0, 1\]"):
        limits_of(settings(tmp_path, "--orz.value_loss", "bce"), [-3.0, 2.0])
    wide = settings(tmp_path, "--orz.value_loss", "hl_gauss", "--reward.clip_range", "-4", "4")
    assert limits_of(wide, [-3.0, 2.0]) == (-3.0, 2.0)


def test_a_folder_goes_on_with_the_same_settings_only(tmp_path):
    path = tmp_path / "work" / "settings.json"
    same_as_before(path, {"held_out": 0.1})
    same_as_before(path, {"held_out": 0.1})
    with pytest.raises(ConfigError, match="held_out 0.1, now it is 0.2"):
        same_as_before(path, {"held_out": 0.2})
    assert json.loads(path.read_text()) == {"held_out": 0.1}


def test_each_pass_has_every_response_once_in_rounds_of_about_the_size_wanted():
    rounds = rounds_of(10, 4, seed=0)
    first, second = [[next(rounds).tolist() for _ in range(2)] for _ in range(2)]
    assert [len(part) for part in first] == [5, 5] and sorted(sum(first, [])) == list(range(10))
    assert sorted(sum(second, [])) == list(range(10)) and first != second
    assert [len(next(rounds_of(3, 8192, seed=0))) for _ in range(2)] == [3, 3]


def test_a_response_becomes_a_sample_with_discounted_returns(tmp_path):
    import numpy as np

    from openrlhf_orz.data.stored_rollouts import StoredResponse

    maker = StoredExperiences(settings(tmp_path, "--algo.advantage.gamma", "0.5"), 0)
    sample = maker.of(StoredResponse("p", np.array([7, 8], np.int32), np.array([1, 2, 3], np.int32), 1.0))
    assert sample.sequences.tolist() == [[7, 8, 1, 2, 3]] and sample.action_mask.tolist() == [[0, 1, 1, 1]]
    assert sample.returns.tolist() == [[0, 0.25, 0.5, 1]]


def test_the_table_has_a_line_for_each_tenth():
    row = {"explained_variance": None, "value_mean": 0.5, "return_mean": 0.25, "calibration_error": 0.25}
    table = fit_table({**row, "by_position": [{"from": 0.0, "to": 0.1, **row}]})
    assert table.splitlines()[2].split() == ["0%", "-", "10%", "-", "0.5000", "0.2500", "0.2500"]
