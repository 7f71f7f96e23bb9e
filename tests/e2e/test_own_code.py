"""A run with trainer, reward, labels and stop strings of the user's, started by a script that imports Ray first."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ENV, read_jsonl

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys

import ray  # before main(): its servers must stay on loopback all the same

from openrlhf_orz.cli.train_ppo_ray import main
from short_answers import Trainer


class Mine(Trainer):
    def train_step(self, rollout_samples, global_step):
        found = super().train_step(rollout_samples, global_step)
        self.metrics.add(loopback=float(ray.util.get_node_ip_address() == "127.0.0.1"))
        return found


sys.exit(main(sys.argv[1:], trainer_cls=Mine))
"""
REWARD = """
class Reward:
    def grade(self, response, label, stopped):
        assert isinstance(label, list), label
        return {"rewards": 0.75 if any(text in response for text in label) else 0.25, "extra_logs": {"format": 2.0}}
"""


def test_a_run_with_code_of_ones_own(tmp_path):
    page = (ROOT / "docs" / "extending.md").read_text()
    (tmp_path / "short_answers.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1))
    (tmp_path / "start.py").write_text(SCRIPT)
    (tmp_path / "my_reward.py").write_text(REWARD)
    rows = [{"messages": [{"role": "user", "content": f"{i}+1="}], "truth": {"any": [str(i + 1)]}} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable, "start.py", "--actor.model_name_or_path", ROOT / "examples" / "tiny_base",
        "--data.prompt_dataset", "rows.jsonl", "--data.input_key", "messages", "--data.label_key", "truth.any",
        "--ckpt.output_dir", "run", "--orz.device", "cpu", "--orz.prompt_template", "{{prompt}}",
        "--orz.stop", "+", "=", "--orz.reward_cls", "my_reward:Reward", "--orz.right_reward", "0.5",
        "--orz.logprob_gap_every", "1",
        "--data.max_len", "96", "--rollout.max_new_tokens", "24", "--rollout.batch_size", "2",
        "--rollout.n_samples_per_prompt", "8", "--orz.critic_updates", "2", "--orz.warmup_steps", "0",
    ]  # fmt: skip
    env = {**ENV, "PYTHONPATH": f"{ROOT}:{tmp_path}", "HOME": "/proc/nohome"}  # where nothing can be written
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first, second = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    for line in (first, second):
        assert line["loopback"] == 1.0 and 0 <= line["short_responses"] <= 1 and line["own_format"] == 2.0
        assert line["verdict_right"] is None and line["logprob_gap_tokens"] == line["response_tokens"]
        assert line["logprob_gap_mean"] < 0.05
    rollouts = [row for step in (1, 2) for row in read_jsonl(tmp_path / "run" / "rollouts" / f"step_{step}.jsonl")]
    assert len(rollouts) == 32 and all(isinstance(row["reference"], list) for row in rollouts)
    assert {row["right"] for row in rollouts if row["reward"] == 0.75} <= {True}
    assert {row["reward"] for row in rollouts if row["stop_reason"] == "length"} <= {0.0}
    for row in rollouts:  # the stop strings end it and stay in it
        assert not any(sign in row["response"][:-1] for sign in "+=")
        if row["stop_reason"] in ("+", "="):
            assert row["response"].endswith(row["stop_reason"]) and row["reward"] in (0.25, 0.75)
    assert any(row["stop_reason"] in ("+", "=") for row in rollouts)
