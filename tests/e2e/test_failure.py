"""A run that fails ends with a message."""

import json

import pytest
from runs import train, write_sums
from tiny_models import write_model

pytestmark = pytest.mark.e2e


def test_a_model_that_cannot_be_loaded(tmp_path):
    model = write_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    # what the check of headers before Ray does not compare: the width of keys and values
    (model / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 2}))
    run = tmp_path / "run"
    result = train(run, model, write_sums(tmp_path / "rows.jsonl", 4), timeout=300)
    assert result.returncode == 1, result.stderr
    told = result.stderr
    assert f"all logs: {run / 'logs'}" in told, told
    # a rank of the trainer, which names the weight, or vLLM: whoever comes first
    rank = "error: training failed" in told and ("k_proj" in told or "mismatch" in told.lower())
    assert rank or "error: engine 0 cannot start: " in told and "exceeds dimension size" in told, told


def test_an_engine_that_cannot_start(tmp_path):
    """The cause comes at once, not after --orz.start_timeout_s; and an engine's own words, not Ray's."""
    reward = tmp_path / "mine.py"
    # fine where it is looked at before Ray starts, and not in an engine
    reward.write_text(
        "import ray\n\nif ray.is_initialized():\n    raise RuntimeError('no engine for me')\n\n\n"
        "def reward_func(queries, prompts, labels):\n    return [1.0] * len(queries)\n"
    )
    model, run = write_model(tmp_path / "model"), tmp_path / "run"
    result = train(
        run, model, write_sums(tmp_path / "rows.jsonl", 4), "--reward.remote_url", reward, timeout=300
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    cause = "error: engine 0 cannot start: RuntimeError: no engine for me"
    assert f"{cause}; all logs: {run / 'logs'}" in result.stderr, result.stderr
