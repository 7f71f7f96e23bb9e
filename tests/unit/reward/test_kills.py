"""Workers that die while they work: by kills from outside, which say nothing about the answer, or by themselves."""

import os
import signal
import threading
import time

import pytest

from openrlhf_orz.reward import Grader

GOLD = r"\begin{pmatrix} 0 \\ 1/11 \end{pmatrix}"
SLOW = r"\cos(6^\circ)\sin(12^\circ)\csc(18^\circ)"  # keeps a worker busy long enough to be killed


@pytest.mark.parametrize(
    "sign, kills",
    [
        (signal.SIGKILL, 12),  # above any number of tries that would do for one fault
        (signal.SIGABRT, 1),  # a fault of its own, which may be chance once
    ],
)
def test_an_answer_survives_deaths_of_its_worker(grader, sign, kills):
    calm = grader.compare(SLOW, GOLD)
    with Grader(workers=1) as disturbed:
        disturbed.compare("7", "8.5")
        verdicts = []
        work = threading.Thread(target=lambda: verdicts.append(disturbed.compare(SLOW, GOLD)))
        work.start()
        killed, deadline = set(), time.monotonic() + 60
        while len(killed) < kills and work.is_alive() and time.monotonic() < deadline:
            for pid in disturbed.pool.pids[1:]:
                if pid not in killed and len(killed) < kills:
                    time.sleep(0.01)
                    try:
                        os.kill(pid, sign)
                        killed.add(pid)
                    except ProcessLookupError:
                        pass
        work.join()
    assert len(killed) == kills, "the answer was too quick to be disturbed"
    assert verdicts == [calm]
