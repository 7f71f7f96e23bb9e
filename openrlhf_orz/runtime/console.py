"""What the user sees while a run starts and goes on: lines on the terminal, and the live report.

Both work while the driver's own output goes to a file.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_terminal: int | None = None


def keep_terminal() -> None:
    """Remember where standard error goes now."""
    global _terminal
    if _terminal is None:
        _terminal = os.dup(2)


def say(text: str) -> None:
    """Write a line to the standard error that ``keep_terminal`` remembered."""
    try:
        os.write(2 if _terminal is None else _terminal, f"[orz] {text}\n".encode(errors="replace"))
    except OSError:
        pass  # the terminal has gone


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """What this process and those that it starts print goes to the end of ``path`` in the body."""
    path.parent.mkdir(parents=True, exist_ok=True)
    console = os.dup(1), os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    try:  # the file descriptors: compilers and engines write there, too
        for fd in (1, 2):
            os.dup2(log, fd)
        yield
    finally:
        sys.stdout.flush()
        for fd, saved in enumerate(console, start=1):
            os.dup2(saved, fd)
            os.close(saved)
        os.close(log)


# ---- progress


def progress_line(record: dict, steps: int) -> str:
    """step, reward, response length, truncated share and seconds of one line of metrics.jsonl."""
    line = (
        f"step {record['step']}/{steps}  reward {record['reward']:.3f}  length {record['response_length']:.1f}"
        f"  truncated {record['truncated']:.1%}"
    )
    if record.get("seconds_step") is not None:
        line += f"  {record['seconds_step']:.1f} s"
    return line


STAGES = Path("logs") / "stages.log"  # of a run's directory


def tell_stage(run_dir: str | Path, text: str) -> None:
    """Say on the console what a run has come to, from any of its processes; ``Progress`` adds the seconds."""
    path = Path(run_dir) / STAGES
    try:
        path.parent.mkdir(exist_ok=True)
        with open(path, "a") as file:
            file.write(text + "\n")
    except OSError:
        pass  # a full disk is reported by what has to be written


class Countdown:
    """Tells how many prompts of the first rollout, or of an evaluation, are answered, every ``every_s`` seconds."""

    def __init__(self, run_dir: str | Path, every_s: float = 10.0, what: str = "first rollout"):
        self.run_dir, self.every_s, self.what = run_dir, every_s, what
        self.answered, self.told_at, self.over = 0, time.monotonic(), False

    def add(self, answered: int, pending: int) -> None:
        """So many more are answered, and so many are not yet."""
        self.answered += answered
        if not self.over and (not pending or time.monotonic() - self.told_at >= self.every_s):
            tell_stage(self.run_dir, f"{self.what}: {self.answered} of {self.answered + pending} prompts")
            self.told_at, self.over = time.monotonic(), not pending


class GrowingFile:
    """Reads the lines that are added to a file from now on."""

    def __init__(self, path: Path):
        self.path = path
        self.position = path.stat().st_size if path.exists() else 0

    def new_lines(self) -> list[str]:
        """The whole lines added since the last call."""
        if not self.path.exists():
            return []
        with open(self.path, "rb") as f:
            f.seek(self.position)
            lines = [line for line in f if line.endswith(b"\n")]
        self.position += sum(map(len, lines))
        return [line.decode(errors="replace") for line in lines]


class Progress:
    """Prints a line for each stage of a run's start, with the seconds so far, each step, and its warnings, while the
    context is open.

    It reads them from the run's files and prints to the stdout of now, even if stdout is redirected later. It calls
    ``on_step`` with the number of each step.
    """

    def __init__(
        self, run_dir: Path, steps: int, on_step: Callable[[int], None] = lambda number: None, every_s: float = 0.5
    ):
        self.steps, self.on_step, self.every_s = steps, on_step, every_s
        self.console = os.fdopen(os.dup(1), "w")
        self.start = time.monotonic()
        self.stages = GrowingFile(run_dir / STAGES)
        self.metrics, self.warnings = GrowingFile(run_dir / "metrics.jsonl"), GrowingFile(run_dir / "warnings.log")
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self):
        while not self.done.wait(self.every_s):
            self._print_new()

    def _print_new(self):
        for line in self.stages.new_lines():
            print(f"[orz] {line.rstrip()} ({time.monotonic() - self.start:.0f} s)", file=self.console, flush=True)
        for line in self.metrics.new_lines():
            try:
                record = json.loads(line)
                text = progress_line(record, self.steps)
            except (ValueError, KeyError, TypeError, RecursionError):  # a line that a full disk has cut
                continue
            print(text, file=self.console, flush=True)
            self.on_step(record["step"])
        for line in self.warnings.new_lines():
            print("warning:", line, end="", file=self.console, flush=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.done.set()
        self.thread.join()
        self._print_new()
        self.console.close()


# ---- the report


class LiveReport:
    """Writes report.html of ``run_dir`` every ``every`` steps, in a background process with low priority (nice)."""

    def __init__(self, run_dir: Path, every: int):
        self.run_dir, self.every = run_dir, every
        self.process: subprocess.Popen | None = None

    def step(self, number: int) -> None:
        """To be called after each step. Starts no report while one is being written."""
        if self.every < 1 or number % self.every or (self.process and self.process.poll() is None):
            return
        command = ["nice", "-n", "15", sys.executable, "-m", "openrlhf_orz.cli.report", str(self.run_dir), "--live"]
        (self.run_dir / "logs").mkdir(exist_ok=True)
        with open(self.run_dir / "logs" / "report.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def finish(self) -> None:
        """Write the final report. A failure is only a message: the run itself is done."""
        if self.process:
            self.process.wait()
        if self.every < 0:
            return
        from openrlhf_orz.report.page import write_page
        from openrlhf_orz.report.run_data import load_runs

        try:
            write_page(load_runs([self.run_dir]), self.run_dir / "report.html")
        except Exception as error:  # whatever it is, it must not turn a finished run into a failed one
            print(f"[orz] no report: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
