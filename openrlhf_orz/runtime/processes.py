"""Records of processes, so that what a killed or hanging process leaves behind can be removed.

Ray's workers and vLLM's own process end by themselves when their parent dies, but not while they are stopped or stuck
in the kernel. No process that is killed removes its shared memory.
"""

import contextlib
import json
import os
import re
import stat
import time
from pathlib import Path

import psutil

from openrlhf_orz.runtime.files import write_aside

SHARED_MEMORY = "/dev/shm/"


def shared_memory(pid: int) -> set[str]:
    """The files in shared memory that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {words[5] for line in lines if len(words := line.split()) == 6 and words[5].startswith(SHARED_MEMORY)}


def ended(process: psutil.Process) -> bool:
    """Whether a process runs no more; a zombie counts as ended."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def is_segment(name: str) -> bool:
    """Whether a path is that of a segment of Python's shared memory."""
    return re.fullmatch(rf"{SHARED_MEMORY}psm_\w+", name) is not None


def pid_namespace() -> int:
    """The namespace in which this process's numbers of processes hold."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


class ProcessRecord:
    """A file, ``path``.json, that lists a process, its descendants and their shared memory.

    A later start of the process, or the end of the run, reads it and removes what is left.
    """

    KILL_S = 30  # how long to wait until killed processes have ended

    def __init__(self, path: str):
        self.path = Path(f"{path}.json")

    def write(self) -> None:
        """List this process, its descendants of now, and the shared memory that Python has made for them."""
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        segments = {name for process in processes for name in shared_memory(process.pid)}
        note = {
            "namespace": pid_namespace(),
            "processes": [[process.pid, process.create_time()] for process in processes],
            "segments": sorted(filter(is_segment, segments)),
        }
        with write_aside(self.path) as stream:
            json.dump(note, stream)

    def _read(self) -> tuple[list[psutil.Process], list[str]]:
        """The processes on the list that still run, and the segments; empty for what is no record of this user."""
        try:
            with open(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as stream:
                found = os.fstat(stream.fileno())
                if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
                    return [], []
                note = json.load(stream)
            listed = [(int(pid), float(created)) for pid, created in note["processes"]]
            segments = [str(name) for name in note["segments"] if is_segment(str(name))]
            here = note["namespace"] == pid_namespace()
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return [], []
        left = []
        for pid, created in listed if here else []:  # numbers of another container mean other processes
            with contextlib.suppress(psutil.Error, ValueError, OverflowError):
                process = psutil.Process(pid)
                # else another process has its number
                if abs(process.create_time() - created) < 1 and pid != os.getpid() and not ended(process):
                    left.append(process)
        return left, segments

    def alive(self) -> bool:
        """Whether a process on the list still runs, other than this one."""
        return bool(self._read()[0])

    def kill_leftovers(self) -> None:
        """Kill the processes on the list that still run, and remove the shared memory and the record."""
        left, segments = self._read()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        end = time.monotonic() + self.KILL_S
        while not all(map(ended, left)) and time.monotonic() < end:
            time.sleep(0.05)
        for segment in segments:
            with contextlib.suppress(OSError):
                if os.lstat(segment).st_uid == os.getuid():
                    os.unlink(segment)
        self.delete()

    def delete(self) -> None:
        """Remove the record; the processes are left as they are."""
        with contextlib.suppress(OSError):
            self.path.unlink()
