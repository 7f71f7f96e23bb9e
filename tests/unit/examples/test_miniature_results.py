"""Statistics by hand-worked numbers; figures and tables from made-up metrics."""

import dataclasses
import json
import math
import runpy
import signal
from pathlib import Path

import pytest
from miniature import arms, figures, results, runner, statistics, table
from miniature.same import all_pairs, between_seeds


def test_paired_difference_by_hand():
    found = statistics.difference([0.9, 0.8, 0.7], [0.6, 0.6, 0.6])
    # differences 0.3, 0.2, 0.1: standard deviation 0.1, its standard error 0.1 / sqrt(3), t(2) = 4.303
    assert found.mean == pytest.approx(0.2) and found.error == pytest.approx(0.1 / math.sqrt(3))
    assert found.half == pytest.approx(0.2484, abs=1e-4) and found.seeds == 3
    assert statistics.verdict(found, 1) == statistics.NOTHING  # 0.2 < 0.2484
    clear = statistics.difference([0.9, 0.8, 0.7], [0.5, 0.4, 0.31])  # 0.4, 0.4, 0.39
    assert [statistics.verdict(clear, sign) for sign in (1, -1, 0, None)] == [
        statistics.AGREES, statistics.DISAGREES, statistics.DISAGREES, statistics.VISIBLE,
    ]  # fmt: skip


def test_no_difference_and_too_few_seeds():
    alike = statistics.difference([0.5, 0.6], [0.5, 0.6])
    assert (alike.mean, alike.half) == (0, 0)
    assert statistics.verdict(alike, 0) == statistics.AGREES and statistics.verdict(alike, 1) == statistics.NOTHING
    assert statistics.verdict(statistics.difference([1.0], [0.0]), 1) == statistics.TOO_FEW
    with pytest.raises(ValueError):
        statistics.difference([1.0, 2.0], [1.0])


def test_what_a_curve_comes_to_by_hand():
    curve = [0.0] * 5 + [1.0] * 5 + [0.5, 0.7] * 5
    assert statistics.last(curve) == pytest.approx(0.6) and statistics.rise(curve) == pytest.approx(0.6)
    # changes of the second half: five times 0.2 and four times -0.2
    assert statistics.roughness(curve) == pytest.approx(math.sqrt(0.04 - (0.2 / 9) ** 2))
    assert figures.band([[0.0, 1.0], [1.0, 3.0]], span=1) == ([0.5, 2.0], [0.0, 1.0], [1.0, 3.0])


@pytest.fixture
def runs(tmp_path):
    """Finished runs of all arms with two seeds: the baseline's curves rise to 0.9, the arms' by 0.2 less; of arms that
    should be alike one is and one differs from step 3 on.
    """
    made = [runner.Run(arm, seed, tmp_path) for arm in arms.ARMS.values() for seed in (0, 1)]
    for run in made:
        alike = run.arm.name in (arms.BASELINE, arms.AGAIN, arms.OVER, "old-log-probs")
        (run.path / "rollouts").mkdir(parents=True)
        (run.path / runner.STAMP).write_text(json.dumps(run.stamp()))
        plain = run.arm.name == "forms-plain"
        row = {"prompt": "p", "response": f"{run.seed}", "extracted": "153 m" if plain else "153 cm",
               "reference": "153 cm", "reward": 1.0}  # fmt: skip
        lines = []
        for step in range(1, run.arm.steps + 1):
            (run.path / "rollouts" / f"step_{step}.jsonl").write_text(json.dumps(row))
            reward = 0.1 + (0.8 if alike or step < 3 else 0.6) * step / arms.STEPS + 0.001 * run.seed
            lines.append({"step": step, "reward": reward, "response_length": 80 * reward, "seconds_step": 1.5,
                          "explained_variance": None if step == 1 else 0.5})  # fmt: skip
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        evals = [{"step": step, "eval_held-out_pass1": 0.1 + step / 100} for step in (0, run.arm.steps)]
        (run.path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evals))
        (run.path / "greedy").mkdir()
        accuracy = {"results": {"greedy": {"avg_at_n": 0.9 if alike else 0.4}}}
        (run.path / "greedy" / "results.json").write_text(json.dumps(accuracy))
    return made


