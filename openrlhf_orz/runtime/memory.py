"""The memory of a process: the most that it has held, in its life and in each phase of a step.

torch is imported where it is used: the benchmarks read the peak before they import it.
"""

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def peak_rss_mib() -> float:
    """Peak resident memory of this process, in MiB, since it began or since ``reset_peak``."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) / 1024 if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak() -> None:
    """Start the peak again at the memory in use now. Raises OSError where the kernel refuses."""
    Path("/proc/self/clear_refs").write_text("5")


def memory_metrics(role: str) -> dict[str, float]:
    """Largest resident memory of this process so far, and on a GPU the most that torch has allocated, in MiB."""
    import torch

    result = {f"{role}_memory_mib": peak_rss_mib()}
    if torch.cuda.is_initialized():
        result[f"{role}_gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return result


class MemoryByPhase:
    """The most that this process holds in each phase: the keys of ``memory_metrics`` with ``_PHASE`` added.

    Where the kernel cannot reset the peak, a phase shows the largest of all phases so far.
    """

    def __init__(self, role: str):
        self.role = role
        self.phases: dict[str, float] = {}
        self.whole: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the memory of the body as that of the phase ``name``."""
        import torch

        self._note()
        with suppress(OSError):
            reset_peak()
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        try:
            yield
        finally:
            for key, value in self._note().items():
                key = f"{key}_{name}"
                self.phases[key] = max(value, self.phases.get(key, 0.0))

    def _note(self) -> dict[str, float]:
        now = memory_metrics(self.role)
        for key, value in now.items():
            self.whole[key] = max(value, self.whole.get(key, 0.0))
        return now

    def take(self) -> dict[str, float]:
        """The metrics of this process's life, and of the phases since the last call."""
        self._note()
        phases, self.phases = self.phases, {}
        return {**self.whole, **phases}
