"""Part (b) of run.sh: real runs on one GPU, with the whole stack. Each check says what it expects.

    python tests/gpu/gpu_stack.py FOLDER        # MODEL (default Qwen/Qwen2.5-0.5B) by environment

It has not run: no GPU was at hand.
"""

import json
import os
import re
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "e2e")]

from faults import Run
from runs import read_jsonl, write_sums

TINY = ["--data.max_len", "128", "--rollout.batch_size", "16", "--rollout.n_samples_per_prompt", "8",
        "--rollout.max_new_tokens", "48", "--orz.warmup_steps", "0", "--ckpt.save_steps", "-1"]  # fmt: skip


def start(folder: Path, name: str, *flags, model=ROOT / "examples" / "tiny_base", **env) -> Run:
    data = write_sums(folder / "sums.jsonl", 64)
    ours = ["--actor.model_name_or_path", model, "--data.prompt_dataset", data, "--orz.device", "cuda"]
    env["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES")  # the end-to-end tests hide GPUs
    return Run(
        folder / name, *ours, "--orz.put_aside", "--actor.num_nodes", 1, "--actor.num_gpus_per_node", 1, *flags, **env
    )


def over(run: Run, seconds: float) -> list[dict]:
    status = run.wait(seconds)
    assert status == 0, run.output()[-3000:]
    return read_jsonl(run.run_dir / "metrics.jsonl")


def sync(folder):
    """Weights in many small buckets, compared with the trainer's after each sync."""
    rows = over(start(folder, "sync", *TINY, "--orz.check_sync", "--orz.sync_bucket_mib", "1"), 900)
    gaps = {key: value for key, value in rows[-1].items() if "sync" in key}
    return gaps, len(rows) == 4


def engine_killed(folder):
    """At several moments of a step: the run goes on to its end, or ends with the cause in two minutes."""
    found, fine = {}, True
    for part in (0.0, 0.3, 0.6, 0.9):
        asleep = ("--vllm.enable_sleep", "--ds.enable_sleep", "--ds.zero_stage", "3")
        run = start(folder, f"killed-{part}", *TINY, *asleep, "--train.num_episodes", "3")
        run.wait_for_step(1, 900)
        first = time.monotonic()
        run.wait_for_step(2, 900)
        time.sleep(part * (time.monotonic() - first))
        run.kill_engine()
        began = time.monotonic()
        status, seconds = run.wait(900), time.monotonic() - began
        causes = re.findall(r"error: (engine \d+ .+)", run.output()) if status else []
        found[str(part)] = {"status": status, "seconds": seconds, "steps": run.steps(), "cause": causes[-1:]}
        fine &= bool(causes) and seconds < 120 if status else run.steps() == 12
    return found, fine


def sequences_at_once(folder):
    """A larger model's generation with 128 and with 1,024 sequences at once."""
    seconds = {}
    for number in (128, 1024):
        size = ("--data.max_len", "2048", "--rollout.batch_size", "16", "--data.max_samples", "32")
        model = os.environ.get("MODEL", "Qwen/Qwen2.5-0.5B")
        run = start(folder, f"seqs-{number}", *size, "--orz.max_num_seqs", number, model=model)
        rows = over(run, 1800)
        seconds[number] = {key: value for key, value in rows[-1].items() if key.startswith("seconds")}
    return seconds, seconds[1024]["seconds_generation"] < seconds[128]["seconds_generation"]


CHECKS = (
    ("sync", "the quickstart's model on one GPU, four steps, weights equal after each sync", sync),
    ("engine_killed", "goes on, or ends with the cause, whenever the engine dies", engine_killed),
    ("sequences_at_once", "1,024 sequences at once are the quicker", sequences_at_once),
)


def main(folder):
    folder = Path(folder).resolve()
    results, failed = {}, []
    for name, expects, check in CHECKS:
        start_time = time.monotonic()
        try:
            found, fine = check(folder)
        except Exception:  # the next check may tell more
            found, fine = {"error": traceback.format_exc()[-4000:]}, False
        results[name] = {"expects": expects, "ok": fine, "seconds": time.monotonic() - start_time, "found": found}
        failed += [] if fine else [name]
        print(f"{'ok  ' if fine else 'FAIL'} {name:<18} {expects}: {json.dumps(found)[:600]}", flush=True)
    (folder / "stack.json").write_text(json.dumps(results, indent=1))
    print(f"{len(CHECKS) - len(failed)} of {len(CHECKS)} as expected; {folder}/stack.json")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
