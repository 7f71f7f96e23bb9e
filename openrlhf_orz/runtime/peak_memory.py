"""The most that this process has held in memory, and letting that begin again."""

import re
import resource
from pathlib import Path


def peak_rss_mib() -> float:
    """Peak resident memory of this process, in MiB, since it began or since ``reset_peak``."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) / 1024 if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak() -> None:
    """Let the peak begin again at the memory in use. Raises OSError where the kernel does not let it."""
    Path("/proc/self/clear_refs").write_text("5")
