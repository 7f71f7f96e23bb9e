"""``--orz.max_restarts``: the run as a child of this process, started again from its newest checkpoint when it fails."""

import os
import signal
import subprocess
import sys
import time

from openrlhf_orz.runtime.console import say

RESTARTS = "ORZ_RESTARTS"  # in the child's environment: how often it has been started again
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0


def is_child() -> bool:
    """Whether this process is already supervised."""
    return RESTARTS in os.environ


def reason(status: int) -> str:
    """How a child has ended."""
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def supervise(argv: list[str], run_dir: str, restarts: int) -> int:
    """Run the command with ``argv`` until it succeeds, is stopped, cannot start, or has failed too often.

    Signals to this process go on to the child. Returns the exit status.
    """
    stopped: list[int] = []
    child: subprocess.Popen | None = None

    def forward(signum, frame):
        stopped.append(signum)
        if child is not None and child.poll() is None:
            child.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, forward)
    command = [sys.executable, "-m", "openrlhf_orz.cli.train_ppo_ray", *argv, "--ckpt.output_dir", run_dir]
    for attempt in range(restarts + 1):
        again = ["--ckpt.load_enable"] if attempt else []
        # a session of its own: Ctrl-C reaches it once, through us
        child = subprocess.Popen(
            [*command, *again], env={**os.environ, RESTARTS: str(attempt)}, start_new_session=True
        )
        status = child.wait()
        if status == 0 or status == 2 or stopped:  # done, refused, or as the user wished
            break
        if attempt == restarts:
            say(f"the run has failed ({reason(status)}) and {restarts} restarts are used up (--orz.max_restarts)")
            break
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
        say(f"the run has failed ({reason(status)}); restart {attempt + 1} of {restarts} in {pause:g} s")
        end = time.monotonic() + pause
        while time.monotonic() < end and not stopped:
            time.sleep(0.2)
        if stopped:
            break
    return status if status >= 0 else 128 - status
