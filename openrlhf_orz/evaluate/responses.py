"""responses.jsonl: every graded response of an evaluation, appended as it comes, read again by a run that goes on."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from openrlhf_orz.evaluate.questions import EvaluationError

Key = tuple[str, str, int]  # benchmark, question, sample


class Responses:
    """The file, opened to go on. ``done`` holds the responses that it had, and those that were added.

    Threads may add at the same time. A last line that a kill has cut is taken off and generated anew; any other damage
    is an error.
    """

    def __init__(self, path: Path):
        self.path = path
        self.done: dict[Key, dict] = {}
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                self.done[row["bench"], row["id"], row["sample"]] = row
            except (ValueError, KeyError, TypeError):
                raise EvaluationError(
                    f"{path}:{number} is damaged: remove that line, or choose another --out"
                ) from None
        if whole != content:
            with open(path, "r+b") as file:
                file.truncate(len(whole))
        self.file, self.lock = open(path, "ab"), threading.Lock()

    def add(self, row: dict) -> None:
        """Write one response; when this returns a kill cannot lose it."""
        line = json.dumps(row).encode() + b"\n"
        with self.lock:
            self.done[row["bench"], row["id"], row["sample"]] = row
            self.file.write(line)
            self.file.flush()

    def close(self) -> None:
        self.file.close()


def check_settings(folder: Path, settings: dict) -> None:
    """Write down what the responses depend on, or compare with what an earlier run wrote.

    Raises EvaluationError naming the first setting that differs: responses of two settings are never mixed.
    """
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        before = json.loads(path.read_text())
        for key in sorted({*before, *settings}):
            if before.get(key) != settings.get(key):
                raise EvaluationError(
                    f"{folder} holds responses made with {key} = {before.get(key)!r}, now it is {settings.get(key)!r}:"
                    " use the same, or choose another --out"
                )
    else:
        path.write_text(json.dumps(settings, indent=2) + "\n")
