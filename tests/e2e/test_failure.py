"""A run that fails ends with a message."""

import pytest
from runs import train, write_sums
from tiny_models import write_model

pytestmark = pytest.mark.e2e


def test_a_model_that_cannot_be_loaded(tmp_path):
    model = write_model(tmp_path / "model")
    data = (model / "model.safetensors").read_bytes()
    # what the check of headers before Ray does not see: a tensor's size is not that of its numbers
    (model / "model.safetensors").write_bytes(data.replace(b'"F32"', b'"F16"', 1))
    run = tmp_path / "run"
    result = train(run, model, write_sums(tmp_path / "rows.jsonl", 4), timeout=300)
    assert result.returncode == 1, result.stderr
    assert f"error: training failed; all logs: {run / 'logs'}" in result.stderr
    assert "safetensor" in result.stderr.lower() or "header" in result.stderr.lower()
