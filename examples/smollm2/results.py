"""The numbers of the study of SmolLM2-135M, before and after ORZ, in one JSON file and as a table.

python examples/smollm2/results.py --run RUN_DIR --sft_rows FILE --output FILE
python examples/smollm2/results.py --output FILE --pictures FOLDER   # of numbers that are there; needs matplotlib
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import reduce
from operator import getitem
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from common import hardware, versions

from openrlhf_orz.data.json_lines import read_records, write_whole
from openrlhf_orz.evaluate.statistics import avg_at_n, bootstrap_interval

NUMBERS = {
    "avg": "avg_at_n", "low": "low", "high": "high", "n": "n", "questions": "questions",
    "tokens": "response_length", "cut": "truncated", "format": "format",
}  # fmt: skip

ARMS = {"grpo": "GRPO", "plain": "plain Math-Verify"}  # trained beside the paper's recipe, in folders of these names
CURVES = ("reward", "response_length", "format", "seconds_step")  # of each step


def compared(before: dict, after: dict) -> dict[str, dict]:
    """For each set of two evaluations' results its numbers before and after."""
    sides = {"before": before, "after": after}
    return {
        name: {side: {key: found["results"][name][of] for key, of in NUMBERS.items()} for side, found in sides.items()}
        for name in before["results"]
    }


def gains(before: list[dict], after: list[dict], seed: int) -> dict[str, dict[str, float]]:
    """For each set the mean over its questions of what a question's share of right answers has gained.

    The interval is of that mean: the two evaluations ask the same questions, so it is narrower than their own.
    """
    shares: list[dict] = []
    for rows in (before, after):
        scores: dict = {}
        for row in rows:
            right = row["verdict"] == "right" and row["stop_reason"] != "length"
            scores.setdefault((row["bench"], row["id"]), []).append(right)
        shares.append({key: sum(found) / len(found) for key, found in scores.items()})
    found = {}
    for name in dict.fromkeys(bench for bench, _ in shares[0]):
        gained = [[shares[1][key] - share] for key, share in shares[0].items() if key[0] == name]
        low, high = bootstrap_interval(gained, seed)
        found[name] = {"avg": avg_at_n(gained), "low": low, "high": high}
    return found


def table(sets: dict[str, dict], gained: dict[str, dict[str, float]]) -> str:
    """The sets as a Markdown table, and the gains, in percent."""
    lines = ["| set | | right % | 95 % interval | questions x n | tokens | cut % | format % |", "|---" * 8 + "|"]
    for name, sides in sets.items():
        for side, at in sides.items():
            avg, low, high, cut, form = (f"{100 * at[key]:.1f}" for key in ("avg", "low", "high", "cut", "format"))
            cells = (name, side, avg, f"{low} to {high}", f"{at['questions']} x {at['n']}", f"{at['tokens']:.0f}")
            lines.append("| " + " | ".join([*cells, cut, form]) + " |")
    for name, gain in gained.items():
        avg, low, high = (f"{100 * gain[key]:.1f}" for key in ("avg", "low", "high"))
        lines.append(f"\n{name}: {avg} points more, 95 % interval {low} to {high}, question by question")
    return "\n".join(lines)


def outcome(run: Path, trained: Path) -> dict[str, dict]:
    """Of a training in the folder ``trained``: its sets against the study's before, the gain, and its curves."""
    folders = run / "before", trained / "after"
    before, after = (json.loads((folder / "results.json").read_text()) for folder in folders)
    answers = [list(read_records(folder / "responses.jsonl")) for folder in folders]
    steps = list(read_records(trained / "metrics.jsonl"))
    evals = list(read_records(trained / "eval.jsonl"))
    held_out = [
        [row["step"], round(value, 4)] for row in evals for key, value in row.items() if key.endswith("_pass1")
    ]
    return {
        "sets": compared(before, after),
        "gain": gains(*answers, before["settings"]["seed"]),
        "step": {key: [round(step[key], 4) for step in steps] for key in CURVES},
        "held_out": held_out,  # [step, share right] on the way, one answer to each question
    }


