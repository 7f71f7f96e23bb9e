"""Steps whose gradients are not finite: counted, dumped, the end of a run; not while a loss scale is sought."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("openrlhf")
from openrlhf_orz.trainer.step_guard import StepGuard


def guard_of(folder, fp16=False, scale=2.0**16):
    engine = SimpleNamespace(
        skipped_steps=0, global_steps=0, fp16_enabled=lambda: fp16, optimizer=SimpleNamespace(loss_scale=scale)
    )
    return engine, StepGuard(engine, folder, "policy", 0, limit=3)


BUFFER = SimpleNamespace(
    dynamic_optimizer_step=[1], dynamic_indices=[[0]], items=[SimpleNamespace(sequences=torch.zeros(1, 2))]
)


def step(engine, guard, skipped):
    engine.skipped_steps += skipped
    return guard.after_step(BUFFER, 0)


def test_a_run_ends_after_skipped_steps_in_a_row(tmp_path):
    engine, guard = guard_of(tmp_path)
    assert [step(engine, guard, skipped) for skipped in (1, 1, 0, 1, 1)] == [False, False, True, False, False]
    with pytest.raises(FloatingPointError, match="3 policy steps in a row"):
        step(engine, guard, 1)
    assert guard.total == 5 and len(list(tmp_path.iterdir())) == 5


def test_the_search_for_a_loss_scale_ends_no_run(tmp_path):
    """DeepSpeed begins at 2^16 and halves the scale after an overflow; at 1 it ends the run itself."""
    engine, guard = guard_of(tmp_path, fp16=True)
    assert not any(step(engine, guard, 1) for _ in range(10))
    assert guard.total == 10 and guard.in_a_row == 0 and not list(tmp_path.iterdir()), "nothing to study in them"
    assert step(engine, guard, 0)
    engine.optimizer.loss_scale = 1
    step(engine, guard, 1)
    assert guard.in_a_row == 1
