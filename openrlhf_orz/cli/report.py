"""Write a run's report: ``python -m openrlhf_orz.cli.report RUN_DIR [RUN_DIR ...]``.

One report.html, self-contained; of several runs an overlay with the differences of their configurations. Needs no
package but this one; ``--png`` and ``--svg`` need matplotlib (requirements-report.txt).
"""

import argparse
import sys
import time
from pathlib import Path

from openrlhf_orz.report.page import Page, write_page
from openrlhf_orz.report.pictures import write_pictures
from openrlhf_orz.report.run_data import RunError, load_runs
from openrlhf_orz.settings.redact import printable

LIVE_REFRESH_S = 15  # a page with --live reloads itself at this interval


def report_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m openrlhf_orz.cli.report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="the directories of one or several runs")
    parser.add_argument("--output", type=Path, help="default: report.html in the first run's directory")
    parser.add_argument("--png", type=Path, metavar="DIR", help="also write pictures for papers there")
    parser.add_argument("--svg", type=Path, metavar="DIR", help="the same pictures as SVG")
    parser.add_argument("--smoothing", type=int, default=1, help="of the pictures: mean over so many steps")
    parser.add_argument(
        "--watch", type=float, metavar="SECONDS", help="write it again and again while the run goes on"
    )
    parser.add_argument("--live", action="store_true", help="let the page load itself anew: the run goes on")
    return parser


def write_report(options: argparse.Namespace, refresh_s: int) -> Page:
    """Read the runs and write the report once."""
    runs = load_runs(options.runs)
    page = write_page(runs, options.output or options.runs[0] / "report.html", refresh_s)
    for kind, folder in (("png", options.png), ("svg", options.svg)):
        if folder:
            for path in write_pictures(runs, folder, options.smoothing, kind):
                print(path)
    return page


def newest(paths: list[Path]) -> float:
    """The time at which one of the runs last wrote a step."""
    files = [path / name for path in paths for name in ("metrics.jsonl", "eval.jsonl")]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def watch(options: argparse.Namespace) -> int:
    """Write the report whenever there is a new step, until Ctrl-C; then once more, without reloading."""
    seen = -1.0
    try:
        while True:
            now = newest(options.runs)
            if now != seen:
                seen = now
                page = write_report(options, max(1, int(options.watch)))
                print(f"{time.strftime('%H:%M:%S')} {page.path} ({page.size / 1e6:.1f} MB)", flush=True)
            time.sleep(options.watch)
    except KeyboardInterrupt:
        write_report(options, 0)
        return 0


def main(argv: list[str] | None = None) -> int:
    options = report_parser().parse_args(argv)
    if options.watch is not None and options.watch <= 0:
        print("error: --watch takes a number of seconds above 0", file=sys.stderr)
        return 2
    try:
        if options.watch:
            return watch(options)
        page = write_report(options, LIVE_REFRESH_S if options.live else 0)
    except (RunError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        print("error: --png and --svg need matplotlib: pip install -r requirements-report.txt", file=sys.stderr)
        return 2
    for note in page.notes:
        print(printable(f"note: {note}"))
    print(printable(f"{page.path} ({page.size / 1e6:.1f} MB)"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
