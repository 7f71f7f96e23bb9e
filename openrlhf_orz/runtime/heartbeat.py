"""The processes that steer a run show that they live: each touches a file, which the driver watches.

The time-outs of the phases run inside the trainer; one that is stopped or lies frozen on another machine has none.
"""

import os
import socket
import threading
import time
from pathlib import Path

from openrlhf_orz.runtime.processes import Family

EVERY_S = 2.0


def folder(args) -> Path:
    """Where the files are; it is empty when the trainer starts."""
    return Path(args.orz.run_dir) / ".alive"


def show_life(args, name: str, every_s: float = EVERY_S) -> None:
    """Touch a file of this process's own every ``every_s`` until it ends or the driver has removed the file.

    The process is on record, too, for whoever ends a run in which it hangs.
    """
    Family(f"{args.run.scratch}trainer-{os.getpid()}").record()
    path = folder(args) / f"{name}-{socket.gethostname()}-{os.getpid()}"
    path.parent.mkdir(parents=True, exist_ok=True)  # without our driver (benchmarks) nobody has made it
    path.touch()

    def beat():
        while True:
            time.sleep(every_s)
            try:
                os.utime(path)
            except FileNotFoundError:
                return
            except OSError:  # of a network file system: the driver counts from the last that came through
                continue

    threading.Thread(target=beat, daemon=True, name="heartbeat").start()
