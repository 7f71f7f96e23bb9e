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
    assert f"error: training failed; all logs: {run / 'logs'}" in result.stderr
    assert "k_proj" in result.stderr or "mismatch" in result.stderr.lower(), result.stderr
