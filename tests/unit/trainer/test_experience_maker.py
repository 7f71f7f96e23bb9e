"""The experience maker's glue: whose batches, how many, which forwards, and advantages with a KL penalty."""

from types import SimpleNamespace

import pytest
import ray
import torch

pytest.importorskip("openrlhf")
from glue import make_args, make_sample
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

from openrlhf_orz.trainer import experience_maker as module
from openrlhf_orz.trainer.experience_maker import OrzExperienceMaker


def maker_of(tmp_path, **changes):
    maker = object.__new__(OrzExperienceMaker)
    maker.args = make_args(tmp_path, changes={name.replace("__", "."): value for name, value in changes.items()})
    maker.tokenizer = SimpleNamespace(pad_token_id=0)
    maker.actor_model_group, maker.critic_model_group = "actor", "critic"
    return maker


@pytest.mark.parametrize("fixed, packed, upstream", [(False, False, True), (True, False, False), (False, True, False)])
def test_only_padded_batches_by_tokens_are_upstreams(monkeypatch, tmp_path, fixed, packed, upstream):
    monkeypatch.setattr(RemoteExperienceMaker, "split_rollout_samples", lambda self, samples: "upstream")
    maker = maker_of(tmp_path, orz__fixed_micro_batches=fixed, ds__packing_samples=packed)
    assert (maker.split_rollout_samples([make_sample() for _ in range(4)]) == "upstream") is upstream


@pytest.mark.parametrize(
    "gpus, ring, device, samples, size, batches",
    [
        (2, 1, "cuda", 20, 5, 4),  # two for each rank
        (2, 1, "cpu", 20, 2, 10),  # two ranks share two cores: no more batches than asked for
        (4, 2, "cuda", 20, 7, 4),  # two ranks of two GPUs: three batches become four
        (1, 1, "cpu", 20, 7, 4),  # two cores
    ],
)
def test_every_rank_gets_as_many_batches(monkeypatch, tmp_path, gpus, ring, device, samples, size, batches):
    monkeypatch.setattr(module, "cores", lambda: 2)
    maker = maker_of(
        tmp_path, orz__fixed_micro_batches=True, rollout__micro_batch_size=size, actor__num_gpus_per_node=gpus,
        ds__ring_attn_size=ring, orz__device=device,
    )  # fmt: skip
    found = maker.split_rollout_samples([make_sample() for _ in range(samples)])
    assert len(found) == batches and sorted(i for batch in found for i in batch.index) == list(range(samples))


@pytest.mark.parametrize("estimator, penalty, expected", [
    ("group_norm", 0.0, [0.0, 0.0]), ("group_norm", 0.01, [-1.0, -0.5]), ("reinforce_baseline", 0.01, [3.0, 3.0]),
])  # fmt: skip
def test_equal_rewards_teach_what_the_kl_penalty_says(monkeypatch, tmp_path, estimator, penalty, expected):
    """Where advantages are normalised over the batch after that, penalties give them their scale: they stay."""
    monkeypatch.setattr(RemoteExperienceMaker, "compute_advantages_and_returns", lambda self, experiences: experiences)
    maker = maker_of(tmp_path)
    maker.kl_ctl = SimpleNamespace(value=0.5)
    experience = SimpleNamespace(rewards=torch.ones(4), index=[0, 1, 2, 3], advantages=torch.full((4, 2), 3.0),
                                 kl=torch.ones(4, 2), action_mask=torch.ones(4, 2))  # fmt: skip
    maker.args = make_args(tmp_path, "--algo.advantage.estimator", estimator, changes={"algo.kl.init_coef": penalty})
    (found,) = maker.compute_advantages_and_returns([experience])
    assert found is experience and found.advantages.tolist() == [expected] * 4


def test_the_policys_lambda_leaves_the_critics_targets_alone(tmp_path):
    """Deltas 0.2 and 0.6; the targets are of lambda 1, whatever the advantages are of."""
    values, rewards, mask = torch.tensor([[0.2, 0.4]]), torch.tensor([[0.0, 1.0]]), torch.ones(1, 2)

    def found(**flags):
        maker = maker_of(tmp_path, **flags)
        maker.lambdas = []
        advantages, returns = maker.get_advantages_and_returns(values, rewards, mask, 1.0, 1.0)
        assert returns.tolist() == [[1.0, 1.0]]
        return advantages[0].tolist(), torch.tensor(maker.lambdas).tolist()

    assert found() == (pytest.approx([0.8, 0.6]), [])
    assert found(orz__lambda_policy="0.5") == (pytest.approx([0.5, 0.6]), [0.5])
    length = found(orz__lambda_policy="length", orz__lambda_alpha=1.0)  # two tokens: 1 - 1 / 2
    assert length == (pytest.approx([0.5, 0.6]), [0.5])


