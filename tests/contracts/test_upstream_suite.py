"""OpenRLHF's own tests, from its wheel, pass on the patched tree."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_upstream_suite_passes(tmp_path):
    # In a tree of its own: they open the package's source files by relative path.
    tree = tmp_path / "openrlhf-patched"
    subprocess.run([sys.executable, ROOT / "tools" / "patches.py", "apply", tree], check=True)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "tests", "-q", "-p", "no:cacheprovider"],
        cwd=tree,
        env={k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"},  # it selects among our tests, not theirs
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    tail = run.stdout[-3000:]
    assert run.returncode == 0, tail
    assert int(re.findall(r"(\d+) passed", tail)[-1]) >= 221, tail
    assert not re.search(r"\d+ (failed|error)", tail), tail
