"""A worker that is killed from outside says nothing about the answer it works on."""

import os
import signal
import threading
import time

from openrlhf_orz.reward import Grader

GOLD = r"\begin{pmatrix} 0 \\ 1/11 \end{pmatrix}"
SLOW = r"\cos(6^\circ)\sin(12^\circ)\csc(18^\circ)"  # keeps a worker busy long enough to be killed


def test_an_answer_survives_many_kills_of_its_worker():
    kills = 12  # above any number of tries that would do for one fault
    with Grader(workers=1) as grader:
        calm = grader.compare(SLOW, GOLD)
    with Grader(workers=1) as grader:
        grader.compare("7", "8.5")
        verdicts = []
        work = threading.Thread(target=lambda: verdicts.append(grader.compare(SLOW, GOLD)))
        work.start()
        killed, deadline = set(), time.monotonic() + 60
        while len(killed) < kills and work.is_alive() and time.monotonic() < deadline:
            for pid in grader.pool.pids[1:]:
                if pid not in killed:
                    time.sleep(0.01)
                    try:
                        os.kill(pid, signal.SIGKILL)
                        killed.add(pid)
                    except ProcessLookupError:
                        pass
        work.join()
    assert len(killed) == kills, "the answer was too quick to be disturbed"
    assert verdicts == [calm]
