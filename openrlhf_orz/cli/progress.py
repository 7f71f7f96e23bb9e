"""A line for each step on the console, read from the run's own metrics.jsonl."""

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


class Progress:
    """Prints the steps that are added to ``path`` while the context is open, to the stdout of now even if that is
    redirected, and calls ``on_step`` with the number of each.
    """

    def __init__(self, path: Path, steps: int, on_step=lambda number: None, every_s: float = 0.5):
        self.path, self.steps, self.on_step, self.every_s = path, steps, on_step, every_s
        self.console = os.fdopen(os.dup(1), "w")
        self.position = path.stat().st_size if path.exists() else 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self):
        while not self.done.wait(self.every_s):
            self._print_new()

    def _print_new(self):
        if not self.path.exists():
            return
        with open(self.path, "rb") as f:
            f.seek(self.position)
            for line in f:
                if not line.endswith(b"\n"):
                    return
                self.position += len(line)
                record = json.loads(line)
                print(progress_line(record, self.steps), file=self.console, flush=True)
                self.on_step(record["step"])

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.done.set()
        self.thread.join()
        self._print_new()
        self.console.close()
