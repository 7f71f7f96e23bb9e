"""examples/orz_in_one_file.py computes what the real trainers compute under DeepSpeed, on a fixed rollout."""

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF is not installed: bash tools/setup.sh")

from test_zero_gradients import run_ranks


@pytest.fixture(scope="module")
def result():
    return run_ranks(1, "one_file")


@pytest.mark.parametrize("name", ["values", "advantages", "returns"])
def test_advantages(result, name):
    assert result[name] < 1e-5, result


@pytest.mark.parametrize("model, steps", [("policy", 1), ("critic", 12)])
def test_losses_gradients_and_parameters(result, model, steps):
    """Of every optimizer step; the parameters after the last one. Packs and micro-batches change nothing."""
    found = result[model]
    ours, real = found["losses"]
    assert len(ours) == len(real) == len(found["gradients"]) == steps, found
    assert ours == pytest.approx(real, rel=1e-4, abs=1e-6)
    assert max(found["gradients"]) < 1e-4, found
    assert found["parameters"] < 1e-4, found


def test_the_policy_step_is_made_of_several_micro_batches(result):
    assert result["policy"]["micro_batches"] > 1
