"""What an engine that was killed leaves is found again by its record, and nothing else is touched."""

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil

from openrlhf_orz.runtime import processes
from openrlhf_orz.runtime.processes import ProcessRecord, clean_leftovers, shared_memory

PARENT = """
import subprocess, sys, time
from openrlhf_orz.runtime import processes
from openrlhf_orz.runtime.processes import ProcessRecord
child = subprocess.Popen([sys.executable, "-c", '''
from multiprocessing.shared_memory import SharedMemory
import time
memory = SharedMemory(create=True, size=4096)
print(memory.name, flush=True)
time.sleep(600)
'''], stdout=subprocess.PIPE, text=True)
name = child.stdout.readline().strip()
ProcessRecord(sys.argv[1]).write()
print(child.pid, name, flush=True)
time.sleep(600)
"""


def test_a_stopped_child_and_its_shared_memory_go(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, tmp_path / "engine"], stdout=subprocess.PIPE, text=True)
    pid, name = parent.stdout.readline().split()
    child, segment = psutil.Process(int(pid)), Path("/dev/shm") / name
    child.suspend()
    parent.kill()
    parent.wait()
    assert child.is_running() and segment.exists()
    ProcessRecord(str(tmp_path / "engine")).kill_leftovers()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not segment.exists() and not (tmp_path / "engine.json").exists()
    ProcessRecord(str(tmp_path / "engine")).kill_leftovers()  # nothing on record: nothing to do


def test_it_waits_until_they_have_ended(tmp_path, monkeypatch):
    """Their shared memory and GPU memory are free when the next engine starts."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    note = {"processes": [[child.pid, psutil.Process(child.pid).create_time()]], "segments": []}
    (tmp_path / "engine.json").write_text(json.dumps(note))
    answers = [False, False, True]
    monkeypatch.setattr(processes, "ended", lambda process: answers.pop(0))
    ProcessRecord(str(tmp_path / "engine")).kill_leftovers()
    assert not answers and child.wait(30) == -signal.SIGKILL


def test_a_record_of_this_process_does_not_end_it(tmp_path):
    """A restarted engine may have its predecessor's number."""
    record = ProcessRecord(str(tmp_path / "engine"))
    record.write()
    record.kill_leftovers()
    assert not record.path.exists()


def test_only_pythons_segments_are_listed(tmp_path):
    """Other files in shared memory may be those of the run, which the next process needs."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="orz-test-") as file:
        file.truncate(64)
        segment = SharedMemory(create=True, size=64)
        try:
            with mmap.mmap(file.fileno(), 64):
                assert {file.name, f"/dev/shm/{segment.name}"} <= shared_memory(os.getpid())
                record = ProcessRecord(str(tmp_path / "engine"))
                record.write()
            listed = json.loads(record.path.read_text())["segments"]
            assert f"/dev/shm/{segment.name}" in listed and file.name not in listed
        finally:
            segment.close()
            segment.unlink()


def test_leftovers_of_dead_runs_go(tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    living = f"orz-{os.getpid()}-0123abcd-file"
    names = [f"orz-{dead.pid}-0123abcd-file", f"orz-ray-{dead.pid}-0123abcd", f"orz-{dead.pid}-0123abcd-engine.json"]
    try:
        (tmp_path / names[0]).touch()
        (tmp_path / names[1] / "session").mkdir(parents=True)
        note = {"processes": [[engine.pid, psutil.Process(engine.pid).create_time()]], "segments": []}
        (tmp_path / names[2]).write_text(json.dumps(note))
        for name in (living, "orz-notes", f"other-{dead.pid}-0123abcd"):
            (tmp_path / name).touch()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
            assert clean_leftovers((str(tmp_path),)) == [], "another user's"
        assert sorted(clean_leftovers((str(tmp_path),))) == sorted(str(tmp_path / name) for name in names)
        assert engine.wait(30) == -signal.SIGKILL
        assert {path.name for path in tmp_path.iterdir()} == {living, "orz-notes", f"other-{dead.pid}-0123abcd"}
    finally:
        engine.kill()
        engine.wait()


def test_another_process_with_the_same_number_is_left_alone(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    memory = SharedMemory(create=True, size=64)
    try:
        note = {"processes": [[other.pid, 12345.0]], "segments": []}
        (tmp_path / "engine.json").write_text(json.dumps(note))
        ProcessRecord(str(tmp_path / "engine")).kill_leftovers()
        assert other.poll() is None and (Path("/dev/shm") / memory.name).exists()
    finally:
        other.kill()
        other.wait()
        memory.close()
        memory.unlink()
