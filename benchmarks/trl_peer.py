"""step_time.py --peer trl: our whole step, vLLM's generation and the critic included, against TRL's GRPO with Hugging
Face generation, alternating. Responses have one length; rewards cost nothing on TRL's side.
"""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import common

VENV = Path(os.environ.get("TRL_VENV") or common.ROOT / ".cache" / "trl-venv")
MICRO_BATCH = 8  # TRL's default


class Trl:
    """TRL's trainer in a process of its own, one step at a time."""

    def __init__(self, model, prompts, tokens, steps, threads, dtype):
        python = VENV / "bin" / "python"
        if not python.exists():
            raise SystemExit("TRL is not installed: run bash benchmarks/setup_trl.sh")
        command = [python, Path(__file__).with_name("trl_side.py"), "--model", model, "--prompts", json.dumps(prompts),
                   "--group", common.GROUP, "--tokens", tokens, "--micro-batch", MICRO_BATCH, "--steps", steps,
                   "--threads", threads, "--dtype", common.DTYPES[dtype]]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            list(map(str, command)), env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def step(self) -> float:
        """Seconds of a whole step: generation and training."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("STEP "):
                return json.loads(line[5:])["seconds"]
        raise RuntimeError(f"TRL's process ended with status {self.process.wait()}")

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def version(self) -> str:
        code = "import trl, torch, transformers as t; print(trl.__version__, torch.__version__, t.__version__)"
        command = [VENV / "bin" / "python", "-c", code]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def against_trl(options) -> dict:
    import ray
    import sides

    from openrlhf_orz.rollout.engine import engine_args

    cores = len(os.sched_getaffinity(0))
    pairs = common.draw_lengths(options.lengths, options.rollouts)
    tokens = round(sum(r for _, r in pairs) / len(pairs))
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch_dir:
        model = common.write_model(Path(scratch_dir) / "model", options.size)
        flags = sides.common_flags(model, options.rollouts, options.dtype)
        flags += ["--rollout.max_new_tokens", str(tokens)]
        flags += ["--train.max_tokens_per_gpu", str(options.max_tokens)] if options.max_tokens else []
        args = sides.our_args(flags, Path(scratch_dir) / "run", prompt="1" * pairs[0][0])
        prompts = [rows[1][0] for rows in sides.prompts_of(argparse_like(args), None)[0]]
        rows = {"ours": [], "trl": []}
        with sides.session(args) as (pg, scratch):
            engines = sides.start_engine("ours", args, pg, engine_args(args))
            ours = sides.Side("ours", args, pg, scratch, engines)
            ours.call("start")
            trl = Trl(model, prompts, tokens, options.repeats + 1, cores, options.dtype)
            for i in range(options.repeats + 1):
                start = time.perf_counter()
                samples, *_ = ours.trainer.samples_generator.generate_samples(**ours.trainer.generate_kwargs)
                ours.trainer.samples_generator._dataloader_iter = None
                generated = time.perf_counter() - start
                ours.trainer.train_step(samples, i + 1)
                found = {"ours": {"step": time.perf_counter() - start, "generation": generated}}
                found["trl"] = {"step": trl.step()}
                print(i, found, flush=True)
                if i:
                    for name, row in found.items():
                        rows[name].append(row)
            versions = trl.version()
            trl.close()
            ours.close()
            ray.get(engines[0].shutdown.remote())
    phases = {name: common.medians(found) for name, found in rows.items()}
    rates = {name: options.rollouts / row["step"] for name, row in phases.items()}
    return {
        "samples_per_s_ratio": rates["ours"] / rates["trl"], "samples_per_s": rates, "seconds_by_phase": phases,
        "rollouts": options.rollouts, "response_tokens_each": tokens, "size": options.size, "repeats": options.repeats,
        "trl_torch_transformers": versions, "trl_micro_batch": MICRO_BATCH,
        "note": "Ours trains a critic in 12 steps and a policy and grades the answers; GRPO trains the policy alone.",
    }  # fmt: skip


def argparse_like(args):
    """The attributes of a strategy that ``prompts_of`` reads."""
    from types import SimpleNamespace

    return SimpleNamespace(args=args)
