"""A process, those below it and their shared memory: what one that was killed or hangs leaves must go."""

import json
import os
import time
from pathlib import Path

import psutil

SHARED_MEMORY = "/dev/shm/"


def shared_memory(pid: int) -> set[str]:
    """The files in shared memory that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {words[5] for line in lines if len(words := line.split()) == 6 and words[5].startswith(SHARED_MEMORY)}


def ended(process: psutil.Process) -> bool:
    """Whether it runs no more; one that nobody has waited for has ended, too."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Family:
    """This process and its descendants, on record at ``path``, where a later start or the run's end finds them.

    Ray's workers and vLLM's own process end by themselves when their parent dies, but not while they are stopped or
    stuck in a kernel; and no process that is killed removes its shared memory.
    """

    BURY_S = 30

    def __init__(self, path: str):
        self.path = Path(f"{path}.json")

    def record(self) -> None:
        """Note all descendants that there are now, and Python's shared memory segments that they have made."""
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        segments = {name for process in processes for name in shared_memory(process.pid)}
        note = {
            "processes": [[process.pid, process.create_time()] for process in processes],
            "segments": sorted(name for name in segments if name.startswith(f"{SHARED_MEMORY}psm_")),
        }
        self.path.write_text(json.dumps(note))

    def bury(self) -> None:
        """Kill what an earlier start has left, and remove its segments."""
        try:
            note = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return
        left = []
        for pid, created in note["processes"]:
            try:
                process = psutil.Process(pid)
                if abs(process.create_time() - created) < 1 and pid != os.getpid():  # not another that has its number
                    process.kill()
                    left.append(process)
            except psutil.NoSuchProcess:
                pass
        end = time.monotonic() + self.BURY_S
        while not all(map(ended, left)) and time.monotonic() < end:
            time.sleep(0.05)
        for segment in note["segments"]:
            Path(segment).unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
