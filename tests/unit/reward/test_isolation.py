"""Workers that hang, bloat, freeze or are killed: verdicts stay the same, and others are not delayed."""

import os
import random
import re
import signal
import subprocess
import sys
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
from .processes import HANG_IN_C, children, cpu_seconds, wait_for

ROOT = Path(__file__).parents[3]
# guards are asked first, so what must reach a worker and hang there goes to the pool directly
HANG_IN_PYTHON = r"\sum_{k=1}^{10^7} \frac{1}{k^3+k+1}"
CPU_BUDGET = 1.5  # seconds, the Grader's default
MEMORY_BOMB = r"\sin^{10^9}(x)"


# The alarm comes at the budget; the kernel kills 1 to 2 s later. CPU time does not depend on the machine's load.
@pytest.mark.parametrize("answer, latest", [(HANG_IN_PYTHON, CPU_BUDGET + 0.9), (HANG_IN_C, 2.5 * CPU_BUDGET)])
def test_a_hang_is_a_timeout_at_its_budget_and_the_next_answer_is_graded(grader, answer, latest):
    grader.grade(response("1/2"), "0.50")  # the keeper runs
    keeper, begin = grader.pool.pids[0], time.monotonic()
    before, used = set(children(keeper)), cpu_seconds(keeper)
    assert grader.pool.ask(wire.JUDGE_PLAIN, "73", answer)[0] is Verdict.TIMEOUT
    assert time.monotonic() - begin < 5 * crowd()
    assert wait_for(lambda: not before <= set(children(keeper)))  # its time is then the keeper's
    assert 0.9 * CPU_BUDGET < cpu_seconds(keeper) - used < latest
    assert grader.grade(response("146/2"), "73").reward == 1


def test_an_alarm_that_is_swallowed_comes_again():
    program = (
        "from openrlhf_orz.reward.workers.worker import Budget, OutOfTime\n"
        "def spin():\n"
        "    while True: sum(range(1000))\n"
        "budget, swallowed = Budget(0.05), 0\n"
        "with budget:\n"
        "    while swallowed < 3:\n"
        "        try: spin()\n"
        "        except OutOfTime: swallowed += 1\n"
        "print(swallowed, budget.spent)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "3 True\n", done.stderr


def test_a_c_call_that_heeds_no_alarm_is_killed_by_the_kernel():
    program = "from openrlhf_orz.reward.workers.worker import Budget\nwith Budget(0.2):\n    sum(range(10**12))"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == -signal.SIGXCPU
    assert 1.2 < usage.ru_utime + usage.ru_stime < 3.2  # start, budget, 1 s of grace and up to 1 s of rounding


def test_a_worker_that_was_interrupted_is_replaced():
    keeper = Keeper(512, 0.3)
    slot = Slot(keeper, 30.0)
    try:
        assert slot.ask(wire.JUDGE, "1/2", "0.5")[0] is Verdict.RIGHT
        first = slot.pid
        assert slot.ask(wire.JUDGE, "1", "2/3")[0] is Verdict.WRONG
        assert slot.pid == first
        assert slot.ask(wire.JUDGE_PLAIN, "73", HANG_IN_PYTHON)[0] is Verdict.TIMEOUT
        assert slot.ask(wire.JUDGE, "3/2", "1.5")[0] is Verdict.RIGHT
        assert slot.pid != first
    finally:
        slot.kill()
        keeper.close()


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
        assert not any(future.done() for future in slow)
        quick = time.monotonic() - begin
        assert {future.result()[0] for future in slow} == {Verdict.TIMEOUT}
        assert time.monotonic() - begin > quick


def test_killing_workers_at_random_changes_no_verdict(grader):
    rows = [(f"{n}/7", f"\\frac{{{n if n % 3 else n + 1}}}{{7}}") for n in range(400)]
    with ThreadPoolExecutor(4) as threads:
        expected = list(threads.map(lambda row: grader.grade(response(row[0]), row[1]).verdict, rows))
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
        asked, stop, rounds = threading.Event(), threading.Event(), [0]

        def abort():  # as a crash of its own would: SIGABRT is not a kill from outside
            asked.wait()
            while not stop.is_set():
                rounds[0] += 1
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
        assert rounds[0] < 50  # an answer may survive 99 kills from outside
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
