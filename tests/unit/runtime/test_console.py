"""The terminal gets its lines whatever stderr has become; reports do not disturb each other."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

from openrlhf_orz.runtime import console
from openrlhf_orz.runtime.console import Countdown, GrowingFile, LiveReport, Progress, progress_line, tell_stage

RECORD = {"step": 3, "reward": 0.51, "response_length": 20.25, "truncated": 0.125}


def test_lines_reach_the_terminal_of_the_start():
    script = (
        "import os; from openrlhf_orz.runtime import console\n"
        "console.say('first'); console.keep_terminal()\n"
        "os.dup2(os.open(os.devnull, os.O_WRONLY), 2)\n"
        "console.keep_terminal(); console.say('second')\n"
        "os.close(console._terminal); console.say('lost, without an error')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "[orz] first\n[orz] second\n"


def test_a_step_is_a_line():
    assert progress_line(RECORD, 9) == "step 3/9  reward 0.510  length 20.2  truncated 12.5%"
    assert progress_line(RECORD | {"seconds_step": 1.25}, 9).endswith("12.5%  1.2 s")


def test_only_new_and_whole_lines_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("old\n")
    file, later = GrowingFile(path), GrowingFile(tmp_path / "later")
    assert file.new_lines() == later.new_lines() == []
    with open(path, "a") as stream:
        stream.write("one\ntwo\nhal")
        stream.flush()
        assert file.new_lines() == ["one\n", "two\n"] and file.new_lines() == []
        stream.write("f\nthree\n")
        stream.flush()
        assert file.new_lines() == ["half\n", "three\n"]
    (tmp_path / "later").write_text("first\n")
    assert later.new_lines() == ["first\n"]


def test_steps_and_warnings_are_told_to_the_end(tmp_path, capfd):
    steps = []
    with Progress(tmp_path, 9, steps.append, every_s=600):
        (tmp_path / "metrics.jsonl").write_text(json.dumps(RECORD) + "\n")
        (tmp_path / "warnings.log").write_text("disk is full\n")
    assert steps == [3]
    assert capfd.readouterr().out == progress_line(RECORD, 9) + "\nwarning: disk is full\n"


def test_a_line_that_is_no_step_stops_nothing(tmp_path, capfd):
    steps = []
    with Progress(tmp_path, 9, steps.append, every_s=600):
        lines = ['{"ste{"step": 2}', "[3]", "{}", '{"step": 1, "reward": "x"}', "[" * 100_000, json.dumps(RECORD)]
        (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert steps == [3] and capfd.readouterr().out == progress_line(RECORD, 9) + "\n"


def test_stages_of_the_start_are_told_with_their_seconds(tmp_path, capfd, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with Progress(tmp_path, 9, every_s=600):
        tell_stage(tmp_path, "starting Ray")
        clock.now += 35.4
    assert capfd.readouterr().out == "[orz] starting Ray (35 s)\n"
    tell_stage(tmp_path / "none" / "such", "lost, without an error")


def test_the_first_rollout_is_counted_in_prompts(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock.now))
    countdown = Countdown(tmp_path, every_s=10)
    for now, answered, pending in ((1, 1, 511), (11, 39, 472), (12, 1, 471), (99, 471, 0), (200, 1, 511)):
        clock.now = now
        countdown.add(answered, pending)
    lines = (tmp_path / console.STAGES).read_text().splitlines()
    assert lines == ["first rollout: 40 of 512 prompts", "first rollout: 512 of 512 prompts"], "of the first alone"


def test_a_report_every_n_steps_unless_one_is_being_written(tmp_path, monkeypatch):
    class Process:
        ended = False

        def poll(self):
            return 0 if self.ended else None

    started = []

    def popen(command, **options):
        started.append(command)
        return Process()

    monkeypatch.setattr(console.subprocess, "Popen", popen)
    report = LiveReport(tmp_path, 2)
    for step in (1, 2, 3, 4):
        report.step(step)
    assert (
        len(started) == 1 and started[0][-2:] == [str(tmp_path), "--live"] and started[0][:3] == ["nice", "-n", "15"]
    )
    report.process.ended = True
    report.step(5)
    assert len(started) == 1
    report.step(6)
    assert len(started) == 2
    LiveReport(tmp_path, 0).step(2)
    assert len(started) == 2


def test_a_report_that_fails_does_not_fail_the_run(tmp_path, capsys):
    LiveReport(tmp_path, -1).finish()
    assert not capsys.readouterr().err and not os.listdir(tmp_path)
    LiveReport(tmp_path / "nowhere", 0).finish()
    assert "[orz] no report: " in capsys.readouterr().err
