"""A critic fitted to stored rollouts by DeepSpeed: killed, gone on, loaded; its values are those that were tested."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF is not installed: bash tools/setup.sh")
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from openrlhf_orz.algo.value_fit import FitTable
from openrlhf_orz.cli.pretrain_critic import main
from openrlhf_orz.data.stored_rollouts import RolloutReader, split_by_prompt
from openrlhf_orz.evaluate.critic import load_critic, response_values

ENV = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
BASE = Path(__file__).parents[2] / "examples" / "tiny_base"


def write_rollouts(run: Path, tokenizer) -> Path:
    """Sixteen prompts with eight responses each of 20 to 30 tokens; right ones are of other digits than wrong."""
    rng = random.Random(0)
    (run / "rollouts").mkdir(parents=True)
    (run / "config.json").write_text('{"flags": {}}')
    digits = [tokenizer(digit, add_special_tokens=False)["input_ids"][0] for digit in "0123456789"]
    rows = []
    for place in range(128):
        prompt, right = f"What is {place // 8}+1?", place % 2
        ids = rng.choices(digits[:5] if right else digits[5:], k=rng.randrange(20, 31))
        rows.append({"prompt": prompt, "response": tokenizer.decode(ids), "token_ids": ids, "tokens": len(ids),
                     "reward": float(right)})  # fmt: skip
    (run / "rollouts" / "step_1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def write_model(path: Path, tokenizer) -> Path:
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    config = Qwen2Config(
        vocab_size=len(tokenizer), num_key_value_heads=1, tie_word_embeddings=True, eos_token_id=0, **sizes
    )
    Qwen2ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_critic_is_fitted_goes_on_after_a_kill_and_loads(tmp_path, capfd):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    run, model = write_rollouts(tmp_path / "run", tokenizer), write_model(tmp_path / "model", tokenizer)
    out = tmp_path / "critic"
    core = min(os.sched_getaffinity(0))  # one thread: a model this small gains nothing by more
    command = [
        "taskset", "-c", core, sys.executable, "-m", "openrlhf_orz.cli.pretrain_critic",
        "--rollouts", run, "--model", model, "--output", out,
        "--held_out", "0.25", "--rounds", "3", "--responses", "96", "--patience", "3", "--orz.critic_updates", "12",
        "--orz.value_loss", "bce", "--critic.adam.lr", "3e-3", "--orz.warmup_steps", "0", "--orz.device", "cpu",
        "--ds.param_dtype", "fp32",
    ]  # fmt: skip
    command = list(map(str, command))
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    checkpoints = out / "work" / "checkpoints"
    deadline = time.monotonic() + 300
    while not list(checkpoints.glob("global_step*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-3000:]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rest = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=600)
    assert rest.returncode == 0, rest.stdout[-2000:] + rest.stderr[-3000:]
    assert "resuming from" in rest.stdout and not (out / "work").exists()
    report = json.loads((out / "pretraining.json").read_text())
    numbers = [row["round"] for row in report["rounds"]]
    assert numbers == list(range(len(numbers))) and len(numbers) == 4, "no round is lost, none made twice"
    best = report["best"]
    assert best["explained_variance"] == max(row["explained_variance"] for row in report["rounds"]) > 0.5
    assert best["round"] > 0 and len(best["by_position"]) == 10
    assert f"--critic.model_name_or_path {out}" in rest.stdout and "90% - 100%" in rest.stdout

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    responses = RolloutReader(encode, tokenizer.decode, len(tokenizer)).read(run)
    _, held_out = split_by_prompt(responses, 0.25, seed=42)
    critic, table = load_critic(str(out), "cpu", torch.float32), FitTable()
    for response in held_out:
        values = response_values(critic, response.prompt_ids.tolist(), response.ids.tolist(), "cpu").numpy()
        table.add(values, np.full(len(values), response.reward))
    loaded = table.summary()
    for key in ("explained_variance", "value_mean", "calibration_error"):
        assert loaded[key] == pytest.approx(best[key], abs=1e-4), key
    further = [*command, "--model", str(out), "--output", str(tmp_path / "further"), "--rounds", "1"]
    rest = subprocess.run(further, env=ENV, capture_output=True, text=True, timeout=600)
    assert rest.returncode == 0, rest.stdout[-2000:] + rest.stderr[-3000:]
    started = json.loads((tmp_path / "further" / "pretraining.json").read_text())["rounds"][0]
    for key in ("explained_variance", "value_mean", "calibration_error"):  # loaded by the trainer's own class
        assert started[key] == pytest.approx(best[key], abs=1e-4), key
    assert main(command[6:]) == 0 and "is finished" in capfd.readouterr().out
    assert main([*command[6:], "--held_out", "0.5"]) == 2 and "is finished, with" in capfd.readouterr().err
