"""The case table, and graders with warm workers."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from openrlhf_orz.reward import Grader


@dataclass(frozen=True)
class Case:
    """One line of cases.txt. ``hack`` marks a wrong answer that games the comparison."""

    kind: str
    gold: str
    answer: str
    right: bool
    hack: bool


def read_cases() -> list[Case]:
    cases, kind = [], ""
    for line in (Path(__file__).parent / "cases.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            kind = line.strip("[]")
        elif line[:2] in ("= ", "! ", "~ "):
            gold, answer = line[2:].split(" || ")
            cases.append(Case(kind, gold, answer, line[0] == "=", line[0] == "~"))
    return cases


def response(answer: str) -> str:
    """A response with ``answer`` in its box."""
    return f"so it is </think> <answer> \\boxed{{{answer}}} </answer>"


def crowd() -> float:
    """How many times longer than alone work takes now; wall-clock bounds are scaled by it.

    The load average lags behind and does not know a container's share, so a piece of work is timed too.
    """
    wall, cpu = time.perf_counter(), time.thread_time()
    while time.thread_time() - cpu < 0.05:
        pass
    stretch = (time.perf_counter() - wall) / 0.05
    return max(1.0, stretch, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


@pytest.fixture(scope="session")
def grader():
    with Grader(workers=2) as made:
        yield made


@pytest.fixture(scope="session")
def plain_grader():
    with Grader(workers=2, plain=True) as made:
        yield made


@pytest.fixture
def own_grader():
    with Grader(workers=2) as made:
        yield made
