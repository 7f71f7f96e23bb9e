"""Real runs of the command line, as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

# Ray joins a Ray that runs; a test must not land in somebody else's. The number of threads is a run's own business.
# GPUs are hidden, as users hide them from a run on the CPU.
ENV = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
ENV["CUDA_VISIBLE_DEVICES"] = ""


def train(run_dir: Path, model: Path, data: Path, *flags: str, timeout: int = 900) -> subprocess.CompletedProcess:
    """Run the training command to its end; a small base of flags, which ``flags`` override."""
    command = [
        sys.executable, "-m", "openrlhf_orz.cli.train_ppo_ray",
        "--actor.model_name_or_path", model, "--data.prompt_dataset", data, "--ckpt.output_dir", run_dir,
        "--orz.device", "cpu", "--orz.prompt_template", "Question: {{prompt}}\nAnswer: <think>",
        "--data.max_len", "128", "--rollout.max_new_tokens", "16", "--rollout.batch_size", "4",
        "--rollout.n_samples_per_prompt", "4", "--orz.critic_updates", "3", "--orz.warmup_steps", "0", *flags,
    ]  # fmt: skip
    return subprocess.run(list(map(str, command)), env=ENV, capture_output=True, text=True, timeout=timeout)


def succeed(run_dir: Path, *args, **kwargs) -> list[dict]:
    """As ``train``; asserts success and returns the lines of metrics.jsonl."""
    result = train(run_dir, *args, **kwargs)
    logs = "".join(f"\n== {f.name}\n{f.read_text()[-1500:]}" for f in sorted(run_dir.glob("logs/*.err")))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-5000:] + logs
    return read_jsonl(run_dir / "metrics.jsonl")


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_sums(path: Path, rows: int) -> Path:
    """Questions and answers of one-digit sums, as JSON lines."""
    pairs = [(a, b) for a in range(10) for b in range(10)][:rows]
    path.write_text("".join(json.dumps({"question": f"{a}+{b}=?", "answer": str(a + b)}) + "\n" for a, b in pairs))
    return path
