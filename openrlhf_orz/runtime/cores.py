"""The cores of a process that trains, shared with those that train beside it."""

import glob
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def share_cores(args: SimpleNamespace) -> None:
    """On CPU, set torch's threads to this process's share of the cores among the ranks that work on this machine now.

    Ray gives each actor one thread, which would leave cores idle. It is called for each micro-batch: when critic and
    policy train side by side and one is done, the other takes all cores.
    """
    if args.orz.device == "cpu":
        working = len(glob.glob(glob.escape(args.run.scratch) + "at-work-*"))
        if args.train.full_determinism_enable:
            working = 2  # sums depend on the number of threads, which must not depend on who is done first
        torch.set_num_threads(max(1, cores() // max(1, working)))


@contextmanager
def at_work(args: SimpleNamespace) -> Iterator[None]:
    """Count this process among the ranks at work (``share_cores``) while the body runs."""
    if args.orz.device != "cpu":
        yield
        return
    mark = Path(f"{args.run.scratch}at-work-{os.getpid()}")
    with suppress(OSError):  # a shared memory that is full costs speed, not the run
        mark.touch()
    try:
        share_cores(args)
        yield
    finally:
        with suppress(OSError):
            mark.unlink()


def in_threads(call: Callable, items: list) -> list:
    """Map ``call`` over ``items`` in up to ``torch.get_num_threads()`` threads, which divide torch's threads.

    The cores then wait for each other once an item, not in each operation.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    share = partial(torch.set_num_threads, threads // workers)
    try:
        with ThreadPoolExecutor(workers, initializer=share) as pool:
            return list(pool.map(call, items))
    finally:
        torch.set_num_threads(threads)
