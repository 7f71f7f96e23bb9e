"""How a run is asked to stop, and when a failed one is started again. No child is started and nothing sleeps."""

import json
import os
import signal
import threading
from types import SimpleNamespace

import pytest

from openrlhf_orz.runtime import stopping
from openrlhf_orz.runtime.stopping import (
    StopHandler,
    StopRequested,
    how_ended,
    stop_if_asked,
    stop_mark,
    supervise,
    training_mark,
)


@pytest.fixture(autouse=True)
def handlers():
    before = {signum: signal.getsignal(signum) for signum in stopping.STOP_SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def args(tmp_path):
    return SimpleNamespace(orz=SimpleNamespace(run_dir=str(tmp_path), stop_timeout_s=600))


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(stopping, "say", lines.append)
    return lines


class Children:
    """Stands in for subprocess.Popen: child after child ends with the next of ``statuses``; keeps how it was started.

    A status that can be called is called first: something happens while the child runs.
    """

    def __init__(self, *statuses):
        self.statuses, self.commands, self.environments, self.sent = list(statuses), [], [], []
        self.running = False

    def __call__(self, command, env, start_new_session):
        assert start_new_session
        self.commands.append(command)
        self.environments.append(env)
        self.running = True
        return self

    def wait(self):
        status = self.statuses.pop(0)
        status = status() if callable(status) else status
        self.running = False
        return status

    def poll(self):
        return None if self.running else 0

    def send_signal(self, signum):
        self.sent.append(signum)


class Clock:
    """Stands in for the module time."""

    def __init__(self):
        self.now, self.on_sleep = 0.0, lambda: None

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.on_sleep()


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(stopping, "time", Clock())
    return stopping.time


@pytest.fixture
def start(monkeypatch, clock, said):
    """Runs ``supervise`` over children that end as told; returns them and the exit status."""

    def run(*statuses, restarts=3):
        children = Children(*statuses)
        monkeypatch.setattr(stopping.subprocess, "Popen", children)
        return children, supervise(["--actor.adam.lr", "1"], "/run", restarts)

    return run


@pytest.mark.parametrize("status", [0, 2])
def test_success_and_refused_input_are_not_tried_again(start, said, status):
    children, result = start(status)
    assert result == status and len(children.commands) == 1 and not said
    assert "--ckpt.load_enable" not in children.commands[0]


def test_a_failed_run_goes_on_from_its_checkpoint(start, clock, said):
    children, result = start(1, -signal.SIGKILL, 0)
    assert result == 0
    first, second, third = children.commands
    assert first[1:] == ["-m", "openrlhf_orz.cli.train_ppo_ray", "--actor.adam.lr", "1", "--ckpt.output_dir", "/run"]
    assert second == third == [*first, "--ckpt.load_enable"]
    assert [env["ORZ_RESTARTS"] for env in children.environments] == ["0", "1", "2"]
    assert children.environments[0].items() >= os.environ.items()
    assert said == [
        "the run has failed (exit status 1); restart 1 of 3 in 2 s",
        "the run has failed (killed by SIGKILL); restart 2 of 3 in 4 s",
    ]
    assert clock.now == pytest.approx(2 + 4, abs=0.5)


def test_pauses_grow_to_a_minute(start, clock, said):
    start(*[1] * 8, restarts=7)
    assert [line.rpartition("in ")[2] for line in said[:-1]] == ["2 s", "4 s", "8 s", "16 s", "32 s", "60 s", "60 s"]


def test_restarts_are_counted_down(start, said):
    children, result = start(1, -signal.SIGSEGV, restarts=1)
    assert result == 128 + signal.SIGSEGV and len(children.commands) == 2
    assert said[-1] == "the run has failed (killed by SIGSEGV) and 1 restarts are used up (--orz.max_restarts)"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_gets_the_signal_and_stays_stopped(start, said, signum):
    def stop():
        os.kill(os.getpid(), signum)
        return -signum

    children, result = start(stop)
    assert children.sent == [signum] and len(children.commands) == 1 and result == 128 + signum
    assert not said, "it has not failed"


def test_a_stop_during_the_pause(start, clock):
    clock.on_sleep = lambda: os.kill(os.getpid(), signal.SIGTERM)
    children, result = start(1)
    assert result == 1 and len(children.commands) == 1 and not children.sent  # the child has ended
    assert clock.now < 1


def test_the_environment_tells_a_child(monkeypatch):
    monkeypatch.delenv(stopping.RESTARTS_VARIABLE, raising=False)
    assert not stopping.is_supervised()
    monkeypatch.setenv(stopping.RESTARTS_VARIABLE, "0")
    assert stopping.is_supervised()


def test_statuses_in_words():
    assert how_ended(-9) == "killed by SIGKILL" and how_ended(1) == "exit status 1"


def test_the_first_signal_leaves_a_mark_and_the_second_stops_at_once(args, said, monkeypatch):
    timers = []
    monkeypatch.setattr(stopping.threading, "Timer", lambda *call: timers.append(call) or threading.Thread())
    handler = StopHandler(args)
    handler.install()
    training_mark(args).touch()
    stop_if_asked(args)
    os.kill(os.getpid(), signal.SIGTERM)
    assert (
        handler.asked is not None
        and handler.signum == signal.SIGTERM
        and "within 600 s (--orz.stop_timeout_s)" in said[0]
    )
    assert timers == [(600, os.kill, (os.getpid(), signal.SIGTERM))]  # which is the second signal
    with pytest.raises(StopRequested):
        stop_if_asked(args)
    os.kill(os.getpid(), signal.SIGTERM)  # timeout signals the process, then its group: one request
    assert len(said) == len(timers) == 1
    monkeypatch.setattr(stopping, "SAME_REQUEST_S", 0)  # a moment later
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert handler.signum == signal.SIGINT and len(said) == 1
    handler.clear()
    assert not stop_mark(args).exists() and not training_mark(args).exists()


def test_a_window_shorter_than_a_moment_ends_the_run(args, said, monkeypatch):
    monkeypatch.setattr(stopping.threading, "Timer", lambda *call: threading.Thread())
    args.orz.stop_timeout_s = 0.0
    training_mark(args).touch()
    handler = StopHandler(args)
    handler(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGTERM, None)  # the timer's


def test_the_window_follows_from_the_last_step_and_checkpoint(args, tmp_path, said, monkeypatch):
    monkeypatch.setattr(stopping.threading, "Timer", lambda *call: threading.Thread())
    args.orz.stop_timeout_s = None
    assert stopping.stop_window(args) == 120
    lines = [{"seconds_step": 900.0, "seconds_checkpoint": 50.0}, {"seconds_step": 600.0, "seconds_checkpoint": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert stopping.last_seconds(tmp_path) == 650 and stopping.stop_window(args) == 975
    args.orz.stop_timeout_s = 100.0
    assert stopping.stop_window(args) == 100
    training_mark(args).touch()
    StopHandler(args)(signal.SIGTERM, None)
    assert said[0] == "the last step and checkpoint took 650 s, more than --orz.stop_timeout_s 100"


def test_without_a_trainer_the_first_signal_stops_at_once(args, said):
    handler = StopHandler(args)
    handler.install()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert not stop_mark(args).exists() and not said
