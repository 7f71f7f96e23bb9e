"""The training command's report: in a process of its own while the run goes on, and once more at its end."""

import subprocess
import sys
from pathlib import Path


class LiveReport:
    """Writes report.html of ``run_dir`` every ``every`` steps, in the background and behind all else (nice)."""

    def __init__(self, run_dir: Path, every: int):
        self.run_dir, self.every = run_dir, every
        self.process: subprocess.Popen | None = None

    def step(self, number: int) -> None:
        """To be called after each step. A report that is still being written is not disturbed."""
        if self.every < 1 or number % self.every or (self.process and self.process.poll() is None):
            return
        command = ["nice", "-n", "15", sys.executable, "-m", "openrlhf_orz.cli.report", str(self.run_dir), "--live"]
        (self.run_dir / "logs").mkdir(exist_ok=True)
        with open(self.run_dir / "logs" / "report.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def finish(self) -> None:
        """Write the report that stands. A failure is a message: the run itself is done."""
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
