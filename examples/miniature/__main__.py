"""Run the miniature: ``python examples/miniature [--figures ...] [--seeds 0 1 2] [--jobs 2]``.

Does the runs that the figures need and that are not finished in OUT, and draws the figures and the tables from all
that are: OUT/figures/*.svg, OUT/miniature.md, critic.md and reward.md. With --docs they go into the documentation,
too.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a folder, not installed

from miniature.arms import FIGURES, SEEDS, arms_of
from miniature.figures import write_figures
from miniature.results import KEPT, Results, keep, kept, load
from miniature.runner import ROOT, Run, Runner, prepare
from miniature.table import critic_study, generate, put, reward_study


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python examples/miniature",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=list(FIGURES), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=range(SEEDS), help="default: 0 to 4")
    parser.add_argument("--out", type=Path, default=Path("runs/miniature"), help="default: runs/miniature")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each (2)")
    parser.add_argument("--draw_only", action="store_true", help="run nothing: draw what is finished")
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write the generated parts of docs/miniature.md, critic.md and reward.md, and their figures",
    )
    parser.add_argument(
        "--kept", action="store_true", help=f"take the runs that {KEPT.name} holds; --docs adds to it what has run"
    )
    return parser


PAGES = {"miniature": generate, "critic": critic_study, "reward": reward_study}  # of each document its generated part


def draw(figures: list[str], results: Results, out: Path, docs: bool) -> None:
    """The figures, and the tables of their whole pages, of all runs in ``results``."""
    for path in write_figures(figures, results, out / "figures"):
        print(path)
    for page, text in PAGES.items():
        if not any(FIGURES[name].page == page for name in figures):
            continue
        whole = [name for name, figure in FIGURES.items() if figure.page == page]
        arms = {arm.name for arm in arms_of(whole)}
        of = {arm: runs for arm, runs in results.items() if arm in arms}
        (out / f"{page}.md").write_text(text(of, "figures"), encoding="utf-8")
        print(out / f"{page}.md")
        if docs:
            write_figures(whole, results, ROOT / "docs" / page)
            put(ROOT / "docs" / f"{page}.md", text(of, page))
    if docs:
        keep(results)


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: give 1 or more")
    out, start = options.out.resolve(), time.monotonic()
    before = kept() if options.kept else {}
    wanted = [(arm, seed) for seed in options.seeds for arm in arms_of(options.figures)]
    whole = {(arm, seed) for arm, of in before.items() for seed, run in of.items() if run.greedy is not None}
    runs = [Run(arm, seed, out) for arm, seed in wanted if (arm.name, seed) not in whole]
    failed: list[Run] = []
    if not options.draw_only:
        out.mkdir(parents=True, exist_ok=True)
        runner = Runner(runs, options.jobs)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what runs is stopped, too
        try:
            prepare(out, [run.arm for run in runs])
            runner()
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopped; the same command goes on with the runs that are missing", file=sys.stderr)
            return 130
        failed = runner.failed
    results = load(runs)
    for arm in before:
        results[arm] = before[arm] | results.get(arm, {})
    draw(options.figures, results, out, options.docs)
    print(f"[miniature] {(time.monotonic() - start) / 60:.1f} minutes")
    for run in failed:
        print(f"FAILED: {run.arm.name} seed {run.seed}: {run.path / 'run.log'}; run again to retry", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
