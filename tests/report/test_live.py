"""The report of a run that goes on: by the training command, and by --watch."""

import json
import re
import signal
import subprocess
import sys
import time

from example_runs import write_run

from openrlhf_orz.runtime.console import LiveReport, Progress


def refresh(page) -> int:
    """Seconds after which the page loads itself anew."""
    return json.loads(re.search(r'id="about">([^<]*)<', page.read_text())[1])["refresh"]


def test_training_writes_it_every_n_steps_and_at_the_end(tmp_path):
    run = write_run(tmp_path / "run", 3)
    live = LiveReport(run, 2)
    live.step(1)
    assert live.process is None
    live.step(2)
    assert live.process.wait(60) == 0, (run / "logs" / "report.log").read_text()
    assert refresh(run / "report.html") == 15
    live.finish()
    assert refresh(run / "report.html") == 0
    (run / "report.html").unlink()
    LiveReport(run, -1).finish()
    assert not (run / "report.html").exists()


def test_a_report_that_fails_leaves_the_run_alone(tmp_path, capsys):
    LiveReport(tmp_path, 0).finish()  # no run there
    assert "[orz] no report: RunError" in capsys.readouterr().err


def test_progress_tells_each_step(tmp_path, capfd):
    path, steps = tmp_path / "metrics.jsonl", []
    with Progress(tmp_path, 2, steps.append, every_s=0.01):
        for step in (1, 2):
            row = {"step": step, "reward": 0.5, "response_length": 9.0, "truncated": 0.0, "seconds_step": None}
            with open(path, "a") as file:
                file.write(json.dumps(row) + "\n")
    assert steps == [1, 2]
    assert capfd.readouterr().out.splitlines()[1] == "step 2/2  reward 0.500  length 9.0  truncated 0.0%"


def test_watch_follows_the_run_and_ends_on_ctrl_c(tmp_path):
    run = write_run(tmp_path / "run", 3)
    page = run / "report.html"
    command = [sys.executable, "-m", "openrlhf_orz.cli.report", str(run), "--watch", "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert "report.html" in process.stdout.readline() and refresh(page) == 1
    size = page.stat().st_size
    time.sleep(0.05)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "reward": 0.9, "a_new_key": 1.5}\n')
    assert "report.html" in process.stdout.readline() and page.stat().st_size != size
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0 and refresh(page) == 0
