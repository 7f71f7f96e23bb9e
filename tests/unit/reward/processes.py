"""Keeping a process busy, asking /proc about it, and waiting."""

import os
import time
from pathlib import Path

from .conftest import crowd

HANG_IN_C = r"9^{9^{9}}"  # for a worker that is asked directly: guards refuse it before


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


def cpu_seconds(pid: int) -> float:
    """CPU seconds used so far by ``pid``, its descendants, and those of them that have ended."""
    total = 0
    for process in (*children(pid), pid):  # in this order none is missed that is collected meanwhile
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
            total += sum(map(int, fields[11:15]))
        except OSError:  # it ended meanwhile
            pass
    return total / os.sysconf("SC_CLK_TCK")


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
