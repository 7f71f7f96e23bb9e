"""What an engine that was killed leaves is found again by its record, and nothing else is touched."""

import json
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from openrlhf_orz.runtime.processes import Family

PARENT = """
import subprocess, sys, time
from openrlhf_orz.runtime.processes import Family
child = subprocess.Popen([sys.executable, "-c", '''
from multiprocessing.shared_memory import SharedMemory
import time
memory = SharedMemory(create=True, size=4096)
print(memory.name, flush=True)
time.sleep(600)
'''], stdout=subprocess.PIPE, text=True)
name = child.stdout.readline().strip()
Family(sys.argv[1]).record()
print(child.pid, name, flush=True)
time.sleep(600)
"""


def test_a_stopped_child_and_its_shared_memory_go(tmp_path):
    import psutil

    parent = subprocess.Popen([sys.executable, "-c", PARENT, tmp_path / "engine"], stdout=subprocess.PIPE, text=True)
    pid, name = parent.stdout.readline().split()
    child, segment = psutil.Process(int(pid)), Path("/dev/shm") / name
    child.suspend()
    parent.kill()
    parent.wait()
    assert child.is_running() and segment.exists()
    Family(str(tmp_path / "engine")).bury()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not segment.exists() and not (tmp_path / "engine.json").exists()
    Family(str(tmp_path / "engine")).bury()  # nothing on record: nothing to do


def test_another_process_with_the_same_number_is_left_alone(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    memory = SharedMemory(create=True, size=64)
    try:
        note = {"processes": [[other.pid, 12345.0]], "segments": []}
        (tmp_path / "engine.json").write_text(json.dumps(note))
        Family(str(tmp_path / "engine")).bury()
        assert other.poll() is None and (Path("/dev/shm") / memory.name).exists()
    finally:
        other.kill()
        other.wait()
        memory.close()
        memory.unlink()
