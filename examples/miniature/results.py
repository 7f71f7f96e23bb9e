"""The curves of finished runs: arm -> seed -> curve."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from miniature.runner import Run
from openrlhf_orz.report.run_data import columns, load_run

HELD_OUT = "held_out"  # the evaluation's accuracy, beside the keys of docs/metrics.md


@dataclass(frozen=True)
class Curves:
    """What one run measured, by step; ``path`` is its directory."""

    path: Path
    metrics: dict[str, list]
    evals: dict[str, list]

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a key, both empty if it was not measured; steps without a value are left out."""
        table = self.metrics
        if key == HELD_OUT:
            table = self.evals
            key = next((name for name in table if name.endswith("_pass1")), key)
        pairs = [(step, y) for step, y in zip(table.get("step", []), table.get(key, [])) if y is not None]
        return [step for step, _ in pairs], [y for _, y in pairs]

    def values(self, key: str) -> list[float]:
        return self.curve(key)[1]


Results = dict[str, dict[int, Curves]]


def load(runs: Iterable[Run]) -> Results:
    """The finished ones among the runs."""
    results: Results = {}
    for run in runs:
        if run.finished():
            loaded = load_run(run.path)
            curves = Curves(run.path, columns(loaded.metrics), columns(loaded.evals))
            results.setdefault(run.arm.name, {})[run.seed] = curves
    return results