def study(run: Path, sft_rows: Path) -> dict:
    """What the folder of a finished study says. Raises OSError or KeyError for what is missing."""
    before = json.loads((run / "before" / "results.json").read_text())
    config, rates = (json.loads((run / name).read_text()) for name in ("config.json", "rl/funnel.json"))
    flags = {name: reduce(getitem, name.split("."), config["flags"]) for name in config["explicit"]}
    arms = {arm: outcome(run, run / arm) for arm in ARMS if (run / arm / "after" / "results.json").exists()}
    asked = f'ARMS="{" ".join(arms)}" ' if arms else ""
    return {
        "command": f"{asked}bash examples/train_orz_smollm2_135m_cpu.sh",
        "git_commit": config["git_commit"],
        "hardware": hardware(),
        "versions": versions(),
        "seeds": {
            "training": config["flags"]["train"]["seed"],
            "evaluation": before["settings"]["seed"],
            "curation": rates["seed"],
        },
        "sft_rows": sum(1 for _ in read_records(sft_rows)),
        "rl_questions": rates["train"],
        "steps": sum(1 for _ in read_records(run / "metrics.jsonl")),
        "flags": {name: placed(value, run) for name, value in flags.items()},
        **outcome(run, run),
        "arms": arms,
    }


def placed(value: object, run: Path) -> object:
    """A path below the study's folder as one below RUN_DIR: where it lay says nothing to others."""
    folders = {f"{run}/", f"{run.resolve()}/"}
    return next((f"RUN_DIR/{value[len(of) :]}" for of in folders if str(value).startswith(of)), value)


def draw(found: dict, folder: Path) -> list[Path]:
    """Write smollm2.svg, the held-out curve with the evaluations before and after, and smollm2-steps.svg."""
    from openrlhf_orz.report.pictures import COLOURS, draw_lines, panels

    arms = {"ORZ": found} | {ARMS[name]: arm for name, arm in found["arms"].items()}
    paths = folder / "smollm2.svg", folder / "smollm2-steps.svg"
    with panels(paths[0]) as (ax,):
        draw_lines(ax, [(name, *zip(*arm["held_out"])) for name, arm in arms.items()], 1)
        for colour, arm in zip(COLOURS, arms.values()):
            sides = arm["sets"]["mawps"]
            for step, at in ((0, sides["before"]), (len(arm["step"]["reward"]), sides["after"])):
                spread = [[at["avg"] - at["low"]], [at["high"] - at["avg"]]]
                ax.errorbar([step], [at["avg"]], spread, color=colour, marker="s", capsize=3)
        ax.set(title="SmolLM2-135M: held-out MAWPS, right", xlabel="step")
        ax.set_ylim(0, None)
    with panels(paths[1], 2) as axes:
        for ax, (key, title) in zip(axes, (("reward", "Reward"), ("response_length", "Response length (tokens)"))):
            curves = [
                (name, list(range(1, len(arm["step"][key]) + 1)), arm["step"][key]) for name, arm in arms.items()
            ]
            draw_lines(ax, curves, 3)
            ax.set(title=title, xlabel="step")
            ax.set_ylim(0, None)
    return list(paths)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python examples/smollm2/results.py", description=__doc__)
    parser.add_argument("--run", type=Path, help="the study whose numbers are taken")
    parser.add_argument("--sft_rows", type=Path, help="the rows of its warm-up")
    parser.add_argument("--output", type=Path, required=True, help="the file of the numbers")
    parser.add_argument("--pictures", type=Path, help="the folder of pictures of them")
    args = parser.parse_args(argv)
    if (args.run is None) != (args.sft_rows is None) or args.run is args.pictures is None:
        parser.error("give --run and --sft_rows, to write --output, or --pictures, to draw it")
    if args.run and (status := write(args)):
        return status
    for path in draw(json.loads(args.output.read_text()), args.pictures) if args.pictures else ():
        print(path)
    return 0


def write(args: argparse.Namespace) -> int:
    """The numbers of a study into their file; 0, or 2 where it is not finished."""
    try:
        found = study(args.run, args.sft_rows)
    except (OSError, KeyError) as error:
        print(f"error: {args.run} is no finished study ({error!r}); the recipe goes on with it: RUN_DIR={args.run}",
            file=sys.stderr)  # fmt: skip
        return 2
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(args.output, json.dumps(found, indent=1) + "\n")
    for name, of in {"orz": found, **found["arms"]}.items():
        print(f"{name}\n" + table(of["sets"], of["gain"]))
    print(f"the numbers are in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
