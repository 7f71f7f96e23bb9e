"""Memory by phase, on memory that is really held."""

import os
import subprocess
import sys

SCRIPT = """
from openrlhf_orz.runtime.memory import MemoryByPhase
memory = MemoryByPhase("actor")
with memory.phase("large"):
    held = bytearray(200 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    del held
with memory.phase("small"):
    pass
first, second = memory.take(), memory.take()
large, small = first["actor_memory_mib_large"], first["actor_memory_mib_small"]
assert large - small > 150, first
assert first["actor_memory_mib"] >= large and second["actor_memory_mib"] >= large, "of the whole life"
assert set(second) == {"actor_memory_mib"}, "phases are of the step"
with memory.phase("twice"):
    pass
with memory.phase("twice"):
    held = bytearray(100 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    del held
with memory.phase("twice"):
    pass
assert memory.take()["actor_memory_mib_twice"] - small > 70, "the most of a phase that comes several times"
"""


def test_phases_are_told_apart():
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
