"""SIGTERM and Ctrl-C: the first asks the trainer to stop where it can save its work, the second stops at once."""

import os
import signal
import threading

from openrlhf_orz.runtime.console import say
from openrlhf_orz.runtime.stop import stop_mark, training_mark

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """The handler of both signals. Raises KeyboardInterrupt, which Ray lets through its C++ code, to stop at once."""

    def __init__(self, args):
        self.args = args
        self.signum = signal.SIGINT  # the one that came
        self.asked = False

    def install(self) -> None:
        for signum in SIGNALS:
            signal.signal(signum, self)

    def __call__(self, signum, frame):
        self.signum = signum
        if self.asked or not training_mark(self.args).exists():
            raise KeyboardInterrupt
        self.asked = True
        stop_mark(self.args).touch()
        seconds = self.args.orz.stop_timeout_s
        say(
            f"stopping after the step in hand, within {seconds:g} s (--orz.stop_timeout_s); a second signal stops at once"
        )
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signum))
        timer.daemon = True
        timer.start()

    def clear(self) -> None:
        """Remove the marks of this run or of one that was killed."""
        for mark in (stop_mark(self.args), training_mark(self.args)):
            mark.unlink(missing_ok=True)
