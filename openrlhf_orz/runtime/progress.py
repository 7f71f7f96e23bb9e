"""A line for each step on the console, read from the run's own metrics.jsonl, and its warnings."""

import json
import os
import threading
from pathlib import Path


def progress_line(record: dict, steps: int) -> str:
    """step, reward, response length, truncated share and seconds of one line of metrics.jsonl."""
    line = (
        f"step {record['step']}/{steps}  reward {record['reward']:.3f}  length {record['response_length']:.1f}"
        f"  truncated {record['truncated']:.1%}"
    )
    if record.get("seconds_step") is not None:
        line += f"  {record['seconds_step']:.1f} s"
    return line


class Followed:
    """The lines that are added to a file from now on."""

    def __init__(self, path: Path):
        self.path = path
        self.position = path.stat().st_size if path.exists() else 0

    def new_lines(self) -> list[str]:
        """Whole lines since the last call."""
        if not self.path.exists():
            return []
        with open(self.path, "rb") as f:
            f.seek(self.position)
            lines = [line for line in f if line.endswith(b"\n")]
        self.position += sum(map(len, lines))
        return [line.decode(errors="replace") for line in lines]


class Progress:
    """Prints the steps and warnings of a run while the context is open, to the stdout of now even if that is
    redirected, and calls ``on_step`` with the number of each step.
    """

    def __init__(self, run_dir: Path, steps: int, on_step=lambda number: None, every_s: float = 0.5):
        self.steps, self.on_step, self.every_s = steps, on_step, every_s
        self.console = os.fdopen(os.dup(1), "w")
        self.metrics, self.warnings = Followed(run_dir / "metrics.jsonl"), Followed(run_dir / "warnings.log")
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self):
        while not self.done.wait(self.every_s):
            self._print_new()

    def _print_new(self):
        for line in self.metrics.new_lines():
            record = json.loads(line)
            print(progress_line(record, self.steps), file=self.console, flush=True)
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