def test_figures_are_drawn(runs, tmp_path):
    pytest.importorskip("matplotlib", reason="requirements-report.txt is not installed")
    loaded = results.load(runs)
    paths = figures.write_figures(list(arms.FIGURES), loaded, tmp_path / "figures")
    assert [path.stem for path in paths] == list(arms.FIGURES)
    assert all(path.read_text().startswith("<?xml") for path in paths)
    again = figures.write_figures(["lambda"], loaded, tmp_path / "again")
    assert again[0].read_bytes() == (tmp_path / "figures" / "lambda.svg").read_bytes()


def test_table_says_what_came_out(runs):
    text = table.generate(results.load(runs), "miniature")
    rows = {row.split(" | ")[0].strip("| "): row for row in text.splitlines() if row.startswith("| ")}
    assert rows["λ = 1 learns faster than 0.95"].endswith("| agrees |")
    assert "0.829" in rows["the reward rises"] or "agrees" in rows["the reward rises"]
    assert rows[f"KL loss of {arms.KL} ends with lower accuracy"].endswith(
        f"| {statistics.NOTHING} |"
    )  # alike, as made up
    assert rows["computing old log-probs changes nothing"].endswith("| agrees |")
    assert rows["cross-fit values changes nothing"].endswith("| does not agree |")
    assert "(miniature/lambda.svg)" in text
    assert f"took {2 * sum(arm.steps for arm in arms.ARMS.values()) * 1.5 / 3600:.1f} hours" in text.replace("\n", " ")


def test_pairs_that_should_be_alike(runs):
    pairs = {(pair.arm, pair.seed): pair for pair in all_pairs(results.load(runs), ("old-log-probs", "cross-fit"))}
    same, other = pairs["old-log-probs", 1], pairs["cross-fit", 1]
    assert (same.same_rollouts, same.same_steps, same.largest_reward) == (True, arms.STEPS, 0)
    assert (other.same_rollouts, other.same_steps) == (True, 2)
    assert other.largest_reward == pytest.approx(0.2, abs=1e-3)
    reward, length = between_seeds(results.load(runs))
    assert reward == pytest.approx(0.001, abs=1e-4) and length == pytest.approx(0.08, abs=1e-3)


def test_unfinished_runs_are_left_out(runs):
    metrics = runs[0].path / "metrics.jsonl"
    metrics.write_text("".join(line + "\n" for line in metrics.read_text().splitlines()[:-1]))
    evals = runs[1].path / "eval.jsonl"
    evals.write_text(evals.read_text().splitlines()[0] + "\n")  # that of the last step is still being made
    assert set(results.load(runs[:4])) == {runs[2].arm.name}


def test_generated_part_is_put_between_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.FROM}\nold\n{table.TO}\nafter\n")
    table.put(page, "new\n")
    assert page.read_text() == f"before\n{table.FROM}\n\nnew\n\n{table.TO}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="markers"):
        table.put(page, "new\n")


def test_table_of_the_critics_study(runs):
    text = table.critic_study(results.load(runs), "critic")
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:] for row in text.splitlines() if row.startswith("| ")}
    of = [arms.BASELINE, *(name for figure in arms.CRITIC_STUDY for name in arms.FIGURES[figure].arms)]
    assert set(list(rows)[1:]) == {f"{arms.ARMS[name].label} (2)" for name in of}
    assert "](critic/critic-policy.svg)" in text
    base, bce = rows["the paper's settings (2)"], rows["binary cross-entropy (2)"]
    # 0.1 + 0.8 / 16 x the mean of 1 to 16; from step 3 on the arm rises by 0.6 / 16 a step: 0.2 / 16 x 133 / 16 less
    assert base[0] == "0.526" and bce[0] == "**-0.104 ± 0.000**"
    assert base[2] == "0.900" and bce[2] == "**-0.500 ± 0.000**", "greedy"
    assert base[3] == "0.500" and bce[3] == "0.000 ± 0.000", "no difference is not in bold"


def test_table_of_the_rewards_study(runs):
    text = table.reward_study(results.load(runs), "reward")
    assert "### Our judge or plain Math-Verify (Fig. 3)\n\n![Our judge or plain Math-Verify](reward/judge.svg)" in text
    assert "GAE" not in text
    assert (
        "| right in truth in the last 6 steps | 1.000 | 0.000 | +1.000 ± 0.000 (2) | a difference is visible |" in text
    )
    assert "| wrong and rewarded in the last 6 steps | 0.000 | 1.000 | -1.000 ± 0.000 (2) |" in text
    assert "intervals" not in text, "there were none"


