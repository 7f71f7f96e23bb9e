"""The tiny run with a fault at random every half minute; at the end nothing may be lost. One JSON line.

    python benchmarks/soak.py [--minutes 30] [--every 30] [--seed 0] [--keep DIR]

Faults: a grader's worker killed, an engine killed (its actor or vLLM's own process), a process stopped (SIGSTOP:
engine or trainer), everything killed, everything killed with the newest checkpoint damaged, the checkpoints' disk
full (a small tmpfs, where this user may mount one). The command's own restarts (``--orz.max_restarts``) bring it back
where it can; where everything is killed this script starts it again with ``--ckpt.load_enable``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests" / "e2e")]
import common
from faults import Run, wait_for

from openrlhf_orz.data.arithmetic import generate_additions
from openrlhf_orz.data.prompts import PromptLoader

BASE = common.ROOT / "examples" / "tiny_base"
PROMPTS, BATCH, SAMPLES, SEED = 1000, 8, 8, 42
TMPFS_MIB = 160
RECOVER_S = 600  # longest wait for a new step after a fault; without one the fault is not survived


def flags(data: Path, checkpoints: Path) -> list:
    return [
        "--actor.model_name_or_path", BASE, "--data.prompt_dataset", data, "--orz.device", "cpu",
        "--ckpt.path", checkpoints, "--ckpt.save_steps", "2", "--ckpt.max_num", "2", "--train.seed", SEED,
        "--train.num_episodes", "1000", "--data.max_len", "160", "--rollout.max_new_tokens", "64",
        "--rollout.batch_size", BATCH, "--rollout.n_samples_per_prompt", SAMPLES, "--orz.critic_updates", "4",
        "--orz.warmup_steps", "0", "--actor.adam.lr", "3e-4", "--critic.adam.lr", "1e-3", "--orz.max_restarts", "1000",
        "--orz.generation_timeout_s", "30", "--orz.training_timeout_s", "60", "--orz.sync_timeout_s", "60",
        "--orz.checkpoint_timeout_s", "60", "--orz.start_timeout_s", "300",
    ]  # fmt: skip


class Soak:
    def __init__(self, folder: Path, options):
        self.folder, self.options = folder, options
        self.chance = random.Random(options.seed)
        self.injected, self.survived, self.lost = Counter(), Counter(), []
        self.samples: list[tuple[float, int, str, float, int]] = []  # seconds, pid, name, MiB, file descriptors
        self.data = folder / "rows.jsonl"
        rows = generate_additions(PROMPTS, (3, 3), seed=5)
        self.data.write_text("".join(json.dumps({k: r[k] for k in ("question", "answer")}) + "\n" for r in rows))
        self.disk = folder / "disk"
        self.disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MIB}m", "tmpfs", str(self.disk)]
        self.mounted = subprocess.run(mount, capture_output=True).returncode == 0
        self.kinds = ["grader", "engine", "stopped_engine", "stopped_trainer", "tree", "checkpoint", "tree"]
        self.kinds += ["disk_full"] if self.mounted else []
        self.run = self.start()

    def start(self, *more) -> Run:
        return Run(self.folder / "run", *flags(self.data, self.disk / "checkpoints"), *more)

    def metrics(self) -> list[dict]:
        try:
            lines = (self.folder / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
        except OSError:
            return []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def last(self) -> float:
        """When the last step was written."""
        found = self.metrics()
        return found[-1]["time"] if found else 0.0

    def advances(self, since: float, timeout: float) -> bool:
        return wait_for(lambda: self.last() > since or self.run.process.poll() is not None, timeout) and (
            self.last() > since
        )

    # ---- faults

    def victims(self, *names: str) -> list[psutil.Process]:
        return [process for name in names for process in self.run.named(name)]

    def inject(self, kind: str) -> bool:
        """Do harm; False where there was nobody to do it to."""
        if kind in ("tree", "checkpoint"):
            self.run.kill_tree()
            self.damage() if kind == "checkpoint" else None
            self.run = self.start("--ckpt.load_enable")
            return True
        if kind == "disk_full":
            filler = self.disk / "filler"
            with open(filler, "wb") as stream:
                try:
                    while stream.write(b"\0" * 2**20):
                        stream.flush()
                except OSError:
                    pass
            time.sleep(20)  # long enough for some checkpoints
            filler.unlink()
            return True
        names = {
            "grader": ("workers/worker.py",),
            "engine": ("OrzRolloutActor", "EngineCore"),
            "stopped_engine": ("EngineCore",),
            "stopped_trainer": ("OrzPolicyModelActor", "OrzCriticModelActor"),
        }[kind]
        found = self.victims(*names)
        if not found:
            return False
        try:
            self.chance.choice(found).send_signal(signal.SIGSTOP if "stopped" in kind else signal.SIGKILL)
        except psutil.NoSuchProcess:
            return False
        return True

    def damage(self) -> None:
        found = sorted((self.disk / "checkpoints").glob("global_step*"), key=lambda path: int(path.name[11:]))
        if len(found) > 1:  # the checkpoint before it must do
            victim = self.chance.choice([path for path in found[-1].rglob("*") if path.is_file()])
            content = bytearray(victim.read_bytes() or b"?")
            content[self.chance.randrange(len(content))] ^= 255
            victim.write_bytes(content)

    # ---- watching

    def watch(self, seconds: float) -> None:
        """Let the run go on and record memory and files of its long-lived processes."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.run.process.poll() is None:
            for process in self.victims("OrzPPOTrainer", "OrzPolicyModelActor", "OrzCriticModelActor", "EngineCore"):
                try:
                    name = process.cmdline()[0].split("::")[-1].split(".")[0]
                    memory, files = process.memory_info().rss / 2**20, process.num_fds()
                except (psutil.NoSuchProcess, IndexError):
                    continue
                self.samples.append((time.monotonic(), process.pid, name, memory, files))
            time.sleep(5)

    def slopes(self) -> tuple[float, float]:
        """MiB and file descriptors a minute, summed over the four kinds of process; medians over their lives.

        The first minute of each life is left out: caches fill.
        """
        lives: dict[tuple[int, str], list] = {}
        for when, pid, name, memory, files in self.samples:
            lives.setdefault((pid, name), []).append((when, memory, files))
        found: dict[str, list] = {}
        for (_, name), rows in lives.items():
            rows = [row for row in rows if row[0] > rows[0][0] + 60]
            if len(rows) >= 6 and len({row[0] for row in rows}) > 1:
                minutes = [row[0] / 60 for row in rows]
                fits = [statistics.linear_regression(minutes, [row[i] for row in rows]).slope for i in (1, 2)]
                found.setdefault(name, []).append((len(rows), *fits))
        longest = {name: sorted(fits, reverse=True)[:5] for name, fits in found.items()}
        return tuple(sum(statistics.median(fit[i] for fit in fits) for fits in longest.values()) for i in (1, 2))

    # ---- the whole

    def soak(self) -> None:
        if not self.advances(0, RECOVER_S):
            raise SystemExit("the run has not started:\n" + self.run.output())
        end = time.monotonic() + 60 * self.options.minutes
        while time.monotonic() < end:
            self.watch(self.chance.uniform(0.5, 1.5) * self.options.every)
            kind = self.chance.choice(self.kinds)
            before = time.time()
            if not self.inject(kind):
                continue
            self.injected[kind] += 1
            if self.advances(time.time() if kind != "disk_full" else before, RECOVER_S):
                self.survived[kind] += 1
            else:
                self.lost.append(f"no step within {RECOVER_S} s after {kind}")
                self.run.kill_tree()
                self.run = self.start("--ckpt.load_enable")
            print(f"{len(self.metrics())} steps, {kind}: {dict(self.survived)} {self.lost}", flush=True)
        self.run.process.send_signal(signal.SIGTERM)
        self.run.wait(300)

    def rows(self, name: str) -> list[dict]:
        """The lines of one of the run's files."""
        return [json.loads(line) for line in (self.folder / "run" / name).read_text().splitlines()]

    def check(self) -> dict:
        metrics = self.metrics()
        if [m["step"] for m in metrics] != list(range(1, len(metrics) + 1)):
            self.lost.append("the steps are not continuous")
        prompts = [row["prompt"] for row in self.rows("data/prompts_train.jsonl")]
        loader = PromptLoader(prompts, lambda items: items[0], SEED)
        order = [prompt for _ in range(1 + len(metrics) * BATCH // PROMPTS) for prompt in loader]
        trained = 0
        for step in range(1, len(metrics) + 1):
            rows = self.rows(f"rollouts/step_{step}.jsonl")
            asked = [row["prompt"] for row in rows[::SAMPLES]]
            expected = order[(step - 1) * BATCH : step * BATCH]
            if asked != expected or len(rows) != BATCH * SAMPLES:
                self.lost.append(f"step {step} was not trained on its prompts")
            trained += sum(a == b for a, b in zip(asked, expected))
        quarter = max(1, len(metrics) // 4)
        rewards = [statistics.fmean(m["reward"] for m in part) for part in (metrics[:quarter], metrics[-quarter:])]
        memory, files = self.slopes()
        faults = ("engines_restarted", "prompts_redone", "checkpoints_failed", "writes_failed", "restarts")
        return {
            "minutes": self.options.minutes, "injected": dict(self.injected), "survived": dict(self.survived),
            "lost": self.lost, "steps": len(metrics), "prompts_expected": len(metrics) * BATCH,
            "prompts_trained": trained, "memory_slope_mib_per_min": memory, "files_slope_per_min": files,
            "reward_first_quarter": rewards[0], "reward_last_quarter": rewards[1],
            "counted_at_the_end": {key: metrics[-1][key] for key in faults}, "tmpfs": self.mounted,
            "seed": self.options.seed,
        }  # fmt: skip

    def close(self) -> None:
        if self.run.process.poll() is None:
            self.run.kill_tree()
        if self.mounted:
            subprocess.run(["umount", str(self.disk)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=30, help="mean seconds of peace between recovery and fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="work in this empty directory and leave it")
    options = parser.parse_args()
    result = common.Result("soak")
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        folder = Path(options.keep or scratch)
        folder.mkdir(exist_ok=True)
        soak = Soak(folder, options)
        try:
            soak.soak()
            found = soak.check()
        finally:
            soak.close()
    result.finish(**found)
    sys.exit(1 if found["lost"] else 0)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
