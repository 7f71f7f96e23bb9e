"""The driver's watch over the processes that steer the run: one that shows no life ends the run, as if it had died."""

import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from openrlhf_orz.runtime.heartbeat import folder
from openrlhf_orz.runtime.watchdog import PhaseTimeout, write_stacks

LOOK_S = 1.0


class Pulse:
    """For how long each file of a folder has not been touched, by this process's own clock."""

    def __init__(self, path: Path):
        self.path = path
        self.seen: dict[str, tuple[float, float]] = {}  # of each file: its time, and ours when that was new
        self.looked: float | None = None

    def silent(self, seconds: float, now: float) -> list[str]:
        """Names of the files that have not changed for ``seconds`` before ``now``.

        Who has not looked for half of that (five looks at least) was itself stopped, and counts anew.
        """
        if self.looked is not None and now - self.looked > max(seconds / 2, 5 * LOOK_S):
            self.seen.clear()
        self.looked = now
        found = {}
        for entry in os.scandir(self.path):
            changed = entry.stat().st_mtime
            before = self.seen.get(entry.name)
            found[entry.name] = before if before and before[0] == changed else (changed, now)
        self.seen = found
        return sorted(name for name, (_, since) in found.items() if now - since > seconds)


@contextmanager
def watched(args, stopping):
    """Raise PhaseTimeout if a process that steers the run shows no life for ``--orz.trainer_timeout_s``; 0: never."""
    path, seconds = folder(args), args.orz.trainer_timeout_s
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    done, message = threading.Event(), []

    def watch():
        pulse = Pulse(path)
        while not done.wait(LOOK_S):
            try:
                silent = pulse.silent(seconds, time.monotonic())
            except OSError:
                continue  # a network file system that does not answer says nothing about the trainer
            if silent:
                break
        else:
            return
        report = Path(args.orz.run_dir) / "logs" / f"hang-trainer-{time.strftime('%Y%m%d-%H%M%S')}.txt"
        write_stacks(report)
        message.append(
            f"{', '.join(silent)} has shown no life for {seconds:g} s (--orz.trainer_timeout_s): stacks of this node's"
            f" processes in {report}"
        )
        stopping.asked = True  # nobody can be asked to stop well: the signal interrupts at once
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    watcher = threading.Thread(target=watch, daemon=True, name="watch-trainer")
    if seconds:
        watcher.start()
    try:
        yield
    except KeyboardInterrupt:
        if message:
            raise PhaseTimeout(message[0]) from None
        raise
    finally:
        done.set()
        shutil.rmtree(path, ignore_errors=True)
