"""The cores of a process that trains, shared with those that train beside it."""

import glob
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def share_cores(args) -> None:
    """On CPU, give this process its share of the cores among the ranks that are at work on this machine right now.

    Ray gives each actor one thread, which would leave cores idle; and of a critic and a policy that train side by
    side one is done first. Called again for each micro-batch, which makes it follow.
    """
    if args.orz.device == "cpu":
        working = len(glob.glob(glob.escape(args.run.scratch) + "at-work-*"))
        if args.train.full_determinism_enable:
            working = 2  # sums depend on the number of threads, which must not depend on who is done first
        torch.set_num_threads(max(1, cores() // max(1, working)))


@contextmanager
def at_work(args):
    """Counts this process among those that ``share_cores`` shares the cores with."""
    if args.orz.device != "cpu":
        yield
        return
    mark = Path(f"{args.run.scratch}at-work-{os.getpid()}")
    mark.touch()
    try:
        share_cores(args)
        yield
    finally:
        mark.unlink(missing_ok=True)


def in_threads(call, items: list) -> list:
    """``call`` of each item, by a thread for each, or as many as torch has threads, which it has them share.

    So a core waits for the other once in a while, where otherwise it does in each operation.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    share = partial(torch.set_num_threads, threads // workers)
    try:
        with ThreadPoolExecutor(workers, initializer=share) as pool:
            return list(pool.map(call, items))
    finally:
        torch.set_num_threads(threads)
