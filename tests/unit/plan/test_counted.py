"""The formula against torch's own counter, on the model code that training runs."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.mark.parametrize("role", ["actor", "critic"])
def test_flops_of_the_tiny_model(role, monkeypatch, tmp_path):
    monkeypatch.setenv("BENCHMARK_RESULTS", str(tmp_path))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("plan")
    found = benchmark.count_flops("tiny", role, benchmark.parse(["--dtype", "fp32", "--tokens", "420"]))
    assert found["error"] == pytest.approx(0, abs=1e-4)  # the counter has rotary positions, too
    assert found["error_attention"] == pytest.approx(0, abs=1e-4)
    for name in ("plan", "common", "gpu_train_step"):
        sys.modules.pop(name, None)
