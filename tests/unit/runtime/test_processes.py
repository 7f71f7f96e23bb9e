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
import pytest

from openrlhf_orz.runtime import processes
from openrlhf_orz.runtime.processes import ProcessRecord, pid_namespace, shared_memory

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


def record(processes, segments=()) -> dict:
    return {"namespace": pid_namespace(), "processes": processes, "segments": list(segments)}


@pytest.fixture
def victim():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


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
    note = record([[child.pid, psutil.Process(child.pid).create_time()]])
    (tmp_path / "engine.json").write_text(json.dumps(note))
    answers = [False, False, False, True]
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


def test_another_process_with_the_same_number_is_left_alone(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    memory = SharedMemory(create=True, size=64)
    try:
        note = record([[other.pid, 12345.0]])
        (tmp_path / "engine.json").write_text(json.dumps(note))
        ProcessRecord(str(tmp_path / "engine")).kill_leftovers()
        assert other.poll() is None and (Path("/dev/shm") / memory.name).exists()
    finally:
        other.kill()
        other.wait()
        memory.close()
        memory.unlink()


def test_a_record_of_somebody_else_does_nothing(tmp_path, victim, monkeypatch):
    """Also one of this user's own in another container, where the number means another process."""
    segment = SharedMemory(create=True, size=64)
    listed = [[victim.pid, psutil.Process(victim.pid).create_time()]]
    file = tmp_path / "engine.json"
    try:
        file.write_text(json.dumps({**record(listed), "namespace": pid_namespace() + 1}))
        ProcessRecord(str(tmp_path / "engine")).kill_leftovers()
        assert victim.poll() is None and not file.exists()

        file.write_text(json.dumps(record(listed, [f"/dev/shm/{segment.name}"])))
        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
            ProcessRecord(str(tmp_path / "engine")).kill_leftovers()
        (tmp_path / "real.json").write_text(json.dumps(record(listed, [f"/dev/shm/{segment.name}"])))
        file.unlink(missing_ok=True)
        file.symlink_to(tmp_path / "real.json")
        ProcessRecord(str(tmp_path / "engine")).kill_leftovers()
        assert victim.poll() is None and (Path("/dev/shm") / segment.name).exists()
        assert not ProcessRecord(str(tmp_path / "engine")).alive() and ProcessRecord(str(tmp_path / "real")).alive()
    finally:
        segment.close()
        segment.unlink()


def test_only_segments_are_removed(tmp_path):
    precious = tmp_path / "precious"
    for name in (precious, f"/dev/shm/../{precious}", f"/dev/shm/psm_/../../{precious}"):
        precious.touch()
        (tmp_path / "engine.json").write_text(json.dumps(record([], [str(name)])))
        ProcessRecord(str(tmp_path / "engine")).kill_leftovers()
        assert precious.exists()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", "[" * 100_000, '{"processes": 1, "segments": [], "namespace": 0}',
     json.dumps(record([["x", 1]])), json.dumps(record([[1e400, 1]])), json.dumps(record([[-5, 1.0]])),
     json.dumps(record([[10**30, 1.0]])), json.dumps(record([1])), json.dumps(record([], [None, 7]))],
)  # fmt: skip
def test_what_is_no_record_is_none(tmp_path, text):
    (tmp_path / "engine.json").write_text(text)
    ProcessRecord(str(tmp_path / "engine")).kill_leftovers()
    assert not (tmp_path / "engine.json").exists()


def test_a_folder_or_a_pipe_is_no_record(tmp_path):
    (tmp_path / "a.json").mkdir()
    os.mkfifo(tmp_path / "b.json")
    for name in "ab":
        ProcessRecord(str(tmp_path / name)).kill_leftovers()
