"""report.html: one file that needs nothing else, made of the assets and the runs' data."""

import base64
import gzip
import hashlib
import html
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_orz.report.rollout_sample import sample_rollouts
from openrlhf_orz.report.run_data import Run, columns, flatten_flags

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    "data.js",
    "chart.js",
    "charts.js",
    "tokens.js",
    "rollouts.js",
    "config.js",
    "main.js",
)
STYLES = ("vendor/uPlot.min.css", "report.css")
MAX_PAGE_BYTES = 4_800_000  # of the page
METRIC_BYTES = 1_500_000  # of all runs' metrics, packed
MAX_POINTS = 4000  # steps of one run in the charts


@dataclass
class Page:
    """A written page: its size in bytes, and its notes on what is missing or could not be read."""

    path: Path
    size: int
    notes: list[str]


def pack_json(value: Any) -> str:
    """Compressed JSON in base64, which is safe inside HTML whatever text it holds."""
    return base64.b64encode(gzip.compress(json.dumps(value, separators=(",", ":")).encode(), 9, mtime=0)).decode()


def describe_run(run: Run, stride: int) -> dict:
    """A run without its rollouts; its metrics at every ``stride``-th step, counted back from the last."""
    rows = run.metrics[::-stride][::-1] if stride > 1 else run.metrics
    notes = list(run.notes)
    if stride > 1:
        notes.append(f"the charts show {len(rows):,} of {len(run.metrics):,} steps: each {stride}th")
    config, explicit = run.config, run.config.get("explicit")
    return {
        "name": run.name,
        "steps": len(run.metrics),
        "metrics": columns(rows),
        "evals": columns(run.evals),
        "flags": flatten_flags(config.get("flags")),
        "explicit": [str(name) for name in explicit] if isinstance(explicit, list) else [],
        "versions": flatten_flags(config.get("versions")),
        "commit": str(config.get("git_commit") or ""),
        "notes": notes,
    }


def pack_runs(runs: list[Run]) -> str:
    """The packed runs; the stride of their metrics is doubled until they fit into METRIC_BYTES."""
    stride = max(1, *(-(-len(run.metrics) // MAX_POINTS) for run in runs))
    while True:
        packed = pack_json([describe_run(run, stride) for run in runs])
        if len(packed) <= METRIC_BYTES or all(len(run.metrics) <= stride for run in runs):
            return packed
        stride *= 2


def build_page(runs: list[Run], refresh_s: int = 0) -> str:
    """The page's HTML. ``refresh_s``: seconds after which it reloads itself while a run goes on; 0: never."""
    code = [(ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS]
    styles = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in STYLES)
    fixed = sum(map(len, code)) + len(styles)
    # rollouts are read before the runs are packed, because reading may add notes to the runs
    budget = (MAX_PAGE_BYTES - fixed - METRIC_BYTES) * 3 // 4 // len(runs)
    while True:
        samples = [sample_rollouts(run, budget) for run in runs]
        rollouts = pack_json(
            [{"rows": s.rows, "prompts": s.prompts, "leftOut": s.left_out, "fit": s.fit} for s in samples]
        )
        if len(rollouts) <= MAX_PAGE_BYTES - fixed - METRIC_BYTES:
            break
        budget = budget * 3 // 4
        for run in runs:  # the next sample adds the same notes again
            run.notes[:] = dict.fromkeys(run.notes)
    for run in runs:
        run.notes[:] = dict.fromkeys(run.notes)
    about = {"written": time.time(), "refresh": refresh_s}
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in code)
    title = ", ".join(run.name for run in runs)
    values = {
        # the browser sends no request and runs no other script, even if a text escaped from its element
        "POLICY": f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:",
        "TITLE": html.escape(title if len(title) < 120 else f"{len(runs)} runs"),
        "STYLE": styles,
        "ABOUT": json.dumps(about).replace("<", "\\u003c"),
        "RUNS": pack_runs(runs),
        "ROLLOUTS": rollouts,
        "SCRIPTS": "\n".join(f"<script>{part}</script>" for part in code),
    }
    template = (ASSETS / "report.html").read_text(encoding="utf-8")
    pieces = template.split("@@")
    return "".join(piece if i % 2 == 0 else values[piece] for i, piece in enumerate(pieces))


def write_page(runs: list[Run], path: str | Path, refresh_s: int = 0) -> Page:
    """Write the page. It is renamed into place, so that a reader sees the old page or the new one."""
    path = Path(path)
    content = build_page(runs, refresh_s).encode("utf-8")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)
    return Page(path, len(content), [f"{run.name}: {note}" for run in runs for note in run.notes])
