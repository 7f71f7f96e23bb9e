"""Batches with nothing to learn, or hardly anything in them: finite, zero where they should be, each sample once."""

import math
from types import SimpleNamespace

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF is not installed: bash tools/setup.sh")

import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from test_zero_gradients import run_ranks

from openrlhf_orz.settings.command_line import parse
from openrlhf_orz.settings.finished import changed
from openrlhf_orz.trainer.experience_maker import OrzExperienceMaker

GROUPED = ("rloo", "group_norm", "dr_grpo")


def make_maker(cls=OrzExperienceMaker, estimator="gae", samples=3, *flags):
    ranks = [] if "--actor.num_gpus_per_node" in flags else ["--actor.num_gpus_per_node", "1"]
    args, _ = parse(["--actor.model_name_or_path", "m", "--data.prompt_dataset", "d", "--orz.device", "cpu",
                     "--rollout.batch_size", "40", "--rollout.n_samples_per_prompt", str(samples),
                     "--algo.advantage.estimator", estimator, *ranks, *flags])  # fmt: skip
    maker = object.__new__(cls)
    maker.args, maker.strategy, maker.advantage_estimator = args, SimpleNamespace(args=args), estimator
    maker.kl_ctl, maker.tokenizer = SimpleNamespace(value=0.0), SimpleNamespace(pad_token_id=0)
    return maker


def make_experience(rewards, lengths, values=None):
    """One batch: response tokens by ``lengths``, of which 0 is an empty response; values (B, A)."""
    size, longest = len(rewards), max(1, *lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return Experience(
        index=list(range(size)), action_mask=mask, rewards=torch.tensor(rewards), kl=torch.zeros(size, longest),
        values=torch.zeros(size, longest) if values is None else values, response_length=torch.tensor(lengths),
        truncated=torch.zeros(size, dtype=torch.bool), info={},
    )  # fmt: skip


def advantages(maker, *batch, **kwargs):
    (experience,) = maker.compute_advantages_and_returns([make_experience(*batch, **kwargs)])
    assert experience.advantages.isfinite().all() and experience.returns.isfinite().all()
    return experience.advantages * experience.action_mask


# (0.1 + 0.1 + 0.1) / 3 is not 0.1 in float32 for each of these
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 0.7, 1 / 3])
@pytest.mark.parametrize("estimator", ["reinforce", "flash_reinforce", "reinforce_baseline", *GROUPED])
def test_equal_rewards_teach_nothing(estimator, reward):
    """All right, all wrong (all truncated), or equal by another grader."""
    for samples in (2, 3, 5, 7):
        rewards = [reward] * (2 * samples)
        found = advantages(
            make_maker(estimator=estimator, samples=samples), rewards, [1 + i % 4 for i in range(2 * samples)]
        )
        assert (found == 0).all(), (samples, found)


@pytest.mark.parametrize("estimator", [*GROUPED, "flash_reinforce"])
@pytest.mark.parametrize("use_loss", [True, False])
def test_equal_rewards_teach_nothing_but_a_kl_penalty(estimator, use_loss):
    """The penalty stands in the rewards of tokens, or in the loss: where rewards are equal it alone is left."""
    flags = ["--algo.kl.init_coef", "0.5", *(["--algo.kl.use_loss", "--algo.kl.estimator", "k2"] if use_loss else [])]
    for reward in (1.0, 0.3, 1 / 3):
        maker = make_maker(OrzExperienceMaker, estimator, 8, *flags)
        maker.kl_ctl.value = 0.25
        batch = make_experience([reward] * 8, [3] * 8)
        batch.kl = torch.zeros(8, 3) if use_loss else torch.arange(24.0).reshape(8, 3)
        (found,) = maker.compute_advantages_and_returns([batch])
        expected = 0 if use_loss else -0.25 * torch.arange(24.0).reshape(8, 3).flip(1).cumsum(1).flip(1)
        assert (found.advantages == expected).all(), (reward, found.advantages)


def test_upstream_makes_advantages_of_rounding_errors():
    """What the override is for; if this fails, it can be dropped."""
    largest = 0.0
    for reward in (0.1, 0.7, 1 / 3):
        for samples in (3, 5, 7):
            maker = make_maker(RemoteExperienceMaker, "group_norm", samples)
            largest = max(largest, advantages(maker, [reward] * samples, [2] * samples).abs().max().item())
    assert largest > 0.1


