"""Where the time of a start goes: from the command to the end of the first step, and from the last step to the prompt.

    python benchmarks/start.py [--repeats 3] [flags of python -m openrlhf_orz.cli.train_ppo_ray]

Trains examples/tiny_base for two steps as the quickstart does. Stages are what the run says on its console, with
seconds since the command; the seconds of a core are those that each kind of process has used, watched from outside.
Medians of the repeats; result: results/start.json. Stock OpenRLHF has no start on a CPU to put beside it.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import common
import psutil

STEPS, PROMPTS = 2, 16
FLAGS = (
    "--actor.model_name_or_path examples/tiny_base --data.max_len 128 --train.max_tokens_per_gpu 8192"
    f" --rollout.batch_size {PROMPTS} --rollout.n_samples_per_prompt 8 --rollout.max_new_tokens 48"
    " --actor.adam.lr 2e-4 --critic.adam.lr 1e-3 --orz.warmup_steps 0 --orz.critic_updates 12"
).split()
KINDS = {  # by words of a command line; the first that fits
    "imports, once": "fork_server serve",
    "policy": "PolicyModelActor",
    "critic": "CriticModelActor",
    "trainer": "PPOTrainer",
    "engine's actor": "OrzRolloutActor",
    "vLLM's core": "VLLM::|EngineCore|spawn_main",
    "graders": "reward/workers|forkserver",
    "Ray": "ray::|/ray/",
    "driver": "train_ppo_ray",
}
STAGES = {  # what the console says when a stage is over
    "driver's imports and data": r"starting Ray",
    "Ray": r"starting engines",
    "policy and critic loaded": r"(policy|critic) is loaded",
    "engine ready": r"engine \d+ is ready",
    "first step": r"^step 1/",
    "last step": rf"^step {STEPS}/",
    "saved and shut down": r"s in all",
}


def kind_of(command: str) -> str:
    """The kind of process that has this command line."""
    return next((kind for kind, words in KINDS.items() if re.search(words, command)), "others")


def watch(process: psutil.Process, used: dict[int, tuple[str, float]], over: threading.Event) -> None:
    """Note in ``used`` the kind of each process from ``process`` on and the seconds of a core that it has used."""
    while not over.wait(0.25):
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.Error:
            return
        for each in family:
            try:
                times, command = each.cpu_times(), " ".join(each.cmdline())
            except psutil.Error:
                continue
            before = used.get(each.pid, ("others", 0.0))
            # what has ended has no command line; a fork has its server's until Ray names it
            kind = kind_of(command) if command else before[0]
            used[each.pid] = (kind, times.user + times.system)


def stages_of(lines: list[tuple[float, str]]) -> dict[str, float]:
    """Seconds since the command at which each stage was over; the last line that tells it counts."""
    return {
        stage: round(max(seconds for seconds, text in lines if re.search(words, text)), 2)
        for stage, words in STAGES.items()
        if any(re.search(words, text) for _, text in lines)
    }


def run_once(folder: Path, extra: list[str]) -> dict:
    """One run; its stages, the seconds of a core by kind of process, and the seconds of the whole command."""
    data = folder / "data.jsonl"
    rows = [{"question": f"What is {i} + {i + 1}?", "answer": str(2 * i + 1)} for i in range(STEPS * PROMPTS)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-u", "-m", "openrlhf_orz.cli.train_ppo_ray", *FLAGS]
    command += ["--data.prompt_dataset", str(data), "--ckpt.output_dir", str(folder / "run"), *extra]
    start, used, over, lines = time.perf_counter(), {}, threading.Event(), []
    with psutil.Popen(command, cwd=common.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        watcher = threading.Thread(target=watch, args=(psutil.Process(run.pid), used, over))
        watcher.start()
        for line in run.stdout:
            lines.append((time.perf_counter() - start, line.strip()))
        status = run.wait()
        over.set()
        watcher.join()
    if status:
        raise SystemExit("\n".join(text for _, text in lines))
    by_kind: dict[str, float] = {}
    for kind, seconds in used.values():
        by_kind[kind] = round(by_kind.get(kind, 0.0) + seconds, 1)
    return {"stages": stages_of(lines), "core_seconds": by_kind, "seconds": round(time.perf_counter() - start, 1)}


def middle(runs: list[dict], key: str) -> dict[str, float]:
    """The medians of a dictionary in each run; what a run lacks counts as 0."""
    names = dict.fromkeys(name for run in runs for name in run[key])
    return {name: common.median(run[key].get(name, 0.0) for run in runs) for name in names}


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    options, extra = parser.parse_known_args(argv)
    result, runs = common.Result("start"), []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(run_once(Path(folder), extra))
    stages, used = middle(runs, "stages"), middle(runs, "core_seconds")
    before = 0.0
    for stage, seconds in stages.items():
        print(f"{seconds:7.1f} s  {stage} (+{seconds - before:.1f})")
        before = seconds
    for kind, seconds in sorted(used.items(), key=lambda item: -item[1]):
        print(f"{seconds:7.1f} s of a core  {kind}")
    return result.finish(
        stages=stages, core_seconds=used, first_step=stages["first step"],
        whole=common.median(run["seconds"] for run in runs), repeats=options.repeats, runs=runs,
    )  # fmt: skip


if __name__ == "__main__":
    main()
