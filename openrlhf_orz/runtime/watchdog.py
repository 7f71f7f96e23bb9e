"""A phase that takes too long ends as an error that shows what every process of this node was doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil

GRACE_S = 30  # for the main thread to notice; a library may hold it for good


class PhaseTimeout(RuntimeError):
    """A phase took longer than its flag allows; the message names flag, phase and the file with the stacks."""


def stack(pid: int) -> str:
    """What a process is doing, by py-spy, or from /proc where that may not look."""
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
    """The stacks of all processes involved, into ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(stack(pid) for pid in involved()))


@contextmanager
def within(seconds: float, phase: str, flag: str, logs: str | Path):
    """Raise PhaseTimeout in this (the main) thread if the body takes more than ``seconds``.

    Args:
        phase: its name for the message.
        flag: which sets ``seconds``; 0 turns the watch off.
        logs: directory for the stacks.
    """
    if not seconds:
        yield
        return
    done, expired = threading.Event(), []
    path = Path(logs) / f"hang-{phase}-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    message = f"{phase} took more than {seconds:g} s (--orz.{flag}): stacks of this node's processes in {path}"

    def watch():
        if done.wait(seconds):
            return
        expired.append(True)
        try:
            write_stacks(path)
        except OSError as error:
            print(f"cannot write {path}: {error}", file=sys.stderr, flush=True)
        print(message, file=sys.stderr, flush=True)
        if done.is_set():
            return
        # a signal and not interrupt_main, which does not wake a thread that sleeps in the kernel
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if not done.wait(GRACE_S):
            os._exit(1)  # the driver learns that this process has died, and why from its log

    watcher = threading.Thread(target=watch, daemon=True, name=f"watch-{phase}")
    watcher.start()
    try:
        yield
    except BaseException as error:
        done.set()
        if expired:
            raise PhaseTimeout(message) from error
        raise
    finally:
        done.set()
        if expired:
            watcher.join()  # its interrupt must not hit what comes after
