"""The curves of finished runs: arm -> seed -> curve."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from miniature import forms
from miniature.arms import ARMS
from miniature.runner import ROOT, Run
from openrlhf_orz.data.json_lines import read_records, write_whole
from openrlhf_orz.report.run_data import columns, load_run

# the evaluation's accuracy at temperature 1, and at 0 at the end, beside the keys of docs/metrics.md
HELD_OUT, GREEDY = "held_out", "greedy"
# The studies of a task, in what is drawn of them.
KEPT = {
    task: ROOT / "benchmarks" / "results" / f"{name}_study.json"
    for task, name in (("long", "critic"), ("forms", "reward"))
}
DRAWN = ("step", "reward", "response_length", "explained_variance", "seconds_step", *forms.SHARES)


@dataclass(frozen=True)
class Curves:
    """What one run measured, by step, and the greedy accuracy at its end; ``path`` is its directory."""

    path: Path
    metrics: dict[str, list]
    evals: dict[str, list]
    greedy: float | None = None

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a key, both empty if it was not measured; steps without a value are left out."""
        if key == GREEDY:
            return ([], []) if self.greedy is None else (self.evals["step"][-1:], [self.greedy])
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
            metrics = columns(loaded.metrics)
            if run.arm.task == "forms":
                steps = [read_records(run.path / "rollouts" / f"step_{step}.jsonl") for step in metrics["step"]]
                metrics |= columns([forms.shares(rows) for rows in steps])
            results.setdefault(run.arm.name, {})[run.seed] = Curves(
                run.path, metrics, columns(loaded.evals), run.greedy()
            )
    return results


def fingerprint(arm: str, seed: int) -> str:
    """Of the flags that an arm has now."""
    return hashlib.sha256(json.dumps(Run(ARMS[arm], seed, Path()).stamp()).encode()).hexdigest()[:16]


def keep(results: Results, file: Path) -> None:
    """Add to the file what figures and tables are made of: whoever has it can draw, and need not run them again."""
    rows, held = [], kept([file])
    for arm in results:
        held[arm] = held.get(arm, {}) | results[arm]
    for arm, seeds in held.items():
        for seed, run in sorted(seeds.items()):
            metrics = {key: run.metrics[key] for key in DRAWN if key in run.metrics}
            row = {"arm": arm, "seed": seed, "flags": fingerprint(arm, seed)}
            rows.append(json.dumps(row | {"metrics": metrics, "evals": run.evals, "greedy": run.greedy}))
    write_whole(file, "[\n" + ",\n".join(rows) + "\n]\n")


def kept(files: Iterable[Path]) -> Results:
    """The runs of such files whose arms still have the same flags. A file that is not there holds none."""
    results: Results = {}
    for file in files:
        for row in json.loads(file.read_text(encoding="utf-8")) if file.exists() else ():
            arm, seed = row["arm"], row["seed"]
            if arm in ARMS and row["flags"] == fingerprint(arm, seed):
                results.setdefault(arm, {})[seed] = Curves(file, row["metrics"], row["evals"], row.get("greedy"))
    return results
