"""Does the runs that are missing, several at a time, each on one core; what is finished is not run again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from miniature import forms, task
from miniature.arms import HALF, HELD_OUT, MOST, PRETRAINED, ROLLOUTS_OF_BASE, SCALES, SHARED, TASKS, Arm, flags

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "examples" / "tiny_base" / "build.py"
COMMAND = (sys.executable, "-m", "openrlhf_orz.cli.train_ppo_ray")
EVALUATE = (sys.executable, "-m", "openrlhf_orz.cli.evaluate", "--device", "cpu", "--n", "1", "--temperature", "0")
PRETRAIN = (sys.executable, "-m", "openrlhf_orz.cli.pretrain_critic")
# A round of the fit is a rollout, as in training, at training's rates.
FIT = ("--responses", "96", "--patience", "8", "--critic.adam.lr", "1e-3", "--train.max_tokens_per_gpu", "8192")
HALF_WIDTH = 64
STAMP = "miniature.json"
GREEDY = "greedy"  # what the evaluation calls the held-out questions
QUESTIONS: dict[str, dict[str, Callable]] = {  # of each task, how write_questions makes them
    "counting": {},
    "forms": {"draw": forms.draw, "question": forms.question, "answer": lambda terms: forms.answers(terms)[0]},
}
STOP_S = 150  # for a run that is to stop; it ends by itself within --orz.stop_timeout_s


@dataclass(frozen=True)
class Run:
    """One arm with one seed, in a directory of its own."""

    arm: Arm
    seed: int
    out: Path

    @property
    def path(self) -> Path:
        return self.out / "runs" / self.arm.name / f"seed-{self.seed}"

    def argv(self) -> list[str]:
        return flags(self.arm, self.seed, self.out / self.arm.task, self.path)

    def stamp(self) -> list[str]:
        """What makes it this run: its flags, without where it lies."""
        return flags(self.arm, self.seed, Path(), Path("run"))

    def finished(self) -> bool:
        """Whether every step is there and evaluated, of just these flags."""
        try:
            same = json.loads((self.path / STAMP).read_text()) == self.stamp()
            steps, evaluated = (read_steps(self.path / name) for name in ("metrics.jsonl", "eval.jsonl"))
            return same and steps == list(range(1, self.arm.steps + 1)) and evaluated[-1:] == steps[-1:]
        except (OSError, ValueError):
            return False

    def evaluation(self) -> list[str]:
        """The evaluation command's arguments for the answers that the trained policy finds likeliest."""
        values = SHARED | TASKS[self.arm.task]
        return [
            *("--model", str(self.path / "hf"), "--out", str(self.path / "greedy")),
            *("--data", f"{GREEDY}={self.out / self.arm.task / 'questions' / 'held-out.jsonl'}"),
            *("--max_new_tokens", str(values["rollout.max_new_tokens"])),
            *("--cpu_kvcache_mib", str(values["orz.cpu_kvcache_mib"])),
        ]

    def greedy(self) -> float | None:
        """The trained policy's accuracy on the held-out questions at temperature 0, once it has been evaluated."""
        try:
            return json.loads((self.path / "greedy" / "results.json").read_text())["results"][GREEDY]["avg_at_n"]
        except FileNotFoundError:
            return None

    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.finished() and self.greedy() is not None