def test_one_group_alike_beside_one_that_is_not():
    for estimator in GROUPED:
        found = advantages(make_maker(estimator=estimator, samples=3), [0.1, 0.1, 0.1, 0.0, 0.0, 1.0], [2] * 6)
        assert (found[:3] == 0).all() and (found[3:] != 0).all()
    # whitened over both groups, the first one's deviation of 0 is one like others: their mean is 0, too
    found = advantages(make_maker(estimator="reinforce_baseline"), [1.0, 1.0, 1.0, 0.0, 0.0, 1.0], [2] * 6)
    assert found[:3].abs().max() < 1e-6 and (found[3:].abs() > 0.5).all()


def test_groups_are_found_in_any_order():
    """Experiences come in packs, not in the order of the prompts."""
    maker = make_maker(estimator="group_norm", samples=2)
    whole = make_experience([0.1, 0.1, 0.0, 1.0], [2, 2, 2, 2])
    packs = []
    for rows in ([3, 0], [1, 2]):
        pack = make_experience(whole.rewards[rows].tolist(), [2, 2])
        pack.index = rows
        packs.append(pack)
    first, second = maker.compute_advantages_and_returns(packs)
    assert (first.advantages[1] == 0).all() and (second.advantages[0] == 0).all()
    assert (first.advantages[0] > 0.5).all() and (second.advantages[1] < -0.5).all()


def test_gae():
    """A critic that is equally wrong everywhere teaches nothing; one that differs is normalised as ever."""
    maker = make_maker()
    assert (advantages(maker, [1.0] * 6, [1, 2, 3, 1, 2, 3]) == 0).all()
    assert (advantages(maker, [0.0] * 6, [4] * 6, values=torch.full((6, 4), 0.5)) == 0).all()
    found = advantages(maker, [0.0] * 6, [4] * 6, values=torch.randn(6, 4))
    assert found.mean().abs() < 1e-5 and found.std(unbiased=False) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("estimator", ["gae", "reinforce", "flash_reinforce"])
def test_one_response(estimator):
    found = advantages(make_maker(estimator=estimator, samples=1), [1.0], [1])
    assert found.shape == (1, 1) and (found == 0).all()
    advantages(make_maker(estimator=estimator, samples=1), [1.0], [5], values=torch.randn(1, 5))


@pytest.mark.parametrize("estimator", ["gae", "reinforce", *GROUPED])
def test_responses_of_one_token_and_of_none(estimator):
    maker = make_maker(estimator=estimator, samples=2)
    found = advantages(maker, [1.0, 0.0], [1, 1])
    assert found[0, 0] > 0 > found[1, 0]
    found = advantages(maker, [1.0, 0.0, 1.0, 0.0], [3, 0, 1, 2])
    assert (found[1] == 0).all()


def test_mean_over_no_tokens(monkeypatch):
    """An empty response's mean KL is 0 / 0 upstream; here it does not spoil the metric of its rollout."""
    experience = Experience(info={key: torch.tensor([0.5, math.nan]) for key in ("kl", "logprobs_diff")})
    monkeypatch.setattr(RemoteExperienceMaker, "make_experience", lambda self, samples: samples)
    (found,) = make_maker().make_experience([experience])
    assert found.info["kl"].tolist() == [0.5, 0.0] == found.info["logprobs_diff"].tolist()


def make_sample(prompt, length):
    tokens = torch.tensor([[prompt] * 4 + [9] * length])
    return Experience(
        sequences=tokens, attention_mask=torch.ones_like(tokens), action_mask=torch.ones_like(tokens[:, 1:]),
        total_length=torch.tensor([float(tokens.shape[1])]), response_length=torch.tensor([length]), info={},
    )  # fmt: skip


@pytest.mark.parametrize("flags", [("--rollout.micro_batch_size", "3"), ("--train.max_tokens_per_gpu", "40"),
                                   ("--ds.attn_implementation", "sdpa", "--train.max_tokens_per_gpu", "40")],
                         ids=["fixed", "packed", "padded"])  # fmt: skip
