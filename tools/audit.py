"""Known vulnerabilities of the pinned requirements: ``python tools/audit.py [--database DIR] [REQUIREMENTS ...]``.

Asks pip-audit (``pip install pip-audit``, in any environment whose Python runs this file) about every package that the
files pin, or, with ``--database`` and without a network, a checkout of github.com/pypa/advisory-database. Prints a line
for each advisory; docs/security.md says why those that stand do. Exit status:

0  no advisory but those accepted there
1  some
2  a file that cannot be read or does not pin
3  the advisory database was not reached: nothing was checked
4  pip-audit is not installed: nothing was checked
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "security.md"
FOUND, UNREADABLE, UNREACHED, NOT_INSTALLED = 1, 2, 3, 4


class Unpinned(ValueError):
    """A requirement without an exact version; the message names file and line."""


def pinned(path: Path) -> dict[str, str]:
    """Package -> version in a requirements file, for this Python and machine; local versions (+cpu) without their
    local part, which advisories do not know.
    """
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line, _, marker = line.split("#")[0].partition(";")
        if not line.strip():
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^+\s]+)(?:\+\S+)?", line.strip())
        if match is None:
            raise Unpinned(f"{path}:{number}: {line.strip()!r} is not pinned: write NAME==VERSION")
        if not marker.strip() or holds(marker):
            found[match[1]] = match[2]
    return found


def holds(marker: str) -> bool:
    """Whether an environment marker is true here."""
    try:
        from packaging.markers import Marker
    except ImportError:
        from pip._vendor.packaging.markers import Marker

    return Marker(marker.strip()).evaluate()


def accepted(document: Path = DOCUMENT) -> set[str]:
    """Advisories that docs/security.md lists in a table row, with the reason why they stand."""
    rows = document.read_text().splitlines() if document.exists() else []
    return {match[1] for row in rows if (match := re.match(r"\| `((?:GHSA|CVE|PYSEC)-[\w-]+)` \|", row))}


def audit(packages: dict[str, str], command: list[str] | None = None) -> tuple[int, list[str]]:
    """Exit status and lines to print. ``command``: what runs pip-audit."""
    command = command or [sys.executable, "-m", "pip_audit"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(f"{name}=={version}\n" for name, version in sorted(packages.items())))
        file.flush()
        options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "30"]
        result = subprocess.run([*command, "--requirement", file.name, *options], capture_output=True, text=True)
    try:
        report = json.loads(result.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return UNREACHED, ["pip-audit said:", *result.stderr.splitlines()[-3:]]
    return judge(report)


def judge(report: list[dict]) -> tuple[int, list[str]]:
    """Exit status and lines to print, of pip-audit's ``dependencies``."""
    lines, stands = [], accepted()
    for package in report:
        if "skip_reason" in package:
            lines.append(f"not checked: {package['name']}: {package['skip_reason']}")
        for advisory in package.get("vulns", ()):
            names = {advisory["id"], *advisory.get("aliases", ())}
            fixed = ", ".join(advisory.get("fix_versions", ())) or "no version"
            kind = "accepted" if names & stands else "FOUND"
            lines.append(f"{kind}: {package['name']} {package['version']}: {advisory['id']}, mended in {fixed}")
    checked = sum("skip_reason" not in package for package in report)
    lines.append(f"{checked} of {len(report)} packages checked")
    if not checked:
        return UNREACHED, lines
    return (FOUND if any(line.startswith("FOUND") for line in lines) else 0), lines


def offline(packages: list[tuple[Path, dict[str, str]]], folder: Path) -> int:
    """The audit by a folder of advisories. Returns the exit status."""
    import advisories  # needs PyYAML and packaging

    date = advisories.newest(folder)
    if not date:
        print(f"error: --database {folder} holds no vulns/PACKAGE/*.yaml: nothing was checked", file=sys.stderr)
        return UNREACHED
    print(f"advisories up to {date}; younger ones are not known there")
    worst = 0
    for path, wanted in packages:
        status, lines = judge(advisories.report(wanted, folder))
        print(f"{path}:", *lines, sep="\n  ")
        worst = max(worst, status)
    return worst


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours = sorted(ROOT.glob("requirements*.txt"))
    parser.add_argument("files", nargs="*", type=Path, default=ours, help="default: all of this project")
    parser.add_argument("--database", type=Path, help="a checkout of github.com/pypa/advisory-database")
    options = parser.parse_args(argv)
    files = options.files
    try:
        packages = [(path, pinned(path)) for path in files]
    except (Unpinned, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return UNREADABLE
    if options.database:
        return offline(packages, options.database)
    if not find_spec("pip_audit"):
        print("error: pip-audit is not installed, nothing was checked: pip install pip-audit", file=sys.stderr)
        return NOT_INSTALLED
    worst, probe = 0, dict(list(packages[0][1].items())[:1])
    status, lines = audit(probe)  # one question tells whether there is anybody to ask
    if status == UNREACHED:
        print("error: the advisory database was not reached, nothing was checked", *lines, sep="\n  ", file=sys.stderr)
        return UNREACHED
    for path, wanted in packages:
        status, lines = audit(wanted)
        print(f"{path}:", *lines, sep="\n  ")
        worst = max(worst, status)
    return worst


if __name__ == "__main__":
    sys.exit(main())
