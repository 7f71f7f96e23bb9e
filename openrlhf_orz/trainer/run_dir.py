"""What a run leaves on disk: metrics.jsonl, eval.jsonl and rollouts/step_N.jsonl."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterable


class RunDir:
    """Writes into ``path``; rollouts in the background, so that training does not wait for the disk."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self.pending: Future | None = None

    def append(self, name: str, record: dict) -> None:
        """Add one JSON line to the file ``name`` and flush it."""
        with open(self.path / name, "a") as f:
            f.write(json.dumps(record, allow_nan=False) + "\n")

    def dump_rollouts(self, step: int, rows: Callable[[], Iterable[dict]]) -> None:
        """Write rollouts/step_``step``.jsonl from ``rows()``, called in the background. Waits for the dump before."""
        self.wait()
        self.pending = self.writer.submit(self._dump, self.path / "rollouts" / f"step_{step}.jsonl", rows)

    def _dump(self, path: Path, rows) -> None:
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        with open(partial, "w") as f:
            for row in rows():
                f.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        partial.rename(path)

    def wait(self) -> None:
        """Return when the last dump is on disk; raise what it raised."""
        if self.pending is not None:
            self.pending.result()
            self.pending = None
