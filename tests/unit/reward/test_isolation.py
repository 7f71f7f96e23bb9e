"""The workers: killed, frozen, starved and abandoned, and the same verdicts all the while."""

import asyncio
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

from openrlhf_orz.reward import Grader, Verdict, wire
from openrlhf_orz.reward import slot as slots
from openrlhf_orz.reward.slot import Keeper, Slot

from .conftest import crowd, response

ROOT = Path(__file__).parents[3]
# guards are asked first, so what must reach a worker and hang there goes to the pool directly
HANG_IN_PYTHON = r"\sum_{k=1}^{10^7} \frac{1}{k^3+k+1}"
HANG_IN_C = r"9^{9^{9}}"
MEMORY_BOMB = r"\sin^{10^9}(x)"


def children(pid: int) -> list[int]:
    """Process ids of all descendants of ``pid``."""
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *children(int(child))]
    except OSError:  # it ended meanwhile
        pass
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds * crowd()
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def own_grader():
    with Grader(workers=2) as made:
        yield made


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


def test_workers_are_recycled(monkeypatch):
    monkeypatch.setattr(slots, "RECYCLE", 3)
    keeper = Keeper(512, 1.5)
    slot = Slot(keeper, 30.0)
    try:
        pids = set()
        for n in range(10):
            assert slot.ask(wire.JUDGE, f"{n}/2", f"{n}.0/2")[0] is Verdict.RIGHT
            pids |= set(children(keeper.pid))
        assert len(pids) >= 3
    finally:
        slot.kill()
        keeper.close()


def test_workers_end_with_a_parent_that_is_killed():
    program = (
        "import sys, time; from openrlhf_orz.reward import Grader, wire; import threading\n"
        "g = Grader(workers=2); g.grade('<answer>\\\\boxed{1}</answer>', '1.0')\n"
        "threading.Thread(target=g.pool.ask, args=(wire.JUDGE_PLAIN, '73', '9^{9^{9}}'), daemon=True).start()\n"
        "time.sleep(0.3); print('up', flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "up\n"
    workers = children(parent.pid)
    assert len(workers) >= 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_for(lambda: not any(map(alive, workers)))


def test_a_missing_parser_is_said_and_not_graded():
    """Every answer would be 0 otherwise, silently."""
    program = (
        "import sys; from openrlhf_orz.reward import Grader, slot\n"
        "slot.sys = type('fake', (), {'executable': sys.argv[1]})\n"
        "try: Grader(workers=1).grade('<answer>\\\\boxed{1}</answer>', '2')\n"
        "except RuntimeError as error: print('cannot start' in str(error))"
    )
    done = subprocess.run([sys.executable, "-c", program, "/bin/false"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_equal_questions_are_asked_once(own_grader):
    asked = []
    original = own_grader.pool._run
    own_grader.pool._run = lambda *question: asked.append(question) or original(*question)
    with ThreadPoolExecutor(16) as threads:
        grades = list(threads.map(lambda n: own_grader.grade(response(f"{n % 4}/2"), "0.50"), range(64)))
    assert len(asked) == 4
    assert sum(grade.reward for grade in grades) == 16


def test_an_event_loop_that_grades_keeps_ticking(grader):
    grader.grade(response("1/2"), "0.50")

    async def run() -> float:
        longest, stop = 0.0, False

        async def tick():
            nonlocal longest
            while not stop:
                begin = time.perf_counter()
                await asyncio.sleep(0.001)
                longest = max(longest, time.perf_counter() - begin - 0.001)

        ticking = asyncio.create_task(tick())
        answers = [f"{n}/3" for n in range(60)] + ["9" * 1_000_000, r"\boxed{" * 10_000, "(1,(1,(1,(1,(1,1)))))"]
        asks = [asyncio.to_thread(grader.grade, response(a), "73") for a in answers]
        asks.append(asyncio.to_thread(grader.pool.ask, wire.JUDGE_PLAIN, "7", HANG_IN_C))
        await asyncio.gather(*asks)
        stop = True
        await ticking
        return longest

    # 20 ms on idle cores (benchmarks/grader.py); a crowded machine delays any process
    assert asyncio.run(run()) < 0.1 * crowd()


def test_a_forked_child_gets_its_own_workers(own_grader):
    own_grader.grade(response("1/2"), "0.50")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = int(own_grader.grade(response("3/2"), "1.50").reward != 1)
            own_grader.close()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert own_grader.grade(response("5/2"), "2.50").reward == 1


def test_one_pool_per_node_survives_its_death_and_ends_with_its_clients(monkeypatch):
    monkeypatch.setenv("ORZ_GRADER_SCOPE", f"test-{os.getpid()}")
    with Grader(workers=1, shared=True) as one, Grader(workers=1, shared=True) as two:
        assert one.grade(response("1/2"), "0.50").reward == 1
        assert two.grade(response("1/2"), "0.50").reward == 1
        servers = [grader.pool._started for grader in (one, two) if grader.pool._started]
        assert len(servers) == 1  # the second found it running
        os.kill(servers[0].pid, signal.SIGKILL)
        assert two.grade(response("3/2"), "1.50").reward == 1
        last = next(
            grader.pool._started
            for grader in (two, one)
            if grader.pool._started and grader.pool._started.poll() is None
        )
        one.close()
        two.close()
        assert wait_for(lambda: last.poll() is not None, 30)
