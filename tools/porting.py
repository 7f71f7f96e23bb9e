"""Tries the patch series against another release: patch by patch, file by file, hunk by hunk, what still applies.

git looks for a hunk's lines wherever they are now. A hunk that it finds is applied, so that later patches meet the
tree that they expect; a hunk that it does not find is reported and left out.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from series import (
    APPLY,
    CODEC,
    Hunk,
    PatchError,
    Series,
    download,
    files_of,
    git,
    read_release,
    run_git,
    scratch_repository,
)

APPLIES, MOVED, THERE, CHANGED, NO_FILE = "applies", "moved", "already there", "does not apply", "no such file"
FAILED = (CHANGED, NO_FILE)


@dataclass
class Outcome:
    """The result of one hunk on another release. ``line`` is where the patch has it, from 1."""

    patch: str
    path: str
    line: int
    state: str
    detail: str = ""


def try_hunk(repository: Path, hunk: Hunk) -> tuple[str, int, str]:
    """(state, how far its lines have moved, the line that is gone) of one hunk. Applies it where it can."""
    run = run_git(repository, *APPLY, "--verbose", "-", text=hunk.diff)
    if run.returncode == 0:
        moved = re.search(r"\(offset (-?\d+) lines?\)", run.stderr)
        return APPLIES, int(moved[1]) if moved else 0, ""
    if run_git(repository, *APPLY, "--check", "--reverse", "-", text=hunk.diff).returncode == 0:
        return THERE, 0, ""
    target = repository / hunk.path
    if not target.is_file():
        return NO_FILE, 0, ""
    lines = set(target.read_bytes().decode(*CODEC).split("\n"))
    gone = next((line for line in hunk.old if line.strip() and line not in lines), None)
    if gone is None:
        return CHANGED, 0, "(its lines are there, but not one after the other any more)"
    return CHANGED, 0, f"(this line is gone or changed: {gone.strip()[:90]})"


def try_series(series: Series, tree: dict[str, bytes]) -> tuple[dict[str, bytes], list[Outcome]]:
    """The tree with all hunks that apply, and every hunk's outcome in the series' order."""
    outcomes = []
    with scratch_repository(tree) as repository:
        for name in series.names:
            shifts: dict[str, int] = {}  # by which the hunks above in the file have moved
            for hunk in series.hunks(name):
                state, offset, detail = try_hunk(repository, hunk)
                if state == APPLIES:
                    moved = offset - shifts.get(hunk.path, 0)
                    shifts[hunk.path] = offset
                    if moved:
                        state, detail = MOVED, f"by {moved:+d} lines"
                elif state == CHANGED:
                    shifts[hunk.path] = shifts.get(hunk.path, 0) - hunk.growth
                outcomes.append(Outcome(name, hunk.path, hunk.line, state, detail))
        git(repository, "add", "--all", "--force")
        return files_of(repository), outcomes


def try_release(series: Series, given: str) -> tuple[list[str], bool]:
    """(lines for the reader, whether the whole series applies) of a wheel's file or a version."""
    with tempfile.TemporaryDirectory() as folder:
        if given.endswith(".whl") and not Path(given).is_file():
            raise PatchError(f"{given} does not exist")
        wheel = Path(given) if given.endswith(".whl") else download(given, Path(folder))
        version, tree = read_release(wheel)
    tree, outcomes = try_series(series, tree)
    lines, bad, broken = [], 0, 0
    for name in series.names:
        mine = [outcome for outcome in outcomes if outcome.patch == name]
        failed = [outcome for outcome in mine if outcome.state in FAILED]
        counts = [(state, sum(o.state == state for o in mine)) for state in (APPLIES, MOVED, THERE, *FAILED)]
        told = ", ".join(f"{count} {state}" for state, count in counts if count)
        lines.append(f"{'FAIL' if failed else 'ok  '} {name}: {len(mine)} hunks: {told}")
        bad += bool(failed)
        for path in dict.fromkeys(outcome.path for outcome in mine if outcome.state != APPLIES):
            lines.append(f"       {path}")
            for outcome in mine:
                if outcome.path == path and outcome.state != APPLIES:
                    lines.append(f"         hunk at line {outcome.line}: {outcome.state} {outcome.detail}".rstrip())
        if failed:
            lines.append(f"       drop it when {series.read(name)[0].get('Drop-when', '?')}: has that happened?")
    for path in sorted({outcome.path for outcome in outcomes} & tree.keys()):
        if path.endswith(".py"):
            try:
                compile(tree[path], path, "exec")
            except (SyntaxError, ValueError) as error:
                lines.append(f"FAIL {path} does not compile with what applies: {error}")
                broken += 1
    whole = f"{len(series.names) - bad} of {len(series.names)} patches apply to openrlhf {version}"
    return [f"{whole} (made for {series.version})", *lines], not bad and not broken
