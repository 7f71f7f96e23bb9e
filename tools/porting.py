"""Tries the patch series against another release: patch by patch, file by file, hunk by hunk, what still applies.

Unlike unidiff.apply it looks for a hunk's lines wherever they are now. What it finds it applies, so that later patches
meet the tree that they expect; what it does not find it reports and leaves out. Standard library only.
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import unidiff
from unidiff import PatchError

APPLIES, MOVED, THERE, CHANGED, NO_FILE = "applies", "moved", "already there", "does not apply", "no such file"
FAILED = (CHANGED, NO_FILE)


@dataclass
class Outcome:
    """What became of one hunk. ``line`` is where it stands in the patch, from 1."""

    patch: str
    path: str
    line: int
    state: str
    detail: str = ""


def obtain(given: str, folder: Path) -> Path:
    """A wheel: the file that is named, or openrlhf of that version, downloaded for this interpreter to ``folder``."""
    if given.endswith(".whl"):
        if not Path(given).is_file():
            raise PatchError(f"{given} does not exist")
        return Path(given)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--dest", folder, f"openrlhf=={given}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    found = next(folder.glob("*.whl"), None)
    if found is None:
        errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR")] or [done.stdout.strip()]
        raise PatchError(
            f"could not download openrlhf=={given} ({errors[0][:200]}): name a version, or a wheel's file"
        )
    return found


def tree_of(wheel: Path) -> tuple[str, dict[str, bytes]]:
    """(version, paths from `openrlhf/` or `tests/` on) of any release's wheel."""
    try:
        with zipfile.ZipFile(wheel) as z:
            names = z.namelist()
            init = next((n for n in names if n.endswith("openrlhf/__init__.py")), None)
            metadata = next((n for n in names if n.endswith(".dist-info/METADATA")), None)
            if init is None or metadata is None:
                raise PatchError(f"{wheel.name} is no wheel of OpenRLHF: it has no openrlhf/__init__.py")
            prefix = init[: -len("openrlhf/__init__.py")]
            version = re.search(rb"(?m)^Version: (\S+)", z.read(metadata))[1].decode()
            files = {n[len(prefix) :]: z.read(n) for n in names if n.startswith(prefix) and not n.endswith("/")}
    except zipfile.BadZipFile:
        raise PatchError(f"{wheel} is no wheel") from None
    return version, {n: data for n, data in files.items() if n.startswith(("openrlhf/", "tests/"))}


def places(source: list, lines: list) -> list[int]:
    """Where ``lines`` stand in ``source``, from 0."""
    if not lines:
        return []
    return [i for i in range(len(source) - len(lines) + 1) if source[i : i + len(lines)] == lines]


def missing(source: list, hunk) -> str:
    """The first of the hunk's old lines that the file has no more, else that their order or surroundings changed."""
    there = set(source)
    gone = next((line for line in hunk.old if line.strip() and line not in there), None)
    if gone is not None:
        return f"this line is gone or changed: {gone.strip()[:90]}"
    return "its lines are there, but not one after the other any more"


def try_file(source: list, diff, patch: str) -> tuple[list, list[Outcome]]:
    """The file's lines with what applies of one file's hunks, and the hunks' outcomes."""
    outcomes, shift = [], 0
    for hunk in diff.hunks:
        expected = (hunk.old_start - 1 if hunk.old else hunk.old_start) + shift
        found = places(source, hunk.old) if hunk.old or source else [0]  # a file that is created
        if found:
            at = min(found, key=lambda place: abs(place - expected))
            source = source[:at] + hunk.new + source[at + len(hunk.old) :]
            moved = at - expected
            shift += len(hunk.new) - len(hunk.old) + moved
            detail = f"by {moved:+d} lines" if moved else ""
            if len(found) > 1 and moved:
                detail += f"; its lines stand in {len(found)} places, the nearest was taken: look at it"
            outcomes.append(Outcome(patch, diff.path, hunk.old_start, MOVED if moved else APPLIES, detail))
        elif places(source, hunk.new):
            outcomes.append(Outcome(patch, diff.path, hunk.old_start, THERE))
        else:
            outcomes.append(Outcome(patch, diff.path, hunk.old_start, CHANGED, f"({missing(source, hunk)})"))
    return source, outcomes


def try_series(series, tree: dict[str, bytes]) -> tuple[dict[str, bytes], list[Outcome]]:
    """The tree with all that applies, and every hunk's outcome in the series' order."""
    tree, outcomes = dict(tree), []
    for name in series.names:
        for diff in series.read(name)[1]:
            text = tree.get(diff.old_path) if diff.old_path else b""
            if text is None:
                outcomes += [Outcome(name, diff.path, hunk.old_start, NO_FILE) for hunk in diff.hunks]
                continue
            lines = re.findall(r"[^\n]*\n|[^\n]+", text.decode(*unidiff.CODEC))
            lines, found = try_file(lines, diff, name)
            outcomes += found
            if diff.new_path:
                tree[diff.new_path] = "".join(lines).encode(*unidiff.CODEC)
            elif not lines:
                del tree[diff.old_path]
    return tree, outcomes


def report(series, given: str) -> tuple[list[str], bool]:
    """(lines for the reader, whether the whole series applies)."""
    with tempfile.TemporaryDirectory() as folder:
        version, tree = tree_of(obtain(given, Path(folder)))
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
