"""Hangs become errors: a limit for each phase of a step, and the driver's watch over the processes that steer the run.

``phase_limit`` runs inside the trainer. It is of no use when the trainer itself is stopped, or frozen on another
machine. So each process that steers the run touches a file (``start_heartbeat``), and the driver ends the run when one
of these files is no longer touched (``require_heartbeats``). Both write the stacks of the run's processes to
``logs/hang-*``, a file for each machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil

from openrlhf_orz.runtime.nodes import ask_agents
from openrlhf_orz.runtime.private import require_private
from openrlhf_orz.runtime.processes import ProcessRecord

GRACE_S = 30  # for the main thread to notice; a library may hold it for good
HEARTBEAT_S = 2.0
LOOK_S = 1.0  # from one look of the driver at the heartbeats to the next

# Wakes the main thread. SIGINT cannot: Ray starts its processes with SIGINT blocked (ray/_private/services.py,
# preexec_fn), its workers inherit that and nothing unblocks it; and a job started with & or nohup ignores SIGINT.
# To unblock it would be worse: Ctrl-C would reach the trainer, which shall finish its step.
WAKE = signal.SIGUSR2


class RunFailed(RuntimeError):
    """The run cannot go on; the message says all that there is to say."""


class PhaseTimeout(RunFailed):
    """A phase took longer than its flag allows; the message names flag, phase and the file with the stacks."""


# ---- stacks


def stack(pid: int) -> str:
    """What a process is doing, by py-spy, or from /proc where py-spy may not look."""
    tool = Path(sys.executable).with_name("py-spy")
    try:
        command = [str(tool), "dump", "--nonblocking", "--pid", str(pid)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=20)
        if result.returncode == 0:
            return result.stdout
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    try:
        state = psutil.Process(pid)
        doing = Path(f"/proc/{pid}/wchan").read_text() or "running"
        return f"Process {pid}: {' '.join(state.cmdline())[:80]} [{state.status()}], in {doing} (no stack: {reason})\n"
    except (psutil.Error, OSError):
        return f"Process {pid} has ended\n"


def involved() -> list[int]:
    """This process and the others of its Ray node that train, generate or steer."""
    me = psutil.Process()
    try:
        others = me.parent().children(recursive=True)
    except psutil.Error:
        others = []
    found = [me.pid]
    for process in others:
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if process.pid != me.pid and ("Actor" in line or "VLLM" in line or "Trainer" in line):
            found.append(process.pid)
    return found


def write_stacks(path: Path) -> None:
    """Write the stacks of all processes involved to ``path``. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(stack(pid) for pid in involved()))


# ---- limits


def hang(text: str, name: str, logs: Path) -> PhaseTimeout:
    """The error that says ``text``, after the stacks are written to ``logs`` and the text to this process's log."""
    path = logs / f"hang-{name}-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    error = PhaseTimeout(f"{text}: stacks of its processes in {path}")
    try:
        write_stacks(path)
    except OSError as failure:
        print(f"cannot write {path}: {failure}", file=sys.stderr, flush=True)
    ask_agents("write_stacks", path, named=True)
    print(error, file=sys.stderr, flush=True)
    return error


@contextmanager
def watched(
    find_failure: Callable[[threading.Event], Exception | None], name: str, grace_s: float | None = None
) -> Iterator[None]:
    """Raise in this (the main) thread what ``find_failure`` finds while the body runs.

    Args:
        find_failure: runs in a thread; takes an event, which is set when the body has ended, and returns the error,
            or None once the event is set.
        name: of the thread.
        grace_s: this process exits if the body has not ended so long after the interrupt; None: it never does.
    """
    done, failures = threading.Event(), []

    def watch() -> None:
        failure = find_failure(done)
        if failure is None:
            return
        failures.append(failure)
        if done.is_set():
            return
        # a signal and not interrupt_main, which does not wake a thread that sleeps in the kernel
        signal.pthread_kill(threading.main_thread().ident, WAKE)
        if not done.wait(grace_s):
            os._exit(1)  # the driver learns that this process has died, and why from its log

    def interrupt(signum, frame) -> None:
        if failures and not done.is_set():
            raise KeyboardInterrupt  # the exception that Ray lets through its C++ code
        if callable(before):  # a limit around this one
            before(signum, frame)

    before = signal.signal(WAKE, interrupt)  # also where whoever started this process has had it ignored
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {WAKE})
    watcher = threading.Thread(target=watch, daemon=True, name=f"watch-{name}")
    watcher.start()
    try:
        yield
        done.set()
    except BaseException as error:
        done.set()
        if failures:
            raise failures[0] from error
        raise
    finally:
        if failures:
            watcher.join()  # its signal must not come when the handler has gone
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(WAKE, before or signal.SIG_DFL)


