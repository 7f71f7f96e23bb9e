"""Benchmarks that lighteval serves (LiveCodeBench, MMLU, MMLU-Pro, IFEval), run in an environment of its own.

Its own, because its pins contradict the training stack's (latex2sympy2_extended 1.0.6 against 1.11.0, among others).
Code of LiveCodeBench's answers runs in lighteval's sandboxed processes, and only when that was asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from openrlhf_orz.evaluate.benchmarks import HARNESS
from openrlhf_orz.evaluate.questions import EvaluationError

MAKE = "python -m venv ENV && ENV/bin/pip install 'lighteval[vllm]==0.13.0', then --harness_python ENV/bin/python"


def command(python: str, model: str, benches: list[str], folder: Path, options: dict, limit: int | None) -> list[str]:
    """The harness's command line."""
    arguments = ",".join(f"{key}={value}" for key, value in {"model_name": model, **options}.items())
    tasks = ",".join(f"{HARNESS[bench][0]}|0" for bench in benches)
    extra = ["--max-samples", str(limit)] if limit else []
    return [python, "-m", "lighteval", "vllm", arguments, tasks, "--output-dir", str(folder), "--save-details", *extra]


def check(benches: list[str], python: str | None, allow_code: bool) -> None:
    """Raise EvaluationError if the harness is not there, or would run code that nobody allowed."""
    for bench in benches:
        if HARNESS[bench][1] and not allow_code:
            raise EvaluationError(
                f"--bench {bench} runs programs that the model wrote, in lighteval's sandbox of limited processes: add"
                " --allow_code_execution if this machine may do so"
            )
    if python is None:
        raise EvaluationError(f"--bench {benches[0]} is run by lighteval: {MAKE}")
    found = subprocess.run([python, "-c", "import lighteval"], capture_output=True, text=True)
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no message"])[-1]
        raise EvaluationError(f"--harness_python {python} has no lighteval ({last}): {MAKE}")


def read_results(folder: Path, benches: list[str]) -> dict[str, dict]:
    """The newest results that the harness wrote under ``folder``, as rows of our table.

    A benchmark of several tasks (MMLU's subjects) is the mean over them, each weighing the same, as in lighteval.
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


def run(
    python: str, model: str, benches: list[str], folder: Path, options: dict, limit: int | None, log=print
) -> dict[str, dict]:
    """Run the harness, its output in ``folder``/lighteval.log, and return its rows. EvaluationError if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    line = command(python, model, benches, folder, options, limit)
    log("harness: " + " ".join(line))
    with open(folder / "lighteval.log", "w") as output:
        code = subprocess.run(line, stdout=output, stderr=subprocess.STDOUT, env=os.environ).returncode
    if code:
        raise EvaluationError(f"lighteval ended with status {code}: see {folder / 'lighteval.log'}")
    return read_results(folder, benches)
