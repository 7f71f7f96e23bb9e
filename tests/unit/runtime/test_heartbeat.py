"""A process that is silent is noticed, by a clock that stands still while the watcher itself is stopped."""

import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from openrlhf_orz.runtime import watchdog
from openrlhf_orz.runtime.watchdog import (
    Heartbeats,
    PhaseTimeout,
    heartbeat_folder,
    require_heartbeats,
    start_heartbeat,
)


def arguments(tmp_path, seconds=0.5):
    orz = SimpleNamespace(run_dir=str(tmp_path), trainer_timeout_s=seconds)
    return SimpleNamespace(orz=orz, run=SimpleNamespace(scratch=f"{tmp_path}/scratch/"))


def test_silence_by_hand(tmp_path):
    file = tmp_path / "trainer"
    file.touch()
    heartbeats = Heartbeats(tmp_path)
    assert heartbeats.stale(10, now=100) == heartbeats.stale(10, now=104) == heartbeats.stale(10, now=109) == []
    assert heartbeats.stale(10, now=110) == []
    assert heartbeats.stale(10, now=111) == ["trainer"]
    os.utime(file, (1, 1))
    assert heartbeats.stale(10, now=112) == []
    (tmp_path / "generator").touch()
    assert heartbeats.stale(10, now=116) == heartbeats.stale(10, now=120) == []
    assert heartbeats.stale(10, now=123) == ["trainer"]
    file.unlink()
    assert heartbeats.stale(10, now=125) == []


def test_a_watcher_that_was_stopped_counts_anew(tmp_path):
    (tmp_path / "trainer").touch()
    heartbeats = Heartbeats(tmp_path)
    assert heartbeats.stale(10, now=0) == heartbeats.stale(10, now=60) == heartbeats.stale(10, now=64) == []
    assert heartbeats.stale(10, now=68) == [] and heartbeats.stale(10, now=71) == ["trainer"]
    assert heartbeats.stale(20, now=81) == ["trainer"], "a gap of half the limit is no stop"
    assert heartbeats.stale(20, now=92) == []


def test_life_is_shown_until_the_driver_is_done(tmp_path):
    args = arguments(tmp_path, 1.5)
    with require_heartbeats(args):
        start_heartbeat(args, "trainer", every_s=0.05)
        time.sleep(3)
        assert len(list(heartbeat_folder(args).iterdir())) == 1
    assert not heartbeat_folder(args).exists()
    time.sleep(0.2)
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_life_is_shown_without_a_driver(tmp_path):
    args = arguments(tmp_path / "run")
    args.run.scratch = f"{tmp_path}/"
    start_heartbeat(args, "trainer", every_s=0.05)
    (file,) = heartbeat_folder(args).iterdir()
    file.unlink()
    time.sleep(0.2)
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_one_failure_of_the_file_system_is_survived(tmp_path, monkeypatch):
    args, real, calls = arguments(tmp_path), os.utime, []

    def utime(path, *times):
        if not times:  # else it is Path.touch
            calls.append(path)
            if len(calls) == 1:
                raise OSError(116, "Stale file handle")
        real(path, *times)

    monkeypatch.setattr(watchdog.os, "utime", utime)
    start_heartbeat(args, "trainer", every_s=0.02)
    (file,) = heartbeat_folder(args).iterdir()
    real(file, (1, 1))
    end = time.monotonic() + 10
    while file.stat().st_mtime == 1 and time.monotonic() < end:
        time.sleep(0.02)
    assert len(calls) > 1 and file.stat().st_mtime > 1
    file.unlink()


def test_a_process_that_steers_is_recorded(tmp_path):
    args = arguments(tmp_path)
    start_heartbeat(args, "trainer", every_s=0.02)
    record = json.loads((tmp_path / "scratch" / f"trainer-{os.getpid()}.json").read_text())
    assert record["processes"][0][0] == os.getpid()
    next(heartbeat_folder(args).iterdir()).unlink()


def test_a_limit_of_zero_never_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "LOOK_S", 0.01)
    args = arguments(tmp_path, 0)
    with require_heartbeats(args):
        (heartbeat_folder(args) / "trainer-here-1").touch()
        time.sleep(0.2)
    assert not list(tmp_path.iterdir()), "no report either"


def test_a_folder_that_cannot_be_read_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "LOOK_S", 0.01)
    looks = []

    def scandir(path):
        looks.append(path)
        raise OSError(116, "Stale file handle")

    args = arguments(tmp_path, 0.05)
    with require_heartbeats(args), monkeypatch.context() as patch:
        patch.setattr(watchdog.os, "scandir", scandir)
        time.sleep(0.3)
    assert len(looks) > 1 and not heartbeat_folder(args).exists()


def test_files_of_an_earlier_run_do_not_count(tmp_path):
    args = arguments(tmp_path)
    heartbeat_folder(args).mkdir()
    (heartbeat_folder(args) / "trainer-of-before").touch()
    with require_heartbeats(args):
        assert not list(heartbeat_folder(args).iterdir())


def test_silence_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("openrlhf_orz.runtime.watchdog.involved", lambda: [os.getpid()])
    args = arguments(tmp_path)
    message = "trainer-here-1 has shown no life for 0.5 s .--orz.trainer_timeout_s.:"
    with pytest.raises(PhaseTimeout, match=message), require_heartbeats(args):
        (heartbeat_folder(args) / "trainer-here-1").touch()
        time.sleep(20)
    assert not heartbeat_folder(args).exists() and list((tmp_path / "logs").glob("hang-trainer-*.txt"))


def test_an_interrupt_of_the_user_is_one(tmp_path):
    with pytest.raises(KeyboardInterrupt), require_heartbeats(arguments(tmp_path)):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
