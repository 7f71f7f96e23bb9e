"""The audit of the pins: what it reads, and what each answer of pip-audit becomes."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import audit


@pytest.mark.parametrize("name, at_least", [("requirements-cpu.txt", 150), ("requirements.txt", 20)])
def test_every_requirement_is_pinned(name, at_least):
    packages = audit.pinned(ROOT / name)
    assert len(packages) >= at_least and packages["torch"] == "2.13.0"  # without +cpu
    # of the lines that differ by Python version, the one for this Python
    assert sum(package.lower() == "numpy" for package in packages) == (name == "requirements-cpu.txt")


def test_a_requirement_without_a_version_is_named(tmp_path, capsys):
    (tmp_path / "r.txt").write_text("# pins\nsympy==1.14.0\nnumpy>=2\n")
    assert audit.main([str(tmp_path / "r.txt")]) == audit.UNREADABLE
    assert "r.txt:3: 'numpy>=2' is not pinned" in capsys.readouterr().err


def answer(tmp_path, text) -> list[str]:
    """A command that answers like pip-audit: with ``text``."""
    (tmp_path / "answer.py").write_text(f"print({text!r})")
    return [sys.executable, str(tmp_path / "answer.py")]


@pytest.mark.parametrize(
    "dependencies, status, line",
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "1 of 1 packages checked"),
        ([{"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2"], "fix_versions": ["1.1"]}]}],
         audit.FOUND, "FOUND: a 1: PYSEC-1, mended in 1.1"),
        ([{"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-9"], "fix_versions": []}]}],
         0, "accepted: a 1: PYSEC-1, mended in no version"),
        ([{"name": "a", "skip_reason": "not found"}], audit.UNREACHED, "not checked: a: not found"),
    ],
)  # fmt: skip
def test_answers(tmp_path, monkeypatch, dependencies, status, line):
    (tmp_path / "security.md").write_text("| advisory | package |\n|---|---|\n| `CVE-9` | a, because |\n")
    known = audit.accepted(tmp_path / "security.md")
    assert known == {"CVE-9"}
    monkeypatch.setattr(audit, "accepted", lambda: known)
    found, lines = audit.audit({"a": "1"}, answer(tmp_path, json.dumps({"dependencies": dependencies})))
    assert found == status and line in lines


def test_no_answer(tmp_path):
    assert audit.audit({"a": "1"}, answer(tmp_path, "Connection refused"))[0] == audit.UNREACHED


ADVISORY = """
id: PYSEC-2020-1
modified: "2020-05-06T00:00:00Z"
aliases: [CVE-2020-1]
affected:
- package: {name: some-package, ecosystem: PyPI}
  ranges:
  - type: ECOSYSTEM
    events: [{introduced: "1.0"}, {fixed: "1.4"}, {introduced: "2.0"}, {last_affected: "2.2"}]
  versions: ["0.7"]
"""


@pytest.mark.parametrize(
    "version, touched",
    [("0.7", True), ("0.9", False), ("1.0", True), ("1.3.9", True), ("1.4", False), ("2.2", True), ("2.3", False)],
)
def test_advisories_without_a_network(tmp_path, capsys, version, touched):
    folder = tmp_path / "vulns" / "some-package"
    folder.mkdir(parents=True)
    (folder / "PYSEC-2020-1.yaml").write_text(ADVISORY)
    (folder / "PYSEC-2020-2.yaml").write_text(ADVISORY + 'withdrawn: "2020-05-07T00:00:00Z"\n')
    (tmp_path / "r.txt").write_text(f"Some_Package=={version}\nother==1\n")
    status = audit.main(["--database", str(tmp_path), str(tmp_path / "r.txt")])
    printed = capsys.readouterr().out
    assert status == (audit.FOUND if touched else 0) and "up to 2020-05-06" in printed
    line = f"FOUND: Some_Package {version}: PYSEC-2020-1, mended in 1.4"
    assert (line in printed) is touched and "2 of 2 packages checked" in printed and "2020-2" not in printed


def test_a_folder_without_advisories(tmp_path, capsys):
    assert audit.main(["--database", str(tmp_path)]) == audit.UNREACHED
    assert "--database" in capsys.readouterr().err
