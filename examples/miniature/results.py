"""The curves of finished runs: arm -> seed -> curve."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from miniature import forms
from miniature.arms import ARMS
from miniature.runner import GREEDY, ROOT, Run
from openrlhf_orz.data.json_lines import read_records, write_whole
from openrlhf_orz.report.run_data import columns, load_run

HELD_OUT = "held_out"  # the evaluation's accuracy at temperature 1, beside the keys of docs/metrics.md and GREEDY
KEPT = ROOT / "benchmarks" / "results" / "miniature.json"  # what is drawn of the runs that the documents tell of
DRAWN = ("step", "reward", "response_length", "explained_variance", "seconds_step", *forms.SHARES)


@dataclass(frozen=True)
class Curves:
    """What one run measured, by step, the greedy accuracy at its end, and the first rollout's ``digest``."""

    metrics: dict[str, list]
    evals: dict[str, list]
    greedy: float | None = None
    rollout: str | None = None

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


def digest(run_dir: Path, step: int) -> str:
    """Of all prompts and responses of a step. Raises OSError if they were not kept."""
    texts = [(row["prompt"], row["response"]) for row in read_records(run_dir / "rollouts" / f"step_{step}.jsonl")]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def load(runs: Iterable[Run]) -> Results:
    """The finished ones among the runs."""
    results: Results = {}
    for run in runs:
        if run.finished():
            loaded = load_run(run.path)
            metrics, evals = columns(loaded.metrics), columns(loaded.evals)
            if run.arm.task == "forms":
                steps = [read_records(run.path / "rollouts" / f"step_{step}.jsonl") for step in metrics["step"]]
                metrics |= columns([forms.shares(rows) for rows in steps])
            results.setdefault(run.arm.name, {})[run.seed] = Curves(metrics, evals, run.greedy(), digest(run.path, 1))
    return results


def fingerprint(arm: str, seed: int) -> str:
    """Of the flags that an arm has now."""
    return hashlib.sha256(json.dumps(Run(ARMS[arm], seed, Path()).stamp()).encode()).hexdigest()[:16]


def keep(results: Results, file: Path = KEPT) -> None:
    """Add to the file what figures and tables are made of: whoever has it can draw, and need not run them again."""
    rows, held = [], kept(file)
    for arm in results:
        held[arm] = held.get(arm, {}) | results[arm]
    for arm, seeds in held.items():
        for seed, run in sorted(seeds.items()):
            row = {"arm": arm, "seed": seed, "flags": fingerprint(arm, seed), **dataclasses.asdict(run)}
            row["metrics"] = {key: run.metrics[key] for key in DRAWN if key in run.metrics}
            rows.append(json.dumps(row))
    write_whole(file, "[\n" + ",\n".join(rows) + "\n]\n")


def kept(file: Path = KEPT) -> Results:
    """The runs of such a file whose arms still have the same flags. A file that is not there holds none."""
    results: Results = {}
    for row in json.loads(file.read_text(encoding="utf-8")) if file.exists() else ():
        arm, seed, flags = row.pop("arm"), row.pop("seed"), row.pop("flags")
        if arm in ARMS and flags == fingerprint(arm, seed):
            results.setdefault(arm, {})[seed] = Curves(**row)
    return results
