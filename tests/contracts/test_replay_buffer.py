"""Our replay buffer under OpenRLHF's: which samples each optimizer step and micro-batch gets."""

import os
import random
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from test_zero_gradients import run_ranks

os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """A real process group of one rank."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,), mesh_dim_names=("dp",))
    dist.destroy_process_group()


def partitions(mesh, cls, lengths, rollouts=1, fixed=False, tokens=None, ring=1, tensor=1, **orz):
    """The partitions of ``rollouts`` equal rollouts of samples with these lengths."""
    args = SimpleNamespace(
        train=SimpleNamespace(seed=1, max_tokens_per_gpu=100, micro_batch_size=3),
        ds=SimpleNamespace(packing_samples=tokens is not None, ring_attn_size=ring, tensor_parallel_size=tensor),
        orz=SimpleNamespace(
            policy_updates=1, critic_updates=4, critic_epochs=1, critic_minibatch="samples", fixed_micro_batches=fixed
        ),  # fmt: skip
    )
    vars(args.orz).update(orz)
    buffer = cls(1, dynamic_batch=True)
    buffer.items = [SimpleNamespace(total_length=torch.tensor(length)) for length in lengths]
    for item, sequence in zip(buffer.items, tokens or []):
        item.sequences, item.response_length = torch.tensor(sequence), torch.tensor(5)
    strategy = SimpleNamespace(args=args, ds_device_mesh=mesh)
    return [buffer.partition_micro_batches(strategy) for _ in range(rollouts)]


def flat(steps):
    return [sum(step, []) for step in steps]


def test_critic_steps_shuffled_each_sample_once(mesh):
    from openrlhf_orz.trainer.mini_batches import CriticReplayBuffer

    lengths = [10 + i % 7 for i in range(30)]
    first, second = partitions(mesh, CriticReplayBuffer, lengths, rollouts=2)
    for steps in (first, second):
        assert [len(step) for step in flat(steps)] == [8, 8, 7, 7]
        assert sorted(sum(flat(steps), [])) == list(range(30))
        for step in steps:
            for micro in step:
                assert max(lengths[i] for i in micro) * len(micro) <= 100
    assert flat(first) != flat(second)  # every rollout is cut anew
    assert partitions(mesh, CriticReplayBuffer, lengths, rollouts=2) == [first, second]  # by the seed


def test_each_pass_of_the_critic_is_shuffled_anew(mesh):
    from openrlhf_orz.trainer.mini_batches import CriticReplayBuffer, PolicyReplayBuffer

    lengths = [10 + i % 7 for i in range(30)]
    steps, following = partitions(mesh, CriticReplayBuffer, lengths, rollouts=2, critic_epochs=3)
    passes = [flat(steps)[i : i + 4] for i in (0, 4, 8)]
    assert len(steps) == 12 and all(sorted(sum(cut, [])) == list(range(30)) for cut in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]
    once, after = partitions(mesh, CriticReplayBuffer, lengths, rollouts=2)
    assert steps[:4] == once and following[:4] == after, "the first pass is that of a run with one"
    assert len(partitions(mesh, PolicyReplayBuffer, lengths, critic_epochs=3)[0]) == 1


def test_the_critic_s_mini_batches_of_whole_groups(mesh, monkeypatch):
    from openrlhf_orz.trainer import mini_batches

    tokens = [[prompt] * (20 + prompt) + [response] * 5 for response in range(4) for prompt in range(6)]
    lengths = [len(row) for row in tokens]
    given = {"tokens": tokens, "critic_minibatch": "groups"}
    first, second = partitions(mesh, mini_batches.CriticReplayBuffer, lengths, rollouts=2, **given)
    for steps in map(flat, (first, second)):
        assert sorted(sum(steps, [])) == list(range(24)) and [len(step) for step in steps] == [8, 8, 4, 4]
        prompts = [{tokens[i][0] for i in step} for step in steps]
        assert [len(found) for found in prompts] == [2, 2, 1, 1]
    assert flat(first) != flat(second)
    assert len(partitions(mesh, mini_batches.PolicyReplayBuffer, lengths, policy_updates=2, **given)[0]) == 2
    said = []
    monkeypatch.setattr(mini_batches, "logger", SimpleNamespace(warning=said.append))
    (steps,) = partitions(mesh, mini_batches.CriticReplayBuffer, lengths, critic_updates=12, **given)
    assert len(steps) == 6 and "fewer prompts" in said[0] and "--orz.critic_updates 12: 6 steps" in said[0]


def test_a_group_that_lies_on_several_ranks_is_in_one_mini_batch():
    """Ten mini-batches would leave one rank without a sample of one of them: there are fewer."""
    for updates, ranks in run_ranks(2, "groups").items():
        assert all(whole for _, whole, _ in ranks), "each sample once"
        assert ranks[0][2] == ranks[1][2], "as many packs on each rank"
        steps = [set(a) | set(b) for a, b in zip(ranks[0][0], ranks[1][0], strict=True)]
        assert sorted(prompt for step in steps for prompt in step) == list(range(10)), (updates, ranks)
        assert len(steps) == 3 if updates == "3" else 3 < len(steps) < 10
        assert all(mine for prompts, _, _ in ranks for mine in prompts)


def test_one_policy_step_with_all_samples(mesh):
    from openrlhf_orz.trainer.mini_batches import PolicyReplayBuffer

    (steps,) = partitions(mesh, PolicyReplayBuffer, [50, 20, 30, 100, 10])
    assert len(steps) == 1 and sorted(flat(steps)[0]) == [0, 1, 2, 3, 4]
    assert [3] in steps[0]  # the longest fills a micro-batch alone


def test_fixed_number_of_samples(mesh):
    from openrlhf_orz.trainer.mini_batches import PolicyReplayBuffer

    (steps,) = partitions(mesh, PolicyReplayBuffer, [500] * 8, fixed=True)
    assert steps[0] == [[0, 1, 2], [3, 4, 5], [6, 7]]  # a lone step is not shuffled


def test_fewer_samples_than_steps(mesh):
    from openrlhf_orz.trainer.mini_batches import CriticReplayBuffer

    (steps,) = partitions(mesh, CriticReplayBuffer, [10, 20], critic_updates=12)
    assert sorted(flat(steps)) == [[0], [1]]


def test_only_a_rollout_that_is_too_small_is_warned_of(mesh, monkeypatch):
    from openrlhf_orz.trainer import mini_batches

    said = []
    monkeypatch.setattr(mini_batches, "logger", SimpleNamespace(warning=said.append))
    partitions(mesh, mini_batches.CriticReplayBuffer, [10] * 4)
    assert said == []
    partitions(mesh, mini_batches.CriticReplayBuffer, [10] * 3)
    assert len(said) == 1 and "--orz.critic_updates 4: 3 steps" in said[0]


def test_a_rollout_is_cut_by_seed_rank_model_and_its_number(mesh):
    """As examples/orz_in_one_file.py cuts the first."""
    from openrlhf_orz.algo.minibatch import cut_mini_batches
    from openrlhf_orz.trainer.mini_batches import CriticReplayBuffer

    for number, steps in enumerate(partitions(mesh, CriticReplayBuffer, [10] * 9, rollouts=3)):
        expected = cut_mini_batches(9, 4, random.Random(f"1-0-critic_updates-{number}"))
        assert [sorted(step) for step in flat(steps)] == [sorted(step) for step in expected]


def test_ranks_that_share_samples_share_their_tokens(mesh):
    """With ring attention over 2 ranks and tensors cut in 3 a pack may be six times as long."""
    from openrlhf_orz.trainer.mini_batches import PolicyReplayBuffer

    (alone,) = partitions(mesh, PolicyReplayBuffer, [50] * 12)
    (shared,) = partitions(mesh, PolicyReplayBuffer, [50] * 12, ring=2, tensor=3)
    assert [len(micro) for micro in alone[0]] == [2] * 6 and [len(micro) for micro in shared[0]] == [12]


def test_all_ranks_take_as_many_steps_and_micro_batches(mesh, monkeypatch):
    """Another rank has three samples, of which the second fills three packs: so three steps, and three packs where
    this rank has three samples for them.
    """
    from openrlhf_orz.trainer import mini_batches

    theirs = iter([[3], [1, 3, 1], [1, 3, 1]])  # their samples, micro-batches by step, samples by step

    def all_reduce(tensor, op, group):
        other = torch.tensor(next(theirs))
        tensor.copy_(torch.minimum(tensor, other) if op == dist.ReduceOp.MIN else torch.maximum(tensor, other))

    monkeypatch.setattr(mini_batches.dist, "all_reduce", all_reduce)
    (steps,) = partitions(mesh, mini_batches.CriticReplayBuffer, [10] * 9)
    assert [len(step) for step in steps] == [1, 3, 1] and sorted(sum(flat(steps), [])) == list(range(9))


def test_packs_hold_responses_to_one_prompt(mesh):
    """Ten responses each to two prompts of 15 tokens, interleaved: the packs of 100 tokens are by prompt."""
    from openrlhf_orz.trainer.mini_batches import PolicyReplayBuffer

    tokens = [[i % 2] * 15 + [i] * 5 for i in range(20)]
    (steps,) = partitions(mesh, PolicyReplayBuffer, [20] * 20, tokens=tokens)
    assert sorted(flat(steps)[0]) == list(range(20)) and len(steps[0]) == 4
    assert all(len({i % 2 for i in micro}) == 1 and len(micro) == 5 for micro in steps[0])


def test_tokens_of_right_responses_by_step(mesh):
    """Two steps; micro-batch by micro-batch the tokens of right responses of its whole step."""
    from openrlhf_orz.trainer.mini_batches import PolicyReplayBuffer

    args = SimpleNamespace(
        train=SimpleNamespace(seed=1, max_tokens_per_gpu=100, micro_batch_size=1),
        ds=SimpleNamespace(packing_samples=False, ring_attn_size=1, tensor_parallel_size=1),
        orz=SimpleNamespace(policy_updates=2, fixed_micro_batches=True, positive_nll=0.1),
    )
    buffer = PolicyReplayBuffer(1, dynamic_batch=True)
    buffer.items = [
        SimpleNamespace(total_length=torch.tensor(9), action_mask=torch.ones(n), info={"right": right})
        for n, right in ((1, 1.0), (2, torch.tensor(0.0)), (4, 1.0), (8, torch.tensor(1.0)))
    ]
    buffer.setup_dynamic_batch(SimpleNamespace(args=args, ds_device_mesh=mesh))
    right = [1, 0, 4, 8]
    steps = [buffer.dynamic_indices[:2], buffer.dynamic_indices[2:]]
    totals = [sum(right[i] for part in step for i in part) for step in steps]
    assert buffer.right_tokens == [totals[0], totals[0], totals[1], totals[1]] and sum(totals) == 13
