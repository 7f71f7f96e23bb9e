"""Run the miniature: ``python examples/miniature [--figures ...] [--seeds 0 1 2] [--jobs 2]``.

Does the runs that the figures need and that are not finished in OUT, and draws the figures and the tables from all
that are: OUT/figures/*.svg, OUT/miniature.md, critic.md and reward.md. With --docs they go into the documentation,
too.
"""

import argparse
import signal
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a folder, not installed

from miniature.arms import FIGURES, Arm, arms_of
from miniature.figures import write_figures
from miniature.results import KEPT, Results, keep, kept, load
from miniature.runner import ROOT, Run, Runner, prepare
from miniature.table import FROM, LONG_MARKERS, TO, claims_of, critic_study, generate, put


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python examples/miniature",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=list(FIGURES), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: as many as each figure has, 2 to 5")
    parser.add_argument("--out", type=Path, default=Path("runs/miniature"), help="default: runs/miniature")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each (2)")
    parser.add_argument("--draw_only", action="store_true", help="run nothing: draw what is finished")
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write the generated parts of docs/miniature.md, critic.md and reward.md, and their figures",
    )
    parser.add_argument(
        "--kept",
        action="store_true",
        help="of the studies of critic and reward take the runs that benchmarks/results/ holds; --docs writes it anew",
    )
    return parser


def planned(figures: list[str], seeds: list[int] | None) -> list[tuple[int, Arm]]:
    """Seed and arm of each run, all arms of a seed before the next: ``seeds``, or as many as each figure has."""
    if seeds is None:
        most = max(FIGURES[figure].seeds for figure in figures)
        wanted = {seed: [figure for figure in figures if seed < FIGURES[figure].seeds] for seed in range(most)}
    else:
        wanted = dict.fromkeys(seeds, figures)
    return [(seed, arm) for seed, some in wanted.items() for arm in arms_of(some)]


# Of each page its text, its task, the document, and the document's markers.
PAGES = {
    "miniature": (generate, "counting", "miniature", (FROM, TO)),
    "long": (partial(claims_of, "long"), "long", "miniature", LONG_MARKERS),
    "critic": (critic_study, "long", "critic", (FROM, TO)),
    "reward": (partial(claims_of, "reward"), "forms", "reward", (FROM, TO)),
}


def draw(figures: list[str], results: Results, out: Path, docs: bool) -> None:
    """Figures and tables of finished runs."""
    for path in write_figures(figures, results, out / "figures"):
        print(path)
    for page, (text, task, document, markers) in PAGES.items():
        some = [name for name in figures if FIGURES[name].page == page]
        if not some:
            continue
        arms = {arm.name for arm in arms_of(some)}
        of = {arm: runs for arm, runs in results.items() if arm in arms}
        (out / f"{page}.md").write_text(text(of, "figures"), encoding="utf-8")
        print(out / f"{page}.md")
        if docs:
            write_figures(some, results, ROOT / "docs" / document)
            put(ROOT / "docs" / f"{document}.md", text(of, document), markers)
            if task in KEPT:
                keep(of, KEPT[task])


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: give 1 or more")
    out, start = options.out.resolve(), time.monotonic()
    before = kept(KEPT.values()) if options.kept else {}
    wanted = [(arm, seed) for seed, arm in planned(options.figures, options.seeds)]
    whole = {(arm, seed) for arm, of in before.items() for seed, run in of.items() if run.greedy is not None}
    runs = [Run(arm, seed, out) for arm, seed in wanted if (arm.name, seed) not in whole]
    failed: list[Run] = []
    if not options.draw_only:
        out.mkdir(parents=True, exist_ok=True)
        try:
            prepare(out, [run.arm for run in runs])
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        runner = Runner(runs, options.jobs)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what runs is stopped, too
        try:
            runner()
        except KeyboardInterrupt:
            print("stopped; the same command goes on with the runs that are missing", file=sys.stderr)
            return 130
        failed = runner.failed
    results = load(runs)
    for arm, seed in wanted:
        if seed in before.get(arm.name, {}):
            results.setdefault(arm.name, {}).setdefault(seed, before[arm.name][seed])
    draw(options.figures, results, out, options.docs)
    print(f"[miniature] {(time.monotonic() - start) / 60:.1f} minutes")
    for run in failed:
        print(f"FAILED: {run.arm.name} seed {run.seed}: {run.path / 'run.log'}; run again to retry", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
