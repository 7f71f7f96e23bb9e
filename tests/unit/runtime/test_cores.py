"""Cores go to the processes that compute, and follow them."""

import os
from threading import Barrier
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
from openrlhf_orz.runtime.cores import at_work, cores, in_threads, share_cores


@pytest.fixture
def args(tmp_path):
    before = torch.get_num_threads()
    yield SimpleNamespace(
        orz=SimpleNamespace(device="cpu"),
        run=SimpleNamespace(scratch=f"{tmp_path}/run-[1]-"),
        train=SimpleNamespace(full_determinism_enable=False),
    )
    torch.set_num_threads(before)


def test_a_deterministic_run_has_as_many_threads_at_all_times(args):
    args.train.full_determinism_enable = True
    with at_work(args):
        assert torch.get_num_threads() == max(1, cores() // 2)


def test_cores_follow_who_is_at_work(args, tmp_path):
    with at_work(args):
        assert torch.get_num_threads() == cores()
        other = tmp_path / "run-[1]-at-work-0"  # another rank begins
        other.touch()
        share_cores(args)
        assert torch.get_num_threads() == max(1, cores() // 2)
        other.unlink()  # and ends
        share_cores(args)
        assert torch.get_num_threads() == cores()
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_no_mark(args, tmp_path):
    with pytest.raises(RuntimeError), at_work(args):
        assert [path.name for path in tmp_path.iterdir()] == [f"run-[1]-at-work-{os.getpid()}"]
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_on_cuda_nothing_changes(args, tmp_path):
    args.orz.device = "cuda"
    torch.set_num_threads(1)
    with at_work(args):
        share_cores(args)
        assert torch.get_num_threads() == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("threads, items, share", [(4, 2, 2), (2, 5, 1), (3, 2, 1), (1, 3, 1)])
def test_threads_share_the_cores(args, threads, items, share):
    torch.set_num_threads(threads)
    together = Barrier(min(threads, items), timeout=30)

    def call(item):
        if item < together.parties:  # each thread has one of these: all are at work at once
            together.wait()
        return item, torch.get_num_threads()

    assert in_threads(call, list(range(items))) == [(item, share) for item in range(items)]
    assert torch.get_num_threads() == threads


def test_a_failure_in_a_thread_is_raised_and_gives_the_cores_back(args):
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda item: 1 // item, [1, 0])
    assert torch.get_num_threads() == 2
