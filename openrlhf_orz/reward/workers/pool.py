"""A pool of warm workers for the threads of a process, with a memory of its answers."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from concurrent.futures import Future

from openrlhf_orz.reward.verdict import Verdict
from openrlhf_orz.reward.workers.slot import Keeper, Slot

REMEMBERED = 100_000  # questions kept with their verdict, about 30 MiB


class Turns:
    """A semaphore that serves in order of arrival.

    ``threading.Semaphore`` lets the thread that has just released overtake waiting threads: with 16 threads
    on 2 turns an answer waited 14 s.
    """

    def __init__(self, count: int):
        self._free = count
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:  # Ctrl-C while waiting: the turn may have come nevertheless
            with self._lock:
                came = turn not in self._waiting
                if not came:
                    self._waiting.remove(turn)
            if came:
                self.release()
            raise

    def release(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


class Pool:
    """``ask`` a worker, from any thread. Equal questions are asked once, also at the same time.

    Args:
        workers: answers worked on at a time; None for the number of usable cores.
        memory_mib: address-space limit of a worker, MiB.
        cpu_seconds: CPU time an answer may take.
        wall_seconds: wall time after which a worker is killed, counted from hand-over.
    """

    def __init__(self, workers: int | None, memory_mib: int, cpu_seconds: float, wall_seconds: float):
        self.workers = workers or len(os.sched_getaffinity(0))
        # A slow answer keeps its slot when it gives its turn to the next, so there are two slots a turn.
        self._keeper = Keeper(memory_mib, cpu_seconds)
        self._slots = [Slot(self._keeper, wall_seconds) for _ in range(2 * self.workers)]
        self._idle: queue.LifoQueue[Slot] = queue.LifoQueue()
        for slot in reversed(self._slots):
            self._idle.put(slot)
        self._turns = Turns(self.workers)
        self._lock = threading.Lock()
        self._known: dict[tuple[int, str, str], Future[tuple[Verdict, int]]] = {}

    def ask(self, task: int, gold: str, answer: str) -> tuple[Verdict, int]:
        """The verdict and the number (in ``rules.RULES``) of the rule that decided. Blocks.

        Raises:
            RuntimeError: workers cannot start.
        """
        key = (task, gold, answer)
        with self._lock:
            known = self._known.get(key)
            if known is None:
                future = self._known[key] = Future()
                if len(self._known) > REMEMBERED:
                    self._known.pop(next(iter(self._known)))
        if known is not None:
            return known.result()
        try:
            result = self._run(task, gold, answer)
        except BaseException as error:
            self._forget(key)
            future.set_exception(error)
            raise
        if result[0] is Verdict.CRASHED:  # the machine may be the cause: ask again next time
            self._forget(key)
        future.set_result(result)
        return result

    def _forget(self, key: tuple[int, str, str]) -> None:
        with self._lock:
            self._known.pop(key, None)

    def _run(self, task: int, gold: str, answer: str) -> tuple[Verdict, int]:
        turns = [self._turns]  # a slow answer gives its turn back early, but only once

        def give_back() -> None:
            if turns:
                turns.pop().release()

        self._turns.acquire()
        try:
            slot = self._idle.get()
            try:
                return slot.ask(task, gold, answer, on_slow=give_back)
            finally:
                self._idle.put(slot)
        finally:
            give_back()

    @property
    def pids(self) -> list[int]:
        """Process ids: the keeper's first, if it runs, then the workers'."""
        return [pid for pid in (self._keeper.pid, *(slot.pid for slot in self._slots)) if pid is not None]

    def close(self) -> None:
        """Kill the workers. A later ``ask`` starts them again; not while other threads ask."""
        for slot in self._slots:
            slot.kill()
        self._keeper.close()
