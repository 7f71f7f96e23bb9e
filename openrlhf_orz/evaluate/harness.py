"""Benchmarks that lighteval runs (LiveCodeBench, MMLU, MMLU-Pro, IFEval), in a separate Python environment.

Its pins contradict those of the training stack (latex2sympy2_extended 1.0.6 against 1.11.0, among others). Programs in
answers to LiveCodeBench run in lighteval's sandboxed processes, and only with --allow_code_execution.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openrlhf_orz.evaluate.questions import HARNESS, EvaluationError

_INSTALL = "python -m venv ENV && ENV/bin/pip install 'lighteval[vllm]==0.13.0', then --harness_python ENV/bin/python"


def harness_command(
    python: str, model: str, benches: list[str], folder: Path, options: dict, limit: int | None
) -> list[str]:
    """The harness's command line."""
    arguments = ",".join(f"{key}={value}" for key, value in {"model_name": model, **options}.items())
    tasks = ",".join(f"{HARNESS[bench][0]}|0" for bench in benches)
    extra = ["--max-samples", str(limit)] if limit else []
    return [python, "-m", "lighteval", "vllm", arguments, tasks, "--output-dir", str(folder), "--save-details", *extra]


def check_harness(benches: list[str], python: str | None, allow_code: bool) -> None:
    """Raise EvaluationError if lighteval is not installed, or if it would run code without permission."""
    for bench in benches:
        if HARNESS[bench][1] and not allow_code:
            raise EvaluationError(
                f"--bench {bench} runs programs that the model wrote, in lighteval's sandbox of limited processes: add"
                " --allow_code_execution if this machine may do so"
            )
    if python is None:
        raise EvaluationError(f"--bench {benches[0]} is run by lighteval: {_INSTALL}")
    found = subprocess.run([python, "-c", "import lighteval"], capture_output=True, text=True)
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no message"])[-1]
        raise EvaluationError(f"--harness_python {python} has no lighteval ({last}): {_INSTALL}")


def read_harness_results(folder: Path, benches: list[str]) -> dict[str, dict]:
    """The newest results that lighteval wrote under ``folder``, as rows of our table.

    A benchmark of several tasks (MMLU's subjects) is the unweighted mean over them, as in lighteval.
    """
    files = sorted(folder.rglob("results_*.json"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise EvaluationError(f"lighteval wrote no results under {folder}")
    found = json.loads(files[-1].read_text())["results"]
    rows = {}
    for bench in benches:
        task = HARNESS[bench][0]
        own = {
            name: scores for name, scores in found.items() if name.split("|")[0] == task or name.startswith(task + ":")
        }
        own = {name: scores for name, scores in own.items() if "_average" not in name} or own
        if not own:
            raise EvaluationError(f"{files[-1]} has no results of {task}: it has {', '.join(found)}")
        main, error = _main_metric(next(iter(own.values())))
        values = [scores[main] for scores in own.values()]
        rows[bench] = {
            "avg_at_n": sum(values) / len(values),
            "metric": main,
            "harness": "lighteval",
            "tasks": len(own),
        }
        if len(own) == 1 and error is not None:
            (value,) = values
            rows[bench] |= {"low": max(0.0, value - 1.96 * error), "high": min(1.0, value + 1.96 * error)}
    return rows


def _main_metric(scores: dict) -> tuple[str, float | None]:
    """The first metric of a task, and its standard error."""
    main = next(name for name in scores if not name.endswith("_stderr"))
    return main, scores.get(f"{main}_stderr")


def run_harness(
    python: str,
    model: str,
    benches: list[str],
    folder: Path,
    options: dict,
    limit: int | None,
    log: Callable[[str], Any] = print,
) -> dict[str, dict]:
    """Run lighteval and return its rows; its output goes to ``folder``/lighteval.log. EvaluationError if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    line = harness_command(python, model, benches, folder, options, limit)
    log("harness: " + " ".join(line))
    with open(folder / "lighteval.log", "w") as output:
        code = subprocess.run(line, stdout=output, stderr=subprocess.STDOUT, env=os.environ).returncode
    if code:
        raise EvaluationError(f"lighteval ended with status {code}: see {folder / 'lighteval.log'}")
    return read_harness_results(folder, benches)
