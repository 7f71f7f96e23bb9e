"""Reading run directories: damaged, unfinished, old; sampling; the page's size."""

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from example_runs import HOSTILE, write_run

from openrlhf_orz.cli.report import main
from openrlhf_orz.report import rollout_sample
from openrlhf_orz.report.page import write_page
from openrlhf_orz.report.pictures import smooth, write_bars, write_pictures
from openrlhf_orz.report.rollout_sample import evenly_spaced, fit_by_position, order, page_row, sample_rollouts
from openrlhf_orz.report.run_data import RunError, columns, flatten_flags, load_run, load_runs, read_objects


def data(page: Path, name: str):
    """The data that a page holds."""
    packed = re.search(rf'<script type="application/gzip" id="{name}">([^<]*)</script>', page.read_text())[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_damaged_lines_are_counted_and_the_unfinished_one_waits(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(
        b'{"step": 1}\n{"step": 1e400}\n{"step": 2, "x": NaN}\nnoise \xff\n\n[1]\n{"step": 3}\n{"step": 4, "rew'
    )
    notes = []
    assert read_objects(file, notes) == [{"step": 1}, {"step": 3}]
    assert notes == ["metrics.jsonl: 4 lines are damaged and left out (line 2, 3, 4, 6)"]


def test_a_resumed_run_shows_each_step_once(tmp_path):
    steps = [(1, 0.1), (2, 0.2), (3, 0.9), (2, 0.3)]  # resumed at step 2, so that step 3 is not of this run
    lines = [{"step": step, "reward": reward} for step, reward in steps] + [{"reward": 1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = load_run(tmp_path)
    assert [row["reward"] for row in run.metrics] == [0.1, 0.3]
    assert any("2 rows of steps that a resumed run has taken back" in note for note in run.notes)
    assert any("1 rows without a step" in note for note in run.notes)
    assert any("config.json is not there" in note for note in run.notes)


def test_no_run(tmp_path):
    with pytest.raises(RunError, match="metrics.jsonl"):
        load_run(tmp_path)
    with pytest.raises(RunError, match="no directory"):
        load_run(tmp_path / "none")
    assert main([str(tmp_path)]) == 2


def test_columns_and_flags():
    rows = [{"step": 1, "a": 0.123456789, "b": "x", "c": True}, {"step": 2, "a": None, "d": 3.0}]
    assert columns(rows) == {"step": [1, 2], "a": [0.12346, None], "d": [None, 3]}
    assert flatten_flags({"a": {"b": 1, "c": [1, None]}, "d": "x"}) == {"a.b": "1", "a.c": "[1, null]", "d": "x"}


def test_smoothing_by_hand():
    """Span 3: weights halve. (0.5 * 1 + 3) / 1.5 = 7/3; the gap changes nothing."""
    assert smooth([1, None, 3], 3) == [1, None, pytest.approx(7 / 3)]
    assert smooth([1, 3], 1) == [1, 3]


def test_evenly_spaced():
    assert evenly_spaced(list(range(1, 101)), 4) == [1, 34, 67, 100]
    assert evenly_spaced([1, 2], 5) == [1, 2] and evenly_spaced([1, 2, 3], 1) == [3]


def test_sample_is_bounded_and_keeps_every_kind(tmp_path, monkeypatch):
    write_run(tmp_path / "run", 30, prompts=6, samples=8)
    monkeypatch.setattr(rollout_sample, "MAX_STEPS", 10)
    run = load_run(tmp_path / "run")
    everything = sample_rollouts(run, 10**9)
    assert len(everything.rows) == 10 * 48 and len(everything.prompts) == 6
    assert "480 of 480 responses of 10 steps" in everything.left_out and "20 more steps" in everything.left_out
    few = sample_rollouts(run, 12_000)
    assert 20 < len(few.rows) < 480 and len(gzip.compress(json.dumps(few.rows).encode())) < 14_000
    assert {row["step"] for row in few.rows} == {row["step"] for row in everything.rows}
    assert {row["verdict"] for row in few.rows} == {"right", "wrong"}


def test_values_by_token_are_whole_or_not_there():
    row = {"response": "ab", "token_texts": ["a", "b"], "values": [0.123456789, None], "advantages": [1, -1]}
    found = page_row(row, 1, 0)
    assert (found["pieces"], found["values"], found["advantages"]) == (["a", "b"], [0.12346, None], [1, -1])
    changes = [{"response": "abc"}, {"values": [1]}, {"values": None}, {"token_texts": ["a", 1]}]
    for change in [*changes, {"values": [None] * 2}, {"token_texts": [], "response": ""}]:
        assert "pieces" not in page_row({**row, **change}, 1, 0), change


def test_the_critics_fit_by_position_by_hand():
    base = {"response": "x" * 10, "token_texts": list("x" * 10), "advantages": [0] * 10}
    rows = [page_row({**base, "values": [value] * 10, "reward": reward}, step, 0)
            for step in (1, 2, 3, 7) for value, reward in ((0.5, 1.0), (0.25, 0.0))]  # fmt: skip
    fit = fit_by_position([*rows, page_row({"response": "y", "reward": 1}, 9, 0)], 1.0)
    assert fit["labels"] == ["steps 1 to 2", "step 3", "step 7"] and fit["position"][:2] == [5, 15]
    assert fit["value_0"] == [0.375] * 10 and fit["return_2"] == [0.5] * 10 and fit["calibration_1"] == [0.375] * 10
    # returns 1, 0; errors 0.5, -0.25: 1 - 0.140625 / 0.25
    assert fit["variance_0"] == [0.4375] * 10
    assert fit_by_position(rows[:1], 0.5)["return_0"] == pytest.approx([0.5**i for i in range(9, -1, -1)], rel=1e-3)
    assert fit_by_position([], 1.0) == {}


def test_rows_of_every_kind_come_first():
    rows = [page_row({"response": "a", "reward": 0.0, "verdict": "wrong"}, 1, i) for i in range(50)]
    rows += [page_row({"response": "wait, b", "reward": 1.0, "verdict": "right"}, 1, 50)]
    assert {row["verdict"] for row in order(rows, 0)[:2]} == {"right", "wrong"}
    assert rows[-1]["reflection"] and not rows[0]["reflection"]  # an older run does not say it


def test_page_of_a_thousand_steps_is_small_and_stands_alone(tmp_path):
    run = write_run(tmp_path / "run", 1000, prompts=4, samples=8)
    page = write_page(load_runs([run]), tmp_path / "report.html")
    assert page.size == page.path.stat().st_size < 5_000_000
    text = page.path.read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", text) and "default-src 'none'" in text
    (packed,) = data(page.path, "runs")
    assert len(packed["metrics"]["step"]) == 1000 and packed["evals"]["step"][0] == 0
    assert 1000 < len(data(page.path, "rollout-data")[0]["rows"]) <= 1280


def test_the_policy_lets_only_the_pages_own_scripts_run(tmp_path):
    page = write_page(load_runs([write_run(tmp_path / "run", 2)]), tmp_path / "report.html").path.read_text()
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(scripts) == 8 and directives.pop("script-src").split() == [f"'sha256-{each}'" for each in hashes]
    assert directives == {"default-src": "'none'", "style-src": "'unsafe-inline'", "img-src": "data:"}
    # what else is in a script element is data
    kinds = re.findall(r"<script([^>]*)>", re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))
    assert [re.search(r'type="([^"]*)"', kind)[1] for kind in kinds] == ["application/json", *["application/gzip"] * 2]


def test_large_rollouts_and_many_runs_stay_under_the_limit(tmp_path):
    import random

    rng = random.Random(0)
    runs = []
    for number in range(3):
        run = write_run(tmp_path / f"run{number}", 400, prompts=1, samples=1, seed=number)
        for step in range(380, 401):
            text = "".join(map(chr, rng.choices(range(33, 3000), k=20_000)))  # as good as incompressible
            rows = [{"prompt": "p", "response": text + str(i), "reward": 0.0, "reference": "1"} for i in range(10)]
            (run / "rollouts" / f"step_{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs.append(run)
    page = write_page(load_runs(runs), tmp_path / "report.html")
    assert page.size < 5_000_000
    assert all("responses of 40 steps are in this page" in run["leftOut"] for run in data(page.path, "rollout-data"))


def test_a_very_long_response_is_cut_in_the_middle_and_says_so():
    assert page_row({"reward": 1.0, "reward_trained": 0.25}, 1, 0)["trained"] == 0.25
    assert page_row({"reward": 1.0}, 1, 0)["trained"] is None
    row = page_row({"response": "x" * 150_000 + "end"}, 1, 0)
    assert len(row["response"]) < 120_100 and "30003 characters are left out" in row["response"]
    assert row["response"].endswith("end") and len(HOSTILE["long"]) > 100_000
    assert page_row({"response": HOSTILE["long"]}, 1, 0)["response"] == HOSTILE["long"]


def test_hostile_text_cannot_leave_its_element(tmp_path):
    page = write_page(load_runs([write_run(tmp_path / "a<b>&'\"", 2, hostile=True)]), tmp_path / "report.html")
    text = page.path.read_text()
    assert "pwned" not in text and "<title>a&lt;b&gt;&amp;" in text
    (rollouts,) = data(page.path, "rollout-data")
    texts = {row["response"] for row in rollouts["rows"] if row["step"] == 1}
    assert set(HOSTILE.values()) <= texts


def test_needs_nothing_but_the_standard_library_and_numpy(tmp_path):
    """From a run directory alone: no torch, no OpenRLHF, no Ray."""
    run = write_run(tmp_path / "run", 3)
    code = (
        "import sys; from openrlhf_orz.cli.report import main; assert main(sys.argv[1:]) == 0; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & "
        "{'torch', 'openrlhf', 'ray', 'vllm', 'transformers', 'matplotlib'}))"
    )
    result = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]" and (run / "report.html").exists()


def test_an_old_run_and_an_empty_one(tmp_path, capsys):
    old = tmp_path / "old"
    old.mkdir()
    (old / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\nbroken\n')
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{")
    (empty / "metrics.jsonl").touch()
    assert main([str(old), str(empty)]) == 0
    output = capsys.readouterr().out
    assert "old: metrics.jsonl: 1 line is damaged" in output and "empty: no step is finished yet" in output


def test_two_runs_of_one_name(tmp_path):
    for folder in ("a", "b"):
        write_run(tmp_path / folder / "run", 2)
    assert [run.name for run in load_runs([tmp_path / "a/run", tmp_path / "b/run"])] == ["run", "run (2)"]


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (requirements-report.txt)")
    runs = load_runs([write_run(tmp_path / "a", 20), write_run(tmp_path / "b", 20, seed=1)])
    names = [path.name for path in write_pictures(runs, tmp_path / "png", span=5)]
    assert names == ["reward_and_length.png", "format.png", "benchmarks.png", "length.png", "reflection.png"]
    assert all((tmp_path / "png" / name).read_bytes()[:4] == b"\x89PNG" for name in names)
    for row in runs[0].metrics:
        row.pop("format")
    shutil.rmtree(tmp_path / "png")
    assert "format.png" not in [path.name for path in write_pictures(runs[:1], tmp_path / "png")]


def test_equal_numbers_give_equal_pictures(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (requirements-report.txt)")
    runs = load_runs([write_run(tmp_path / "a", 20)])
    bars = [("$1 and $2", 3), ("<b>", 0), ("数学", 1)]
    for folder in (tmp_path / "one", tmp_path / "two"):
        write_pictures(runs, folder, span=5, kind="svg")
        write_bars(folder / "bars.svg", "source", bars)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "reward_and_length.svg" in names and "bars.svg" in names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    text = (tmp_path / "one" / "bars.svg").read_text()
    assert ">$1 and $2</text>" in text and ">数学</text>" in text and "<b>" not in text  # neither formula nor markup
