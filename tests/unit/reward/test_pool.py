"""The pool: turns go in order of arrival, and answers are remembered unless something failed."""

import threading
import time

import pytest

from openrlhf_orz.reward import Verdict
from openrlhf_orz.reward.workers import pool as pools
from openrlhf_orz.reward.workers.pool import Pool, Turns


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


def scripted(outcomes: list) -> tuple[Pool, list]:
    """A pool whose workers give these outcomes in turn, and the questions that reach them."""
    pool, asked = Pool(1, 512, 1.5, 30.0), []

    def run(*question):
        asked.append(question)
        outcome = outcomes[len(asked) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    pool._run = run
    return pool, asked


def test_a_verdict_is_remembered_but_not_a_crash_or_an_error():
    crash, right = (Verdict.CRASHED, 0), (Verdict.RIGHT, 1)
    pool, asked = scripted([crash, RuntimeError("no workers"), right])
    assert pool.ask(0, "1", "2") == crash
    with pytest.raises(RuntimeError, match="no workers"):
        pool.ask(0, "1", "2")
    assert [pool.ask(0, "1", "2") for _ in range(3)] == [right] * 3
    assert len(asked) == 3


def test_task_reference_and_answer_tell_questions_apart():
    pool, asked = scripted([(Verdict.RIGHT, n) for n in range(4)])
    questions = [(0, "1", "2"), (1, "1", "2"), (0, "2", "1"), (0, "12", "")]
    assert [pool.ask(*question)[1] for question in questions] == [0, 1, 2, 3]
    assert asked == questions


def test_the_oldest_question_is_forgotten(monkeypatch):
    monkeypatch.setattr(pools, "REMEMBERED", 2)
    pool, asked = scripted([(Verdict.RIGHT, 0)] * 4)
    for answer in ("a", "b", "c", "b", "c", "a"):
        pool.ask(0, "1", answer)
    assert [question[2] for question in asked] == ["a", "b", "c", "a"]
