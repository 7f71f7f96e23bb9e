"""The README says what is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_links_and_layout_exist():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target.partition("#")[0]).exists(), target
    layout = README.split("## Layout")[1].split("```")[1]
    for name in re.findall(r"^(\w+/)", layout, re.M):
        assert (ROOT / name).is_dir(), name
    for name in re.findall(r"^  (\S+)", layout, re.M):
        assert (ROOT / "openrlhf_orz" / name).exists(), name


def test_nothing_left_to_fill_in():
    assert not re.findall(r"@[A-Z]+@", README)


def test_the_index_leads_to_every_page():
    """And no page links to one that is not there."""
    docs = ROOT / "docs"
    index = (docs / "README.md").read_text()
    assert not [page.name for page in docs.glob("*.md") if f"]({page.name})" not in index and page.name != "README.md"]
    lost = [
        f"{page.name}: {target}"
        for page in docs.rglob("*.md")
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not lost
