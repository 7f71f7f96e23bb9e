"""How a run is asked to stop, and how a failed one is started again.

The first SIGTERM or Ctrl-C makes the driver leave a mark in the run directory. The trainer looks for the mark where it
can save its work. The second signal stops the run at once. With ``--orz.max_restarts`` the run is a child process,
which is started again from its newest checkpoint when it fails.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace

from openrlhf_orz.runtime.console import say

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
RESTARTS_VARIABLE = "ORZ_RESTARTS"  # in the child's environment: how often it has been started again
SHORTEST_STOP_S = 120.0
LAST_LINES = 100  # of metrics.jsonl, in which the last checkpoint is looked for
SAME_REQUEST_S = 0.5  # ``timeout`` and schedulers signal a process and its group: twice within a moment
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0


class StopRequested(Exception):
    """Somebody has asked the run to stop; raised where no optimizer step is under way."""


class Stopped(RuntimeError):
    """The run has stopped as it was asked to; the message says where it can be resumed from."""


# ---- in the trainer


def stop_mark(args: SimpleNamespace) -> Path:
    """This file exists when the run shall stop."""
    return Path(args.orz.run_dir) / ".stop"


def training_mark(args: SimpleNamespace) -> Path:
    """This file exists while the trainer runs and looks for ``stop_mark``."""
    return Path(args.orz.run_dir) / ".training"


def stop_if_asked(args: SimpleNamespace) -> None:
    """Raise StopRequested if ``stop_mark`` is there."""
    if stop_mark(args).exists():
        raise StopRequested


# ---- in the driver


def last_seconds(run_dir: str | Path) -> float:
    """Seconds of the last step and of the last checkpoint in metrics.jsonl: what a stop must at most wait for."""
    found: dict[str, float] = {}
    try:
        lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()[-LAST_LINES:]
        for line in lines:
            record = json.loads(line)
            found |= {key: record[key] for key in ("seconds_step", "seconds_checkpoint") if record.get(key)}
    except (OSError, ValueError):
        pass  # there is none yet, or its last line is being written
    return sum(found.values())


def stop_window(args: SimpleNamespace) -> float:
    """Seconds that a stop may take: --orz.stop_timeout_s, or what the last step and checkpoint took, and a half."""
    given = args.orz.stop_timeout_s
    return max(SHORTEST_STOP_S, 1.5 * last_seconds(args.orz.run_dir)) if given is None else given


@contextmanager
def signals_blocked(*signums: int) -> Iterator[None]:
    """Processes that the body starts have these signals blocked, and so have theirs."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signums)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopHandler:
    """Handles both signals. To stop at once it raises KeyboardInterrupt, which Ray lets through its C++ code."""

    def __init__(self, args: SimpleNamespace):
        self.args = args
        self.signum = signal.SIGINT  # the last one that came
        self.asked: float | None = None  # when the run was first asked to stop, in time.monotonic()

    def install(self) -> None:
        """Handle both signals from now on."""
        for signum in STOP_SIGNALS:
            signal.signal(signum, self)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.signum, seconds = signum, stop_window(self.args)
        if self.asked is not None and time.monotonic() - self.asked < min(SAME_REQUEST_S, seconds):
            return
        if self.asked is not None or not training_mark(self.args).exists():
            raise KeyboardInterrupt
        self.asked = time.monotonic()
        stop_mark(self.args).touch()
        needed = last_seconds(self.args.orz.run_dir)
        if needed > seconds:
            say(f"the last step and checkpoint took {needed:.0f} s, more than --orz.stop_timeout_s {seconds:g}")
        say(
            f"stopping after the step in hand, within {seconds:g} s (--orz.stop_timeout_s);"
            " a second signal stops at once"
        )
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signum))
        timer.daemon = True
        timer.start()

    def clear(self) -> None:
        """Remove the marks of this run, or of one that was killed."""
        for mark in (stop_mark(self.args), training_mark(self.args)):
            mark.unlink(missing_ok=True)


# ---- in the process above it


def is_supervised() -> bool:
    """Whether this process is the child of ``supervise``."""
    return RESTARTS_VARIABLE in os.environ


def how_ended(status: int) -> str:
    """A child's status in words."""
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def supervise(argv: list[str], run_dir: str, restarts: int) -> int:
    """Run the command with ``argv`` until it succeeds, is stopped, refuses its input, or has failed too often.

    Signals to this process go on to the child. Returns the exit status.
    """
    stopped: list[int] = []
    child: subprocess.Popen | None = None

    def forward(signum, frame):
        stopped.append(signum)
        if child is not None and child.poll() is None:
            child.send_signal(signum)

    for signum in STOP_SIGNALS:
        signal.signal(signum, forward)
    command = [sys.executable, "-m", "openrlhf_orz.cli.train_ppo_ray", *argv, "--ckpt.output_dir", run_dir]
    for attempt in range(restarts + 1):
        again = ["--ckpt.load_enable"] if attempt else []
        # in its own session: Ctrl-C then reaches it once, through this process
        child = subprocess.Popen(
            [*command, *again], env={**os.environ, RESTARTS_VARIABLE: str(attempt)}, start_new_session=True
        )
        status = child.wait()
        if status == 0 or status == 2 or stopped:  # done, refused, or as the user wished
            break
        if attempt == restarts:
            say(f"the run has failed ({how_ended(status)}) and {restarts} restarts are used up (--orz.max_restarts)")
            break
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
        say(f"the run has failed ({how_ended(status)}); restart {attempt + 1} of {restarts} in {pause:g} s")
        end = time.monotonic() + pause
        while time.monotonic() < end and not stopped:
            time.sleep(0.2)
        if stopped:
            break
    return status if status >= 0 else 128 - status
