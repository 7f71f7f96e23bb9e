"""The memory of a process: the most it has held so far, and in each phase of a step."""

from contextlib import contextmanager, suppress

import torch

from openrlhf_orz.runtime.peak_memory import peak_rss_mib, reset_peak


def memory_metrics(role: str) -> dict[str, float]:
    """Largest resident memory of this process so far, and on a GPU what torch has allocated at most, in MiB."""
    result = {f"{role}_memory_mib": peak_rss_mib()}
    if torch.cuda.is_initialized():
        result[f"{role}_gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return result


class MemoryByPhase:
    """The most that this process holds in each phase, by ``memory_metrics`` and its keys with the phase's name.

    Where the kernel does not let the peak begin again, each phase's is the largest of all phases until then.
    """

    def __init__(self, role: str):
        self.role = role
        self.phases: dict[str, float] = {}
        self.whole: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str):
        """The memory of the body counts as that of the phase ``name``."""
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
        """The metrics: of this process's life, and of the phases since the last call."""
        self._note()
        phases, self.phases = self.phases, {}
        return {**self.whole, **phases}
