"""The workers: killed, frozen, starved and abandoned, and the same verdicts all the while."""

import os
import random
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openrlhf_orz.reward import Grader, Verdict
from openrlhf_orz.reward.workers import slot as slots
from openrlhf_orz.reward.workers import wire
from openrlhf_orz.reward.workers.slot import Keeper, Slot

from .conftest import crowd, response
from .processes import HANG_IN_C, children

ROOT = Path(__file__).parents[3]
# guards are asked first, so what must reach a worker and hang there goes to the pool directly
HANG_IN_PYTHON = r"\sum_{k=1}^{10^7} \frac{1}{k^3+k+1}"
MEMORY_BOMB = r"\sin^{10^9}(x)"


@pytest.mark.parametrize("answer", [HANG_IN_PYTHON, HANG_IN_C])
def test_a_hang_is_a_timeout_and_the_next_answer_is_graded(grader, answer):
    begin = time.monotonic()
    assert grader.pool.ask(wire.JUDGE_PLAIN, "73", answer)[0] is Verdict.TIMEOUT
    assert time.monotonic() - begin < 5 * crowd()
    assert grader.grade(response("146/2"), "73").reward == 1


def worker_peak_mib(pid: int) -> int:
    """The most memory a grading process has had resident; 0 for any other process, or none.

    A child that has not yet executed its program shows its parent's memory: it does not count.
    """
    try:
        program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    peak = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(peak[1]) >> 10 if peak and slots._WORKER.encode() in program else 0


def test_a_memory_bomb_stays_within_the_limit(own_grader):
    own_grader.grade(response("1/2"), "0.50")  # the keeper and a worker run
    peak = [0]

    def watch():
        while not done.is_set():
            for pid in own_grader.pool.pids:
                peak.append(worker_peak_mib(pid))
            time.sleep(0.02)

    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        verdict = own_grader.pool.ask(wire.JUDGE_PLAIN, "73", MEMORY_BOMB)[0]
    finally:
        done.set()
        watcher.join()
    assert verdict is not Verdict.RIGHT
    assert 20 < max(peak) <= 512  # the workers were seen: their modules alone take more than 20
    assert own_grader.grade(response("146/2"), "73").reward == 1


def test_slow_answers_delay_no_others(own_grader):
    own_grader.grade(response("1/2"), "0.50")  # warm
    with ThreadPoolExecutor(2) as threads:
        slow = [threads.submit(own_grader.pool.ask, wire.JUDGE_PLAIN, str(n), HANG_IN_C) for n in range(2)]
        begin = time.monotonic()
        for n in range(20):
            assert own_grader.grade(response(f"{n}/2"), f"\\frac{{{n}}}{{2}}").reward == 1
        quick = time.monotonic() - begin
        assert {future.result()[0] for future in slow} == {Verdict.TIMEOUT}
        assert time.monotonic() - begin > quick


def test_killing_workers_at_random_changes_no_verdict():
    rows = [(f"{n}/7", f"\\frac{{{n if n % 3 else n + 1}}}{{7}}") for n in range(400)]
    with Grader(workers=2) as undisturbed, ThreadPoolExecutor(4) as threads:
        expected = list(threads.map(lambda row: undisturbed.grade(response(row[0]), row[1]).verdict, rows))
    chance, stop, killed = random.Random(7), threading.Event(), []

    with Grader(workers=2) as disturbed, ThreadPoolExecutor(4) as threads:
        disturbed.grade(response("1/2"), "0.50")

        def kill():
            while not stop.is_set():
                victims = disturbed.pool.pids
                if victims:
                    killed.append(chance.choice(victims))
                    try:
                        os.kill(killed[-1], signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                stop.wait(0.1)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        try:
            got = list(threads.map(lambda row: disturbed.grade(response(row[0]), row[1]).verdict, rows))
        finally:
            stop.set()
            killer.join()
        assert disturbed.grade(response("146/2"), "73").reward == 1  # the pool has not shrunk
    assert got == expected
    assert killed


def test_an_answer_whose_worker_dies_twice_is_crashed():
    keeper = Keeper(512, 1.5)
    slot = Slot(keeper, 30.0)
    try:
        slot.ask(wire.JUDGE, "1", "2")
        asked, stop = threading.Event(), threading.Event()

        def abort():  # as a crash of its own would: SIGABRT is not a kill from outside
            asked.wait()
            while not stop.is_set():
                for pid in children(keeper.pid) if keeper.pid else []:
                    try:
                        os.kill(pid, signal.SIGABRT)
                    except ProcessLookupError:
                        pass
                time.sleep(0.3)

        killer = threading.Thread(target=abort, daemon=True)
        killer.start()
        asked.set()
        try:
            verdict = slot.ask(wire.JUDGE_PLAIN, "73", HANG_IN_C)[0]
        finally:
            stop.set()
            killer.join()
        assert verdict is Verdict.CRASHED
        assert slot.ask(wire.JUDGE, "1/2", "0.5")[0] is Verdict.RIGHT
    finally:
        slot.kill()
        keeper.close()


def test_a_frozen_worker_is_replaced_after_the_wall_limit():
    keeper = Keeper(512, 1.5)
    slot = Slot(keeper, 1.0 + crowd())  # the next worker must answer within it
    try:
        slot.ask(wire.JUDGE, "1", "2")
        for pid in children(keeper.pid):
            os.kill(pid, signal.SIGSTOP)
        assert slot.ask(wire.JUDGE, "1/2", "0.5")[0] is Verdict.RIGHT
    finally:
        slot.kill()
        keeper.close()


def test_a_frozen_keeper_is_replaced_too():
    keeper = Keeper(512, 1.5)
    slot = Slot(keeper, 1.0 + crowd())  # the next worker must answer within it
    try:
        slot.ask(wire.JUDGE, "1", "2")
        for pid in (keeper.pid, *children(keeper.pid)):
            os.kill(pid, signal.SIGSTOP)
        assert slot.ask(wire.JUDGE, "1/2", "0.5")[0] is Verdict.RIGHT
    finally:
        slot.kill()
        keeper.close()
