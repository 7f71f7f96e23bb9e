"""How long workers and the node's pool live, and which processes they end with."""

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openrlhf_orz.reward import Grader, Verdict
from openrlhf_orz.reward.workers import node, wire
from openrlhf_orz.reward.workers import slot as slots
from openrlhf_orz.reward.workers.node import NodePool
from openrlhf_orz.reward.workers.slot import Keeper, Slot

from .conftest import response
from .processes import HANG_IN_C, alive, children, wait_for

ROOT = Path(__file__).parents[3]


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
        "import threading, time\n"
        "from openrlhf_orz.reward import Grader\nfrom openrlhf_orz.reward.workers import wire\n"
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
        "import sys\nfrom openrlhf_orz.reward import Grader\nfrom openrlhf_orz.reward.workers import slot\n"
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
    """Grading takes the loop's process little of its own time between two ticks, however crowded the machine is."""
    grader.grade(response("1/2"), "0.50")

    async def run() -> tuple[float, int]:
        longest, ticks, stop = 0.0, 0, False

        async def tick():
            nonlocal longest, ticks
            while not stop:
                begin = time.process_time()
                await asyncio.sleep(0.001)
                longest, ticks = max(longest, time.process_time() - begin), ticks + 1

        ticking = asyncio.create_task(tick())
        answers = [f"{n}/3" for n in range(60)] + ["9" * 1_000_000, r"\boxed{" * 10_000, "(1,(1,(1,(1,(1,1)))))"]
        asks = [asyncio.to_thread(grader.grade, response(a), "73") for a in answers]
        asks.append(asyncio.to_thread(grader.pool.ask, wire.JUDGE_PLAIN, "7", HANG_IN_C))
        await asyncio.gather(*asks)
        stop = True
        await ticking
        return longest, ticks

    gc.collect()
    gc.disable()  # one of all that the tests before have left takes a second
    try:
        longest, ticks = asyncio.run(run())
    finally:
        gc.enable()
    # 20 ms on idle cores (benchmarks/grader.py). The last answer alone keeps a worker at its limit of CPU time:
    # a loop that waited for it would have ticked once
    assert longest < 0.1 and ticks > 15


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
    monkeypatch.setattr(node, "GRACE_SECONDS", 0.3)
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
        time.sleep(1.0)  # longer than the grace
        assert last.poll() is None  # two is still connected
        two.close()
        assert wait_for(lambda: last.poll() is not None, 30)


def serve_once(address: str, connections: int, reply: bytes) -> threading.Thread:
    """A stand-in for the node's pool: so many connections, each closed after ``reply`` to its first question."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen()

    def run():
        with listener:
            for _ in range(connections):
                channel, _ = listener.accept()
                with channel:
                    if channel.recv(2 * wire.MAX_MESSAGE_BYTES) and reply:
                        channel.send(reply)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_node_pool_that_cannot_start_workers_says_so_and_one_that_dies_again_and_again_gives_up(monkeypatch):
    monkeypatch.setenv("ORZ_GRADER_SCOPE", f"test-{os.getpid()}-fake")
    pool = NodePool(1, 512, 1.5, 30.0)
    served = serve_once(pool._address, 1, wire.REPLY.pack(0, wire.CANNOT_START, 0) + b"no parser")
    with pytest.raises(RuntimeError, match="no parser"):
        pool.ask(wire.JUDGE, "1", "2")
    served.join()
    pool.close()
    served = serve_once(pool._address, node.TRIES, b"")
    assert pool.ask(wire.JUDGE, "1", "2")[0] is Verdict.CRASHED
    served.join(10)
    assert not served.is_alive()  # it has been asked so often
    assert pool._started is None


def test_another_users_process_at_the_pools_address_stops_nobody(monkeypatch, capfd):
    """The name follows from what everybody knows; a process of its own grades then."""
    monkeypatch.setenv(node.SCOPE_VARIABLE, os.urandom(8).hex())
    pool = NodePool(1, 512, 1.5, 30.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as squatter:
        squatter.bind(pool._address)
        squatter.listen()
        monkeypatch.setattr(node, "_same_user", lambda channel: False)
        try:
            assert pool.ask(wire.JUDGE, "1/2", "0.5")[0] is Verdict.RIGHT
            assert pool.ask(wire.JUDGE, "1/2", "0.6")[0] is Verdict.WRONG
        finally:
            pool.close()
    assert capfd.readouterr().err.count("another user's") == 1
