"""Who shows no life is noticed, by a clock that stands still while the watcher itself is stopped."""

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from openrlhf_orz.runtime.alive import Pulse, watched
from openrlhf_orz.runtime.heartbeat import folder, show_life
from openrlhf_orz.runtime.watchdog import PhaseTimeout


def arguments(tmp_path, seconds=0.5):
    orz = SimpleNamespace(run_dir=str(tmp_path), trainer_timeout_s=seconds)
    return SimpleNamespace(orz=orz, run=SimpleNamespace(scratch=f"{tmp_path}/scratch-"))


@pytest.fixture
def stopping():
    """Interrupts at once when it was asked before, as the driver's does; else this test fails."""
    state = SimpleNamespace(asked=False)

    def handle(signum, frame):
        assert state.asked
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    yield state
    signal.signal(signal.SIGINT, before)


def test_silence_by_hand(tmp_path):
    file = tmp_path / "trainer"
    file.touch()
    pulse = Pulse(tmp_path)
    assert pulse.silent(10, now=100) == pulse.silent(10, now=104) == pulse.silent(10, now=109) == []
    assert pulse.silent(10, now=111) == ["trainer"]
    os.utime(file, (1, 1))
    assert pulse.silent(10, now=112) == []
    (tmp_path / "generator").touch()
    assert pulse.silent(10, now=116) == pulse.silent(10, now=120) == []
    assert pulse.silent(10, now=123) == ["trainer"]
    file.unlink()
    assert pulse.silent(10, now=125) == []


def test_a_watcher_that_was_stopped_counts_anew(tmp_path):
    (tmp_path / "trainer").touch()
    pulse = Pulse(tmp_path)
    assert pulse.silent(10, now=0) == pulse.silent(10, now=60) == pulse.silent(10, now=64) == []
    assert pulse.silent(10, now=68) == [] and pulse.silent(10, now=71) == ["trainer"]


def test_life_is_shown_until_the_driver_is_done(tmp_path, stopping):
    args = arguments(tmp_path, 1.5)
    with watched(args, stopping):
        show_life(args, "trainer", every_s=0.05)
        time.sleep(3)
        assert len(list(folder(args).iterdir())) == 1
    assert not folder(args).exists()
    time.sleep(0.2)
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_life_is_shown_without_a_driver(tmp_path):
    args = arguments(tmp_path / "run")
    args.run.scratch = f"{tmp_path}/"
    show_life(args, "trainer", every_s=0.05)
    (file,) = folder(args).iterdir()
    file.unlink()
    time.sleep(0.2)
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_silence_ends_the_run(tmp_path, stopping, monkeypatch):
    monkeypatch.setattr("openrlhf_orz.runtime.watchdog.involved", lambda: [os.getpid()])
    args = arguments(tmp_path)
    with pytest.raises(PhaseTimeout, match="trainer-here-1 has shown no life for 0.5 s .--orz.trainer_timeout_s.:"):
        with watched(args, stopping):
            (folder(args) / "trainer-here-1").touch()
            time.sleep(20)
    assert not folder(args).exists() and list((tmp_path / "logs").glob("hang-trainer-*.txt"))


def test_an_interrupt_of_the_user_is_one(tmp_path, stopping):
    stopping.asked = True
    with pytest.raises(KeyboardInterrupt), watched(arguments(tmp_path), stopping):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