def test_the_policys_lambda_is_a_metric(monkeypatch, tmp_path):
    maker = maker_of(tmp_path, orz__lambda_policy="length", rollout__n_samples_per_prompt=1)
    experience = SimpleNamespace(rewards=torch.ones(1), index=[0], advantages=torch.zeros(1, 2))

    def upstream(self, experiences):
        self.lambdas.append(torch.tensor([0.5, 0.7]))
        return experiences

    monkeypatch.setattr(RemoteExperienceMaker, "compute_advantages_and_returns", upstream)
    maker.compute_advantages_and_returns([experience])
    assert maker.notes == {"lambda_policy": pytest.approx(0.6)}
    monkeypatch.setattr(RemoteExperienceMaker, "compute_advantages_and_returns", lambda self, given: given)
    maker.compute_advantages_and_returns([experience])
    assert maker.notes == {}


@pytest.mark.parametrize("group, cross_fit, runs", [("critic", False, True), ("critic", True, False),
                                                    ("reference", True, True), ("actor", False, False)])  # fmt: skip
def test_only_the_forwards_that_the_step_needs_run(monkeypatch, tmp_path, group, cross_fit, runs):
    monkeypatch.setattr(RemoteExperienceMaker, "_dispatch_forward", lambda self, *given, **kwargs: "upstream")
    monkeypatch.setattr(ray, "put", lambda value: value)
    maker = maker_of(tmp_path, orz__cross_fit_values=cross_fit)
    found = maker._dispatch_forward(group, None, action_mask=[torch.ones(1, 3), torch.ones(1, 2)])
    assert (found == "upstream") is runs
    if not runs:
        (placeholders,) = found
        shapes = [None if one is None else (one.shape, one.sum().item()) for one in placeholders]
        assert shapes == ([None, None] if group == "critic" else [((1, 3), 0), ((1, 2), 0)])


def test_kl_of_an_empty_response_is_zero(monkeypatch, tmp_path):
    info = {name: torch.tensor([torch.nan, 0.5, torch.inf]) for name in ("kl", "logprobs_diff")}
    monkeypatch.setattr(RemoteExperienceMaker, "make_experience", lambda self, samples: samples)
    (found,) = maker_of(tmp_path).make_experience([SimpleNamespace(info=info)])
    assert found.info["kl"].tolist() == found.info["logprobs_diff"].tolist() == [0.0, 0.5, torch.inf]


@pytest.mark.parametrize("samples, batches", [(9, 4), (3, 2)])
def test_a_gpu_gets_one_batch_at_a_time(tmp_path, samples, batches):
    """Three batches of three samples for two ranks are four; of one rank three stay three, on a GPU."""
    flags = {"orz__fixed_micro_batches": True, "rollout__micro_batch_size": 3, "orz__device": "cuda"}
    found = maker_of(tmp_path, actor__num_gpus_per_node=2, **flags).cut([make_sample() for _ in range(samples)])
    assert len(found) == batches
    assert len(maker_of(tmp_path, **flags).cut([make_sample() for _ in range(9)])) == 3


@pytest.mark.parametrize("values, critic", [([[1.0], [0.0]], True), ([[0.0], [1.0]], False)])
def test_the_critic_is_the_baseline_where_it_fits(monkeypatch, tmp_path, values, critic):
    """--orz.baseline auto: explained variance 1, and below 0."""

    def upstream(maker, experiences):
        maker.sums.append(torch.tensor([[1.0], [0.0]]))
        maker.lambdas.append(torch.tensor([0.5]))
        return experiences

    monkeypatch.setattr(RemoteExperienceMaker, "compute_advantages_and_returns", upstream)
    maker = maker_of(tmp_path, orz__baseline="auto", rollout__n_samples_per_prompt=1)
    experience = SimpleNamespace(
        action_mask=torch.ones(2, 1), values=torch.tensor(values), index=[0, 1], rewards=torch.tensor([1.0, 0.0]),
        advantages=torch.tensor([[9.0], [9.0]]),
    )  # fmt: skip
    maker.compute_advantages_and_returns([experience])
    assert maker.notes == {"baseline_critic": float(critic), **({"lambda_policy": 0.5} if critic else {})}
    assert (experience.advantages.flatten().tolist() == [9.0, 9.0]) is critic
    assert experience.advantages.sum() == (18 if critic else 0), "less the batch's mean"


def test_rewards_outside_of_the_mask_count_nowhere(tmp_path):
    found = maker_of(tmp_path).get_cumulative_returns(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0, 1, 0]]), 0.5)
    assert found.tolist() == [[1.0, 2.0, 0.0]]
