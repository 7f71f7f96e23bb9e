"""The evaluation command on the tiny base: killed, gone on with in other batches; its numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from runs import ENV, read_jsonl

from openrlhf_orz.data.arithmetic import generate_additions
from openrlhf_orz.evaluate.statistics import summarise

pytestmark = pytest.mark.e2e
BASE = Path(__file__).parents[2] / "examples" / "tiny_base"


def test_kill_and_go_on(tmp_path):
    data, out = tmp_path / "additions.jsonl", tmp_path / "out"
    data.write_text("".join(json.dumps(row) + "\n" for row in generate_additions(12, (3, 3), seed=5)))
    command = [
        sys.executable, "-m", "openrlhf_orz.cli.evaluate", "--model", BASE, "--data", data, "--n", "64",
        "--max_new_tokens", "48", "--device", "cpu", "--out", out,
    ]  # fmt: skip
    file = out / "responses.jsonl"
    with open(tmp_path / "first.log", "w") as log:
        first = subprocess.Popen([*command, "--batch_size", "2"], env=ENV, stdout=log, stderr=log)
    deadline = time.monotonic() + 400
    while first.poll() is None and time.monotonic() < deadline:
        if file.exists() and file.read_bytes().count(b"\n") >= 12:
            break
        time.sleep(0.02)
    family = psutil.Process(first.pid).children(recursive=True)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = read_jsonl(file) if file.read_bytes().endswith(b"\n") else read_jsonl(file)[:-1]
    assert 12 <= len(before) < 768, (tmp_path / "first.log").read_text()[-2000:]
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []  # no engine is left behind

    # it goes on from the first half of these and a line that the kill cut
    kept, again = before[: len(before) // 2], before[len(before) // 2 :]
    file.write_text("".join(json.dumps(row) + "\n" for row in kept) + '{"bench": "additions", "id"')
    result = subprocess.run([*command, "--batch_size", "32"], env=ENV, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"{768 - len(kept)} responses to generate ({len(kept)} are there)" in result.stdout
    rows = read_jsonl(file)
    assert rows[: len(kept)] == kept and len({(row["id"], row["sample"]) for row in rows}) == len(rows) == 768
    by_key = {(row["id"], row["sample"]): row for row in rows}
    for row in again:  # generated twice, in batches of 2 and of 32
        assert by_key[row["id"], row["sample"]] | {"seconds": 0} == row | {"seconds": 0}

    content = json.loads((out / "results.json").read_text())
    (numbers,) = content["results"].values()
    own = summarise(rows)
    assert numbers["questions"] == 12 and numbers["n"] == 64 and own["truncated"] == numbers["truncated"]
    assert numbers["avg_at_n"] == sum(row["verdict"] == "right" for row in rows) / 768
    assert (
        0 < numbers["avg_at_n"] <= numbers["pass_at_64"] and numbers["low"] <= numbers["avg_at_n"] <= numbers["high"]
    )
    assert "| additions | 12 | 64 |" in result.stdout and (out / "results.md").exists()

    # nothing is left to generate, so this starts no engine; another setting is refused
    last = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=100)
    assert last.returncode == 0 and ": 0 responses to generate" in last.stdout
    other = subprocess.run([*command, "--temperature", "0.5"], env=ENV, capture_output=True, text=True, timeout=100)
    assert other.returncode == 2 and "temperature = 1.0, now it is 0.5" in other.stderr
