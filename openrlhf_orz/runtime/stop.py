"""How a run is asked to stop: the driver leaves a mark in the run directory, which the trainer looks for where it can
stop well.
"""

from pathlib import Path


class StopRequested(Exception):
    """Somebody has asked the run to stop; raised where no optimizer step is under way."""


class Stopped(RuntimeError):
    """The run has stopped as it was asked to; the message says where it can be resumed from."""


def stop_mark(args) -> Path:
    """Exists when the run shall stop."""
    return Path(args.orz.run_dir) / ".stop"


def training_mark(args) -> Path:
    """Exists while the trainer runs and would see ``stop_mark``."""
    return Path(args.orz.run_dir) / ".training"


def stop_if_asked(args) -> None:
    """Raise StopRequested if ``stop_mark`` is there."""
    if stop_mark(args).exists():
        raise StopRequested
