"""Turns of the grader's pool go in order of arrival."""

import threading
import time

from openrlhf_orz.reward.workers.pool import Turns


def test_whoever_waits_is_served_before_the_one_who_has_just_released():
    turns, served, started = Turns(1), [], threading.Event()
    turns.acquire()

    def wait() -> None:
        started.set()
        turns.acquire()
        served.append("waiting")
        turns.release()

    waiting = threading.Thread(target=wait)
    waiting.start()
    started.wait()
    while not turns._waiting:
        time.sleep(0.001)
    turns.release()
    turns.acquire()  # at once again: a plain semaphore would let this one overtake
    served.append("releasing")
    turns.release()
    waiting.join()
    assert served == ["waiting", "releasing"]


def test_no_turn_is_lost_or_made_up():
    turns, at_work, most, lock = Turns(3), 0, 0, threading.Lock()

    def work() -> None:
        nonlocal at_work, most
        for _ in range(200):
            turns.acquire()
            with lock:
                at_work += 1
                most = max(most, at_work)
            with lock:
                at_work -= 1
            turns.release()

    threads = [threading.Thread(target=work) for _ in range(16)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert (at_work, turns._free, len(turns._waiting)) == (0, 3, 0) and most <= 3