def read_steps(path: Path) -> list[int]:
    """The steps of a metrics.jsonl or eval.jsonl. Raises OSError or ValueError if it cannot be read."""
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def make(folder: Path, argv: tuple[str, ...], output: str) -> None:
    """Run a command that writes ``folder``, its option ``output``, unless it is there.

    Raises RuntimeError if it fails.
    """
    if (folder / "config.json").exists():
        return
    print(f"[miniature] making {folder}, once: minutes of one core", flush=True)
    partial, log = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".log")
    shutil.rmtree(partial, ignore_errors=True)
    with open(log, "w") as file:
        done = subprocess.run([*argv, output, str(partial)], stdout=file, stderr=file, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{argv[:3]} failed with status {done.returncode}: see {log}")
    partial.rename(folder)


def prepare(out: Path, arms: list[Arm]) -> None:
    """What the arms need and is not in ``out``: questions, base models, and the critics that are made before.

    Raises RuntimeError if one cannot be made.
    """
    for name in sorted({arm.task for arm in arms}):
        home = out / name
        task.write_questions(home / "questions", (*SCALES, MOST), HELD_OUT, seed=0, **QUESTIONS[name])
        build = (sys.executable, str(BUILD), "--task", name)
        make(home / "base", build, "--out")
        critics = {arm.critic for arm in arms if arm.task == name}
        if HALF in critics:
            make(home / HALF, (*build, "--hidden", str(HALF_WIDTH)), "--out")
        if PRETRAINED in critics and not (home / PRETRAINED / "config.json").exists():
            run = Run(ROLLOUTS_OF_BASE, 100, out)  # a seed that no arm has
            runner = Runner([run], jobs=1)
            runner()
            if runner.failed:
                raise RuntimeError(f"no rollouts to fit a critic to: see {run.path / 'run.log'}")
            fit = (*PRETRAIN, "--rollouts", str(run.path), "--model", str(home / "base"), *FIT)
            make(home / PRETRAINED, fit, "--output")


class Runner:
    """Runs ``runs`` that are not finished, ``jobs`` at a time.

    Each has one core to itself, however many run at a time: its sums then have the same order, and a seed gives the
    same curves. Each has a Ray, an engine and workers of its own, too: process groups, seeds, thread counts and vLLM's
    settings belong to a process from its start, and arms differ in them.
    """

    def __init__(self, runs: list[Run], jobs: int):
        self.runs, self.jobs = runs, jobs
        self.failed: list[Run] = []
        self.children: set[subprocess.Popen] = set()
        self.stopping = threading.Event()
        self.cores: SimpleQueue[int] = SimpleQueue()
        allowed = sorted(os.sched_getaffinity(0))
        for slot in range(jobs):
            self.cores.put(allowed[slot % len(allowed)])
        # Ray's files lie here, and no note of a Ray that runs: its workers would not be on the run's core
        self.scratch = Path(tempfile.gettempdir()) / f"m{os.getpid()}"  # short: names of sockets are limited
        self.env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        self.env["RAY_TMPDIR"] = str(self.scratch)

    def __call__(self) -> None:
        """Returns when all have ended; those that failed are in ``failed``. Ctrl-C stops the ones that run."""
        missing = [run for run in self.runs if not run.complete()]
        print(f"[miniature] {len(self.runs)} runs, {len(self.runs) - len(missing)} finished before", flush=True)
        self.scratch.mkdir(exist_ok=True)
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                futures = [pool.submit(self.one, run) for run in missing]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    self.stop()
                    raise
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def stop(self) -> None:
        """Ask the runs to end, and start no other."""
        self.stopping.set()
        for child in list(self.children):
            child.send_signal(signal.SIGTERM)

    def one(self, run: Run) -> None:
        if self.stopping.is_set() or run.complete():  # another command may have finished it by now
            return
        core = self.cores.get()
        try:
            os.sched_setaffinity(0, {core})  # of this thread, and so of what it starts
            start = time.monotonic()
            status = 0 if run.finished() else self.train(run)
            if run.finished() and not self.stopping.is_set():
                status = self.child([*EVALUATE, *run.evaluation()], run)
            seconds = time.monotonic() - start
        finally:
            self.cores.put(core)
        name = f"{run.arm.name} seed {run.seed}"
        if run.complete():
            print(f"[miniature] {name}: {seconds:.0f} s", flush=True)
        elif not self.stopping.is_set():
            self.failed.append(run)
            print(f"[miniature] {name} FAILED with status {status}: see {run.path / 'run.log'}", flush=True)

    def train(self, run: Run) -> int:
        """The training command from the beginning: a run is minutes, and what a killed one left is of no use."""
        shutil.rmtree(run.path, ignore_errors=True)
        run.path.mkdir(parents=True)
        (run.path / STAMP).write_text(json.dumps(run.stamp()))
        return self.child([*COMMAND, *run.argv()], run)

    def child(self, argv: list[str], run: Run) -> int:
        """A command to its end, or to ours; what it prints goes to the run's log."""
        with open(run.path / "run.log", "a") as log:
            # a session of its own: Ctrl-C is passed on by us, once
            child = subprocess.Popen(
                argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT, env=self.env, start_new_session=True
            )
            self.children.add(child)
            try:
                while True:
                    try:
                        return child.wait(timeout=STOP_S)
                    except subprocess.TimeoutExpired:
                        if self.stopping.is_set():
                            child.kill()
            finally:
                self.children.discard(child)
