"""Our replay buffer under OpenRLHF's: which samples each optimizer step and micro-batch gets."""

import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """A real process group of one rank."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,), mesh_dim_names=("dp",))
    dist.destroy_process_group()


def partitions(mesh, cls, lengths, rollouts=1, fixed=False, tokens=None, **orz):
    """The partitions of ``rollouts`` equal rollouts of samples with these lengths."""
    args = SimpleNamespace(
        train=SimpleNamespace(seed=1, max_tokens_per_gpu=100, micro_batch_size=3),
        ds=SimpleNamespace(packing_samples=tokens is not None, ring_attn_size=1, tensor_parallel_size=1),
        orz=SimpleNamespace(policy_updates=1, critic_updates=4, fixed_micro_batches=fixed),
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


def test_one_policy_step_with_all_samples(mesh):
    from openrlhf_orz.trainer.mini_batches import PolicyReplayBuffer

    (steps,) = partitions(mesh, PolicyReplayBuffer, [50, 20, 30, 100, 10])
    assert len(steps) == 1 and sorted(flat(steps)[0]) == [0, 1, 2, 3, 4]
    assert [3] in steps[0]  # the longest fills a micro-batch alone


def test_fixed_number_of_samples(mesh):
    from openrlhf_orz.trainer.mini_batches import PolicyReplayBuffer

    (steps,) = partitions(mesh, PolicyReplayBuffer, [500] * 8, fixed=True)
    assert [len(micro) for micro in steps[0]] == [3, 3, 2]


def test_fewer_samples_than_steps(mesh):
    from openrlhf_orz.trainer.mini_batches import CriticReplayBuffer

    (steps,) = partitions(mesh, CriticReplayBuffer, [10, 20], critic_updates=12)
    assert sorted(flat(steps)) == [[0], [1]]


def test_packs_hold_responses_to_one_prompt(mesh):
    """Ten responses each to two prompts of 15 tokens, interleaved: the packs of 100 tokens are by prompt."""
    from openrlhf_orz.trainer.mini_batches import PolicyReplayBuffer

    tokens = [[i % 2] * 15 + [i] * 5 for i in range(20)]
    (steps,) = partitions(mesh, PolicyReplayBuffer, [20] * 20, tokens=tokens)
    assert sorted(flat(steps)[0]) == list(range(20)) and len(steps[0]) == 4
    assert all(len({i % 2 for i in micro}) == 1 and len(micro) == 5 for micro in steps[0])
