"""The contributor's pages name files that exist."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = ("CONTRIBUTING.md", "AGENTS.md")
ROOMS = "openrlhf_orz tests tools patches examples benchmarks docs docker .ci .github".split()
PLACEHOLDERS = ("NNNN", "FILE", "FOLDER")


def named_paths(text: str) -> set[str]:
    """Words that are paths from the root: below one of its folders, or a file in it."""
    words = re.findall(r"[\w.*/-]+", text)
    below = {word.rstrip("./") for word in words if word.split("/")[0] in ROOMS and "/" in word}
    beside = {word for word in words if re.fullmatch(r"[\w-]+\.(md|txt|toml|py|yaml)", word) and "/" not in word}
    return {path for path in below | beside if not any(word in path for word in PLACEHOLDERS)}


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page):
    paths = named_paths((ROOT / page).read_text())
    assert len(paths) > 10
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]


def test_every_room_is_in_the_notes():
    text = (ROOT / "AGENTS.md").read_text()
    for folder in sorted(path.parent.name for path in (ROOT / "openrlhf_orz").glob("*/__init__.py")):
        assert f"`{folder}/`" in text, folder


def test_the_site_has_every_page():
    """The navigation of mkdocs.yml and the files in docs/ agree; notes are linked from their pages."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named: list[str] = []

    def walk(entries: list) -> None:
        for entry in entries:
            (target,) = entry.values()
            walk(target) if isinstance(target, list) else named.append(target)

    walk(site["nav"])
    assert sorted(named) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))
    linked = {f"notes/{page.name}" for page in (ROOT / "docs" / "notes").glob("*.md")}
    text = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert not [note for note in linked if f"]({note}" not in text]


def test_the_pages_do_not_grow():
    """Words of the pages, without what is generated: measurements and history belong into docs/notes/.

    A word has a letter or a digit: the bars of tables and the dashes of lists are none.
    """
    pages = [page.read_text() for page in (ROOT / "docs").glob("*.md") if page.name != "flags.md"]
    by_hand = [re.sub(r"<!-- generated.*generated: end -->", "", page, flags=re.DOTALL) for page in pages]
    assert sum(any(map(str.isalnum, word)) for page in by_hand for word in page.split()) <= 15_000


def test_openrlhfs_flags_are_what_their_records_say():
    from openrlhf_orz.settings.openrlhf_flags import RECORDS

    rows = [line.strip("| ").split(" | ") for line in (ROOT / "docs" / "openrlhf-flags.md").read_text().splitlines()]
    rows = [row for row in rows if len(row) > 3 and row[1].startswith("`--")]
    assert len(rows) > 15
    tests = "".join(file.read_text() for file in (ROOT / "tests" / "e2e").glob("test_*.py"))
    for row in rows:
        assert row[2] == RECORDS[row[1].strip("`-")].effect.words, row[1]
        for flag in re.findall(r"`--([\w.]+)", " ".join(row)):
            assert flag in RECORDS, flag
        for test in re.findall(r"`(test_\w+)`", " ".join(row)):
            assert f"def {test}(" in tests, test


def test_one_version_of_ruff():
    pin = re.search(r"(?m)^ruff==(.+)$", (ROOT / "requirements-dev.txt").read_text())[1]
    assert f"rev: v{pin} " in (ROOT / ".pre-commit-config.yaml").read_text()


def test_each_promise_of_security_names_tests_that_exist():
    """Files by path or by name, test functions as ``test_x.py::test_y`` or alone, of the file named before them."""
    promised = (ROOT / "docs" / "security.md").read_text().split("## Promised")[1].split("\n## ")[0]
    rows = [row for row in promised.splitlines()[4:] if row.startswith("|")]
    assert len(rows) > 10
    for row in rows:
        files: list[Path] = []
        functions = 0
        for name in re.findall(r"`((?:tests/|test_)[\w/.:]*)`", row):
            path, _, function = name.rpartition("::") if "::" in name else (name, "", "")
            if path.startswith("test_") and not path.endswith(".py"):
                path, function = "", path
            if path:
                files = [ROOT / path] if "/" in path else list((ROOT / "tests").rglob(path))
            assert len(files) == 1 and files[0].exists(), f"docs/security.md: {name} is not there, or not alone"
            assert not function or f"def {function}(" in files[0].read_text(), f"docs/security.md: no {name}"
            functions += bool(function)
        assert functions, f"docs/security.md: no test function holds this: {row}"
