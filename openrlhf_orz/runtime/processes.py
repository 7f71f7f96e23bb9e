"""Records of processes, so that what a killed or hanging process leaves behind can be removed.

Ray's workers and vLLM's own process end by themselves when their parent dies, but not while they are stopped or stuck
in the kernel. No process that is killed removes its shared memory.
"""

import glob
import json
import os
import re
import shutil
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
    """Whether a process runs no more; a zombie counts as ended."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


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
            "processes": [[process.pid, process.create_time()] for process in processes],
            "segments": sorted(name for name in segments if name.startswith(f"{SHARED_MEMORY}psm_")),
        }
        self.path.write_text(json.dumps(note))

    def kill_leftovers(self) -> None:
        """Kill the processes on the list that still run, and remove the shared memory and the record."""
        try:
            note = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return
        left = []
        for pid, created in note["processes"]:
            try:
                process = psutil.Process(pid)
                if abs(process.create_time() - created) < 1 and pid != os.getpid():  # else another process has its pid
                    process.kill()
                    left.append(process)
            except psutil.NoSuchProcess:
                pass
        end = time.monotonic() + self.KILL_S
        while not all(map(ended, left)) and time.monotonic() < end:
            time.sleep(0.05)
        for segment in note["segments"]:
            Path(segment).unlink(missing_ok=True)
        self.delete()

    def delete(self) -> None:
        """Remove the record; the processes are left as they are."""
        self.path.unlink(missing_ok=True)


def clean_leftovers(folders: tuple[str, ...]) -> list[str]:
    """Remove what killed runs have left in ``folders``, end their processes, and return the paths removed."""
    removed = []
    for path in (path for folder in folders for path in glob.glob(f"{folder}/orz-*")):
        match = re.match(r"orz-(?:ray-)?(\d+)-[0-9a-f]{8}", os.path.basename(path))
        if not match or psutil.pid_exists(int(match[1])) or os.lstat(path).st_uid != os.getuid():
            continue
        if path.endswith(".json"):
            ProcessRecord(path.removesuffix(".json")).kill_leftovers()
        remove_path(path)
        removed.append(path)
    return removed


def remove_path(path: str) -> None:
    """Remove a file or a directory, if it is there."""
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        Path(path).unlink(missing_ok=True)