def test_a_run_that_is_kept_without_greedy_accuracy_is_evaluated(runs, tmp_path, monkeypatch):
    """And while it is not, what is kept of it is drawn."""
    pytest.importorskip("matplotlib", reason="requirements-report.txt is not installed")
    main = runpy.run_path(str(Path(arms.__file__).with_name("__main__.py")))["main"]
    loaded = results.load(runs)
    loaded[arms.BASELINE][1] = dataclasses.replace(loaded[arms.BASELINE][1], greedy=None)
    results.keep(loaded, tmp_path / "kept.json")
    asked = []

    class Notes:
        failed = ()

        def __init__(self, runs, jobs):
            asked.extend((run.arm.name, run.seed) for run in runs)

        def __call__(self):
            pass

    there = results.kept(tmp_path / "kept.json")
    for name, value in {"kept": lambda: there, "Runner": Notes, "prepare": lambda *_: None}.items():
        monkeypatch.setitem(main.__globals__, name, value)
    words = ["--kept", "--figures", "lambda", "--seeds", "0", "1", "--out", str(tmp_path / "other")]
    assert main(words) == 0 and asked == [(arms.BASELINE, 1)]
    text = (tmp_path / "other" / "miniature.md").read_text()
    assert "| and ends with higher accuracy | held-out accuracy after the last step | 0.260 | 0.260 |" in text
    assert (
        "| and at temperature 0, too | greedy held-out accuracy after the last step | 0.900 | 0.400 | +0.500 (1)"
        in (text)
    )


@pytest.mark.parametrize(
    ("error", "status", "said"), [(KeyboardInterrupt, 130, "goes on"), (RuntimeError("see x.log"), 1, "x.log")]
)
def test_what_is_made_before_the_runs_can_fail_and_be_stopped(tmp_path, monkeypatch, capsys, error, status, said):
    main = runpy.run_path(str(Path(arms.__file__).with_name("__main__.py")))["main"]

    def prepare(*_):
        raise error

    monkeypatch.setitem(main.__globals__, "prepare", prepare)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["--figures", "lambda", "--out", str(tmp_path / "out")]) == status
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert said in capsys.readouterr().err


def test_one_figure_writes_its_whole_page_anew(runs, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="requirements-report.txt is not installed")
    main = runpy.run_path(str(Path(arms.__file__).with_name("__main__.py")))["main"]
    kept, page, held = results.load(runs), tmp_path / "docs" / "miniature.md", []
    page.parent.mkdir()
    page.write_text(f"{table.FROM}\n{table.TO}")
    for name, value in {"kept": lambda: kept, "keep": held.append, "ROOT": tmp_path}.items():
        monkeypatch.setitem(main.__globals__, name, value)
    assert main(["--kept", "--draw_only", "--docs", "--figures", "lambda", "--out", str(tmp_path / "other")]) == 0
    drawn = [f"(miniature/{name}.svg)" in page.read_text() and (page.parent / "miniature" / f"{name}.svg").exists()
             for name, figure in arms.FIGURES.items() if figure.page == "miniature"]  # fmt: skip
    assert all(drawn) and held == [kept]
    assert {path.name for path in page.parent.iterdir()} == {"miniature.md", "miniature"}, "no other page"


def test_kept_runs_are_drawn_alike(runs, tmp_path, monkeypatch):
    loaded = results.load(runs)
    results.keep(loaded, tmp_path / "kept.json")
    again = results.kept(tmp_path / "kept.json")
    assert table.critic_study(again, "critic") == table.critic_study(loaded, "critic")
    results.keep({"bce": {7: loaded["bce"][0]}}, tmp_path / "kept.json")
    again = results.kept(tmp_path / "kept.json")
    assert set(again) == set(loaded) and set(again["bce"]) == {0, 1, 7}, "one more run takes no other's place"
    other = dataclasses.replace(arms.ARMS["bce"], flags={"orz.value_loss": "mse"})
    monkeypatch.setitem(arms.ARMS, "bce", other)
    assert set(loaded) - set(results.kept(tmp_path / "kept.json")) == {"bce"}, "another arm than was run"
