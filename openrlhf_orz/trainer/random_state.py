"""The random states of a process as plain values, which load without executing code."""

import random

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator


def capture() -> dict:
    """States of Python's, NumPy's, torch's and the device's generators."""
    kind, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if get_accelerator().device_name() != "cpu":
        state["device"] = get_accelerator().get_rng_state()
    return state


def restore(state: dict) -> None:
    """Set what ``capture`` has returned."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "device" in state:
        get_accelerator().set_rng_state(state["device"])