@contextmanager
def phase_limit(seconds: float, phase: str, flag: str, logs: str | Path) -> Iterator[None]:
    """Raise PhaseTimeout in this (the main) thread if the body takes more than ``seconds``.

    Args:
        phase: its name for the message.
        flag: which sets ``seconds``; 0 turns the limit off.
        logs: directory for the stacks.
    """
    if not seconds:
        yield
        return

    def find_hang(done: threading.Event) -> Exception | None:
        if done.wait(seconds):
            return None
        return hang(f"{phase} took more than {seconds:g} s (--orz.{flag})", phase, Path(logs))

    with watched(find_hang, phase, GRACE_S):
        yield


# ---- heartbeats


def heartbeat_folder(args: SimpleNamespace) -> Path:
    """The folder of the heartbeat files. It is empty when the trainer starts."""
    return Path(args.orz.run_dir) / ".alive"


def start_heartbeat(args: SimpleNamespace, name: str, every_s: float = HEARTBEAT_S) -> None:
    """Touch this process's file every ``every_s`` until the process ends or the driver has removed the file.

    The process is recorded, too: whoever ends a run in which it hangs can kill it.
    """
    require_private(args.run.scratch)
    ProcessRecord(f"{args.run.scratch}trainer-{os.getpid()}").write()
    path = heartbeat_folder(args) / f"{name}-{socket.gethostname()}-{os.getpid()}"
    path.parent.mkdir(parents=True, exist_ok=True)  # the benchmarks have no driver that makes it
    path.touch()

    def beat() -> None:
        while True:
            time.sleep(every_s)
            try:
                os.utime(path)
            except FileNotFoundError:
                return
            except OSError:  # a network file system that fails for a moment; the driver counts from the last success
                continue

    threading.Thread(target=beat, daemon=True, name="heartbeat").start()


class Heartbeats:
    """For how long each file of a folder has not been touched, by this process's clock."""

    def __init__(self, path: Path):
        self.path = path
        self.seen: dict[str, tuple[float, float]] = {}  # of each file: its time, and our time when we first saw it
        self.looked: float | None = None

    def stale(self, seconds: float, now: float) -> list[str]:
        """Names of the files that have not changed for more than ``seconds`` before ``now``. Raises OSError.

        If the last look is longer ago than half of that (and than five looks), this process was itself stopped, and
        all counts start again.
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
def require_heartbeats(args: SimpleNamespace) -> Iterator[None]:
    """Raise PhaseTimeout if a process that steers the run is silent for ``--orz.trainer_timeout_s``; 0: never."""
    path, seconds = heartbeat_folder(args), args.orz.trainer_timeout_s
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()

    def find_hang(done: threading.Event) -> Exception | None:
        heartbeats = Heartbeats(path)
        while not done.wait(LOOK_S):
            try:
                stale = heartbeats.stale(seconds, time.monotonic())
            except OSError:
                continue  # a network file system that does not answer says nothing about the trainer
            if stale:
                text = f"{', '.join(stale)} has shown no life for {seconds:g} s (--orz.trainer_timeout_s)"
                return hang(text, "trainer", Path(args.orz.run_dir) / "logs")
        return None

    try:
        if seconds:
            with watched(find_hang, "trainer"):
                yield
        else:
            yield
    finally:
        shutil.rmtree(path, ignore_errors=True)
