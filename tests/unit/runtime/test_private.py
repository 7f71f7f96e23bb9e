"""What a run leaves for its own processes is its user's alone, and goes when no process of the run lives."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from openrlhf_orz.runtime import private
from openrlhf_orz.runtime.private import (
    LONGEST_ROOT,
    FolderLock,
    Occupied,
    clean_leftovers,
    compile_cache,
    host_key,
    new_scratch,
    private_folder,
    ray_root,
    require_private,
)
from openrlhf_orz.runtime.processes import pid_namespace

HOLD = """
import os, sys
from openrlhf_orz.runtime.private import private_folder
with private_folder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path, *before) -> subprocess.Popen:
    process = subprocess.Popen(
        [*before, sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def write_record(path, process) -> None:
    listed = [[process.pid, psutil.Process(process.pid).create_time()]]
    note = {"namespace": pid_namespace(), "processes": listed, "segments": []}
    Path(path).write_text(json.dumps(note))


def name(digits="0123abcd", key=None) -> str:
    return f"orz-{key or host_key()}-{digits}"


@pytest.fixture
def somebody_else(monkeypatch, tmp_path):
    """Makes this process another user than the one who owns the files."""
    return lambda: monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)


def test_nobody_else_may_enter(tmp_path, monkeypatch):
    monkeypatch.setattr(private, "shared_folder", lambda: str(tmp_path))
    path = new_scratch()
    assert re.fullmatch(rf"{tmp_path}/orz-[0-9a-f]{{6}}-[0-9a-f]{{8}}/", path) and new_scratch() != path
    with private_folder(path):
        assert os.stat(path).st_mode & 0o777 == 0o700 and require_private(path) == path
        (tmp_path / "outside").touch()
    assert [entry.name for entry in tmp_path.iterdir()] == ["outside"]


def test_a_folder_that_somebody_made_before_is_refused(tmp_path, somebody_else):
    wide, link = tmp_path / "wide", tmp_path / "link"
    wide.mkdir(mode=0o755)
    (tmp_path / "own").mkdir(mode=0o700)
    link.symlink_to(tmp_path / "own")
    for path in (wide, link, f"{link}/"):
        with pytest.raises(PermissionError, match="not this user's alone"):
            require_private(path)
    require_private(tmp_path / "own")
    (tmp_path / "own" / "file").touch()
    somebody_else()
    for make in (require_private, lambda path: private_folder(path).__enter__()):
        with pytest.raises(PermissionError):
            make(str(tmp_path / "own"))


def test_who_holds_a_folder_is_told(tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(Occupied, match=rf"process {os.getpid()}, since 20"):
        FolderLock(tmp_path)
    lock.release()
    FolderLock(tmp_path).release()


def test_leftovers_of_dead_runs_go(tmp_path, somebody_else, monkeypatch):
    living, dead, gone = (str(tmp_path / name(f"{digit * 8}")) for digit in "abc")
    holder, killed = hold(living), hold(dead)
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        write_record(f"{dead}/engine.json", engine)
        others = [tmp_path / other for other in (name(key="000000"), "orz-notes", f"{name()}x", "other")]
        for other in others:
            other.mkdir()
        (tmp_path / name("dddddddd")).touch()  # a file, not a folder
        (tmp_path / name("eeeeeeee")).symlink_to(living)
        killed.kill()
        killed.wait()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
            assert clean_leftovers((str(tmp_path),)) == [], "another user's"
        os.mkdir(gone, 0o700)
        assert sorted(clean_leftovers((str(tmp_path),))) == sorted([dead, gone])
        assert engine.wait(30) < 0, "the killed run's"
        assert os.path.isdir(living) and all(other.exists() for other in others)
    finally:
        engine.kill()
        engine.wait()
        holder.communicate()
    assert not os.path.exists(living)


def test_a_run_in_another_container_is_alive(tmp_path):
    """Its number of a process means nothing here, and its lock does."""
    path = str(tmp_path / name())
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("making a namespace needs root")
    holder = hold(path, *unshare)
    assert clean_leftovers((str(tmp_path),)) == [] and os.path.isdir(path)
    holder.communicate()
    assert not os.path.exists(path)


def test_a_folder_without_a_lock_lives_with_the_processes_on_record(tmp_path):
    path = tmp_path / name()
    path.mkdir(mode=0o700)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    write_record(path / "rank.json", process)
    assert clean_leftovers((str(tmp_path),)) == []
    process.kill()
    process.wait()
    assert clean_leftovers((str(tmp_path),)) == [str(path)]


def test_a_second_process_of_the_run_leaves_the_folder_to_the_first(tmp_path):
    path = str(tmp_path / name())
    with private_folder(path):
        with private_folder(path):
            pass
        assert os.path.isdir(path)
    assert not list(tmp_path.iterdir())


def test_sockets_have_short_paths(tmp_path):
    longest = "/" + "x" * (LONGEST_ROOT - 1)
    assert ray_root(longest) == longest and ray_root(longest + "y") == "/tmp"
    session = f"{longest}/{name()}/r/session_2026-11-29_00-21-09_123456_4194304/sockets/plasma_store"
    assert len(session) <= 107


def test_compiled_code_of_others_is_not_run(tmp_path, somebody_else, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    wanted = str(tmp_path / "torchinductor_me")
    assert compile_cache(wanted) == wanted and os.stat(wanted).st_mode & 0o777 == 0o700
    os.chmod(wanted, 0o755)
    assert compile_cache(wanted) == wanted, "torch's own mode"
    os.chmod(wanted, 0o777)
    own = str(tmp_path / "home" / "openrlhf_orz" / "torchinductor_me")
    assert compile_cache(wanted) == own and os.stat(own).st_mode & 0o777 == 0o700
    os.rmdir(wanted)
    os.symlink(own, wanted)
    assert compile_cache(wanted) == own
    os.unlink(wanted)
    (tmp_path / "torchinductor_me").mkdir()
    somebody_else()
    with pytest.raises(PermissionError):
        compile_cache(wanted)  # here the one in the home folder is a stranger's, too


def test_what_vllm_leaves_goes_with_the_command(monkeypatch, tmp_path):
    """Also where the command fails; what a killed one has left goes with the next."""
    monkeypatch.setattr(private, "shared_folder", lambda: str(tmp_path))
    monkeypatch.setattr(private, "compile_cache", lambda wanted: str(tmp_path / "cache"))
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "/before")
    temporary = tempfile.gettempdir()
    dead = tmp_path / private.new_scratch().rstrip("/").rpartition("/")[2]
    dead.mkdir(mode=0o700)
    (dead / private.LOCK).touch()
    with pytest.raises(KeyError), private.vllm_files():
        (folder,) = tmp_path.iterdir()
        assert os.environ["VLLM_RPC_BASE_PATH"] == os.environ["TMPDIR"] == str(folder) != str(dead)
        assert tempfile.gettempdir() == str(folder)
        (compiled,) = folder.glob("torchinductor_*")
        assert compiled.is_symlink() and os.path.realpath(compiled) == os.path.realpath(str(tmp_path / "cache"))
        (folder / "socket").touch()
        raise KeyError
    assert not list(tmp_path.iterdir()) and os.environ["VLLM_RPC_BASE_PATH"] == "/before"
    assert tempfile.gettempdir() == temporary


def test_vllms_files_for_a_user_whom_the_machine_does_not_know(monkeypatch, tmp_path):
    """As in a container that is given a number."""
    import pwd

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(private, "shared_folder", lambda: str(tmp_path))
    monkeypatch.setattr(private, "compile_cache", lambda wanted: str(tmp_path / "cache"))
    with private.vllm_files():
        (folder,) = tmp_path.iterdir()
        assert (folder / f"torchinductor_uid_{os.getuid()}").is_symlink()
