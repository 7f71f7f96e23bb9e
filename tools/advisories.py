"""A folder of advisories in OSV's format, as github.com/pypa/advisory-database is one, asked without a network."""

import re
from pathlib import Path

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version


def newest(folder: Path) -> str:
    """The day of the newest change among the advisories: what is younger is not known there."""
    found = (re.search(r"""^modified: ["']?(\d{4}-\d\d-\d\d)""", path.read_text(), re.M) for path in files(folder))
    return max((match[1] for match in found if match), default="")


def files(folder: Path, name: str = "*") -> list[Path]:
    return sorted(folder.glob(f"vulns/{name}/*.yaml"))


def touches(advisory: dict, version: str) -> bool:
    """Whether a version is among those affected: listed, or between the events of a range."""
    for affected in advisory.get("affected", ()):
        if version in affected.get("versions", ()):
            return True
        for events in (r["events"] for r in affected.get("ranges", ()) if r["type"] == "ECOSYSTEM"):
            inside = False
            for event in events:  # in order
                ((kind, bound),) = event.items()
                if kind == "introduced":
                    inside = inside or bound == "0" or Version(version) >= Version(bound)
                elif kind == "fixed" and Version(version) >= Version(bound):
                    inside = False
                elif kind == "last_affected" and Version(version) > Version(bound):
                    inside = False
            if inside:
                return True
    return False


def fixes(advisory: dict) -> list[str]:
    """The versions in which it is mended."""
    ranges = (r for affected in advisory.get("affected", ()) for r in affected.get("ranges", ()))
    return [event["fixed"] for r in ranges if r["type"] == "ECOSYSTEM" for event in r["events"] if "fixed" in event]


def report(packages: dict[str, str], folder: Path) -> list[dict]:
    """What pip-audit would report as its ``dependencies``, for {package: version}."""
    found = []
    for name, version in sorted(packages.items()):
        entry = {"name": name, "version": version, "vulns": []}
        try:
            for path in files(folder, canonicalize_name(name)):
                advisory = yaml.safe_load(path.read_text())
                if not advisory.get("withdrawn") and touches(advisory, version):
                    names = {"id": advisory["id"], "aliases": advisory.get("aliases", [])}
                    entry["vulns"].append(names | {"fix_versions": fixes(advisory)})
        except (InvalidVersion, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            entry = {"name": name, "skip_reason": f"{path}: {error}"}
        found.append(entry)
    return found
