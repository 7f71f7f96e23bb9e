"""The files of an evaluation: responses.jsonl, which a later run continues, settings.json and the results."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from openrlhf_orz.evaluate.questions import EvaluationError

Key = tuple[str, str, int]  # benchmark, question, sample
# what a folder was made with whose settings.json is older than the setting
ADDED_SETTINGS: dict[str, Any] = {"verifier": "math", "engine_args": {}}


class Responses:
    """responses.jsonl, opened to be continued. ``done`` holds the responses in the file, old and new.

    ``left_out`` holds, by (benchmark, question), the rows of left_out.jsonl beside it: questions that do not fit into
    the model's context. Several threads may add.

    A last line that a kill cut short is removed, and its response is generated again; any other damage raises
    EvaluationError.
    """

    def __init__(self, path: Path):
        self.path = path
        self.done: dict[Key, dict] = {}
        self.left_out_path = path.with_name("left_out.jsonl")
        lines = self.left_out_path.read_text().splitlines() if self.left_out_path.exists() else []
        self.left_out = {(row["bench"], row["id"]): row for row in map(json.loads, lines)}
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                self.done[row["bench"], row["id"], row["sample"]] = row
            except (ValueError, KeyError, TypeError, RecursionError):
                raise EvaluationError(
                    f"{path}:{number} is damaged: remove that line, or choose another --out"
                ) from None
        if whole != content:
            with open(path, "r+b") as file:
                file.truncate(len(whole))
        self.lock = threading.Lock()
        self.file = open(path, "ab")  # noqa: SIM115 -- it stays open until close()

    def add(self, row: dict) -> None:
        """Write one response. After this returns, a kill cannot lose it."""
        line = json.dumps(row).encode() + b"\n"
        with self.lock:
            self.done[row["bench"], row["id"], row["sample"]] = row
            self.file.write(line)
            self.file.flush()

    def leave_out(self, bench: str, question: str, tokens: int, limit: int) -> None:
        """Note that a question's prompt of ``tokens`` leaves no room for a response within ``limit``."""
        with self.lock:
            if (bench, question) not in self.left_out:
                row = {"bench": bench, "id": question, "prompt_tokens": tokens, "limit": limit}
                self.left_out[bench, question] = row
                with open(self.left_out_path, "a") as file:
                    file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        self.file.close()


def check_settings(folder: Path, settings: dict) -> None:
    """Write settings.json with all that the responses depend on, or compare with the file of an earlier run.

    Raises EvaluationError naming the first setting that differs: responses of different settings are never mixed.
    """
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError):
            before = None
        if not isinstance(before, dict):
            raise EvaluationError(f"{path} is damaged: remove {folder}, or choose another --out")
        before = {key: value for key, value in ADDED_SETTINGS.items() if key in settings} | before
        for key in sorted({*before, *settings}):
            if before.get(key) != settings.get(key):
                raise EvaluationError(
                    f"{folder} holds responses made with {key} = {before.get(key)!r}, now it is {settings.get(key)!r}:"
                    " use the same, or choose another --out"
                )
    else:
        path.write_text(json.dumps(settings, indent=2) + "\n")


def write_results(folder: Path, content: dict) -> None:
    """Write results.json, and its table as results.md."""
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / "results.md").write_text(results_table(content["results"]) + "\n")


def results_table(results: dict[str, dict]) -> str:
    """Benchmarks as a Markdown table; a number that is None or that the harness does not give is a dash."""

    def cell(result: dict, key: str, percent: bool = True) -> str:
        value = result.get(key)
        return "-" if value is None else f"{100 * value:.1f}" if percent else f"{value:,.0f}"

    lines = [
        "| benchmark | questions | n | avg@n % | 95 % interval | pass@n % | maj@n % | tokens | cut % |"
        " format % | s/response |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for bench, result in results.items():
        n = result.get("n")
        interval = f"{cell(result, 'low')} to {cell(result, 'high')}" if result.get("low") is not None else "-"
        shares = [cell(result, key) for key in (f"pass_at_{n}", "maj_at_n")]
        rest = [cell(result, "response_length", percent=False), cell(result, "truncated"), cell(result, "format")]
        seconds = result.get("seconds")
        rest.append("-" if seconds is None else f"{seconds:.1f}")
        counts = [str(result.get("questions") or "-"), str(n or "-")]
        lines.append("| " + " | ".join([bench, *counts, cell(result, "avg_at_n"), interval, *shares, *rest]) + " |")
    return "\n".join(lines)
