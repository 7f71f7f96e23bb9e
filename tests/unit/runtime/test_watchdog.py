"""A phase that hangs becomes an error with stacks; one that does not hang is left alone."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from openrlhf_orz.runtime import watchdog
from openrlhf_orz.runtime.watchdog import PhaseTimeout, phase_limit, stack


def hang_in_a_function_with_a_name():
    time.sleep(60)


@pytest.fixture
def quick_stacks(monkeypatch):
    """Stacks of this process only, without py-spy."""
    monkeypatch.setattr(watchdog, "involved", lambda: [os.getpid()])
    monkeypatch.setattr(watchdog, "stack", lambda pid: f"stack of {pid}\n")


def test_a_hang_becomes_an_error_with_stacks(tmp_path):
    begin = time.monotonic()
    with (
        pytest.raises(PhaseTimeout, match="training took more than 0.5 s .--orz.training_timeout_s.: stacks") as error,
        phase_limit(0.5, "training", "training_timeout_s", tmp_path),
    ):
        hang_in_a_function_with_a_name()
    assert time.monotonic() - begin < 50
    (report,) = tmp_path.glob("hang-training-*.txt")
    assert str(report) in str(error.value)
    text = report.read_text()
    assert "hang_in_a_function_with_a_name" in text or "no stack" in text  # py-spy may not look everywhere


def test_in_time_and_other_errors_pass(tmp_path):
    handler, mask = signal.getsignal(watchdog.WAKE), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with phase_limit(5, "sync", "sync_timeout_s", tmp_path):
        pass
    with phase_limit(0, "sync", "sync_timeout_s", tmp_path):
        pass
    with pytest.raises(KeyError), phase_limit(5, "sync", "sync_timeout_s", tmp_path):
        raise KeyError
    time.sleep(0.1)
    assert not list(tmp_path.iterdir()) and signal.getsignal(watchdog.WAKE) == handler
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("watch-")]


def test_an_error_after_the_limit_is_its_cause(tmp_path, quick_stacks):
    limit = phase_limit(0.05, "sync", "sync_timeout_s", tmp_path)
    with pytest.raises(PhaseTimeout, match="--orz.sync_timeout_s") as raised, limit:
        try:
            time.sleep(20)
        except KeyboardInterrupt:
            raise KeyError from None
    assert isinstance(raised.value.__cause__, KeyError)


@pytest.mark.parametrize("training_s, sync_s, expired", [(0.3, 20, "training"), (20, 0.1, "sync")])
def test_a_limit_within_a_limit(tmp_path, quick_stacks, training_s, sync_s, expired):
    outer = phase_limit(training_s, "training", "training_timeout_s", tmp_path)
    inner = phase_limit(sync_s, "sync", "sync_timeout_s", tmp_path)
    with pytest.raises(PhaseTimeout, match=f"--orz.{expired}_timeout_s"), outer, inner:
        time.sleep(30)
    assert [path.name.split("-")[1] for path in tmp_path.iterdir()] == [expired]


def test_an_interrupt_that_comes_too_late_does_no_harm(tmp_path, quick_stacks, monkeypatch):
    """The body ends between the watcher's last look and its signal."""
    about_to_send, real = threading.Event(), signal.pthread_kill

    def pthread_kill(thread, signum):
        about_to_send.set()
        time.sleep(0.2)
        real(thread, signum)

    monkeypatch.setattr(watchdog.signal, "pthread_kill", pthread_kill)
    with phase_limit(0.05, "sync", "sync_timeout_s", tmp_path):
        assert about_to_send.wait(30)


def test_a_report_that_cannot_be_written(tmp_path, quick_stacks, capsys):
    (tmp_path / "logs").write_text("no directory")
    with pytest.raises(PhaseTimeout), phase_limit(0.05, "sync", "sync_timeout_s", tmp_path / "logs"):
        time.sleep(30)
    assert "cannot write" in capsys.readouterr().err


SCRIPT = """
import signal, sys, time
from openrlhf_orz.runtime import watchdog
watchdog.involved, watchdog.GRACE_S = list, 3
{}
try:
    with watchdog.phase_limit(0.1, "training", "training_timeout_s", sys.argv[1]):
        {}
except watchdog.PhaseTimeout as error:
    print("raised", error)
"""
IGNORED = "[signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGUSR2)]"
BLOCKED = "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR2})"  # Ray blocks the first
# how a script starts a job that outlives it: the shell has SIGINT ignored, nohup SIGHUP
SHELLS = ('"$@" & wait $!', 'nohup "$@" & wait $!', 'trap "" INT USR2 HUP; "$@" & wait $!')


def run(setup, body, folder, *shell):
    command = [*shell, sys.executable, "-c", SCRIPT.format(setup, body), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "setup, shell", [("", ("sh", "-c", start, "sh")) for start in SHELLS] + [(f"{IGNORED}; {BLOCKED}", ())]
)
def test_a_process_that_signals_do_not_reach(tmp_path, setup, shell):
    done = run(setup, "time.sleep(30)", tmp_path, *shell)
    assert done.returncode == 0 and "raised training took more than 0.1 s" in done.stdout, done.stderr


def test_a_main_thread_that_never_notices_ends_with_the_process(tmp_path):
    held = "signal.pthread_sigmask(signal.SIG_BLOCK, {watchdog.WAKE}); time.sleep(30)"
    done = run("", held, tmp_path)
    assert done.returncode == 1 and not done.stdout and "--orz.training_timeout_s" in done.stderr


def test_processes_that_train_generate_or_steer_are_involved(monkeypatch):
    class Process:
        def __init__(self, pid=1, name="ray::OrzPPOTrainer"):
            self.pid, self.name = pid, name

        def parent(self):
            return self

        def children(self, recursive):
            names = [None, "ray::OrzPPOTrainer", "ray::OrzPolicyModelActor.fit", "VLLM::EngineCore", "bash", None]
            return [Process(pid, name) for pid, name in enumerate(names)]

        def cmdline(self):
            if self.name is None:
                raise watchdog.psutil.NoSuchProcess(self.pid)
            return [self.name]

    monkeypatch.setattr(watchdog.psutil, "Process", Process)
    assert watchdog.involved() == [1, 2, 3], "this process first, and once"


def test_a_process_that_has_ended():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert "has ended" in stack(ended.pid)