def test_every_rank_gets_as_many_batches_and_each_sample_is_in_one(flags):
    """Also of a last, partial rollout; upstream hands a rank no batch where their number is not divisible."""
    for ranks in (1, 2, 3, 4):
        placed = ("--actor.num_gpus_per_node", str(ranks), "--critic.num_gpus_per_node", str(ranks))
        maker = make_maker(OrzExperienceMaker, "gae", 2, *flags, *placed)
        for size in range(ranks, 26):
            batches = maker.split_rollout_samples([make_sample(i // 2, 1 + 7 * i % 11) for i in range(size)])
            assert len(batches) % ranks == 0, (ranks, size, len(batches))
            assert sorted(i for batch in batches for i in batch.index) == list(range(size))
            if flags[0] == "--rollout.micro_batch_size" and size >= 3 * ranks:
                assert max(len(batch.index) for batch in batches) <= 3


@pytest.mark.parametrize("cores, device, counts", [(2, "cpu", [1, 2, 4, 4, 6]), (4, "cpu", [1, 2, 3, 4, 8]),
                                                   (2, "cuda", [1, 2, 3, 4, 5])])  # fmt: skip
def test_on_a_cpu_each_core_gets_as_many_packs(monkeypatch, cores, device, counts):
    """Packs of the same size as the budget cuts 1 to 5 of; values are taken by a core each."""
    monkeypatch.setattr("openrlhf_orz.trainer.experience_maker.cores", lambda: cores)
    maker = make_maker(OrzExperienceMaker, "gae", 2, "--train.max_tokens_per_gpu", "40", "--ds.packing_samples")
    maker.args = changed(maker.args, {"orz.device": device, "rollout.max_tokens_per_gpu": 40})
    for needed, expected in enumerate(counts, 1):
        batches = maker.split_rollout_samples([make_sample(i, 16) for i in range(2 * needed)])
        assert len(batches) == expected, needed


@pytest.fixture(scope="module")
def trained():
    return {world: run_ranks(world, "degenerate") for world in (1, 2)}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("kind", ["equal", "single", "one_token", "usual"])
def test_training_is_finite_and_on_each_sample_once(trained, world, kind):
    """Seven samples on two ranks are four and three, in three critic updates."""
    for name, result in trained[world][kind].items():
        assert math.isfinite(result["loss"]) and math.isfinite(result["grad_norm"]) and result["finite"], (
            name,
            result,
        )
        for indices, size in result["ranks"]:
            assert indices == list(range(size)), (name, result)
        fewest = min(size for _, size in result["ranks"])
        assert result["updates"] == (1 if name == "policy" else min(3, fewest))
    policy = trained[world][kind]["policy"]
    if kind == "equal":
        assert policy["loss"] == policy["grad_norm"] == policy["change"] == 0
    else:
        assert policy["change"] > 0


BOTH = [[1.0, 0.0, 1.0, 1.0], [2, 2, 2, 2]]  # rewards of two prompts of two responses, lengths


def found_with(baseline, values, rewards=BOTH[0], *flags):
    maker = make_maker(OrzExperienceMaker, "gae", 2, "--orz.baseline", baseline, *flags)
    experience = make_experience(rewards, BOTH[1], torch.tensor(values)[:, None].expand(4, 2).clone())
    (experience,) = maker.compute_advantages_and_returns([experience])
    return experience, maker.notes


def test_what_stands_in_for_the_critic_and_what_says_so():
    good, bad = [0.9, 0.1, 0.9, 0.9], [0.1, 0.9, 0.1, 0.1]
    plain, notes = found_with("critic", bad)
    assert notes == {}
    group, notes = found_with("group", good)
    assert notes == {"baseline_critic": 0.0} and torch.equal(group.returns, plain.returns), "the critic's targets stay"
    signs = group.advantages[:, 0].sign().tolist()
    assert signs == [1, -1, 0, 0], "the second prompt's responses are alike"
    batch, _ = found_with("batch", good)
    assert batch.advantages[:, 0].sign().tolist() == [1, -1, 1, 1]
    used, notes = found_with("auto", good)
    assert notes == {"baseline_critic": 1.0} and torch.equal(used.advantages, found_with("critic", good)[0].advantages)
    used, notes = found_with("auto", bad)
    assert notes == {"baseline_critic": 0.0} and torch.equal(used.advantages, group.advantages)
    alike, notes = found_with("auto", good, [1.0] * 4)
    assert notes == {"baseline_critic": 0.0} and (alike.advantages == 0).all()
    by_length = ("--orz.lambda_policy", "0.5")
    assert found_with("auto", good, BOTH[0], *by_length)[1] == {"baseline_critic": 1.0, "lambda_policy": 0.5}
    assert "lambda_policy" not in found_with("auto", bad, BOTH[0], *by_length)[1], "a mean has none"


def test_right_responses_are_marked_before_penalties():
    maker = make_maker(OrzExperienceMaker, "gae", 2, "--orz.positive_nll", "0.1")
    experience = make_experience(*BOTH, torch.zeros(4, 2))
    maker.compute_advantages_and_returns([experience])
    assert experience.info["right"].tolist() == [1, 0, 1, 1]
    plain = make_experience(*BOTH, torch.zeros(4, 2))
    make_maker(OrzExperienceMaker, "gae", 2).compute_advantages_and_returns([plain])
    assert "right" not in plain.info
