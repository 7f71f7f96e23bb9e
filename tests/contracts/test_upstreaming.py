"""tools/patches.py export and try: what would be sent upstream, and what a newer release would leave of the series."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import porting
import series as release

import patches

SERIES = patches.Series(ROOT / "patches")


@pytest.fixture(scope="module")
def wheel():
    return patches.get_wheel(SERIES)


@pytest.fixture(scope="module")
def tree(wheel):
    return patches.read_release(wheel)[1]


def run(capsys, *args):
    status = patches.main([str(a) for a in args])
    out = capsys.readouterr()
    return status, out.out + out.err


def git(folder, *words):
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


# ---- export


def test_every_patch_has_a_pull_request_s_text():
    for name in SERIES.names:
        text = patches.pull_request(SERIES, name)
        assert all(len(part.split()) > 3 for part in re.split(r"\*\*[^*]+\.\*\*", text)[1:]), name
    table = (ROOT / "patches/README.md").read_text()
    assert re.findall(r"(?m)^\| (\d{4}-[a-z0-9-]+) \|", table) == [name[: -len(".patch")] for name in SERIES.names]


def test_tests_that_the_texts_name_exist():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    text = (ROOT / "patches/README.md").read_text()
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, name
    for path in re.findall(r"`(tests/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_branch_is_the_patched_release(capsys, wheel, tmp_path):
    author = "A Name <a@example.org>"
    status, out = run(capsys, "export", tmp_path / "out", "--wheel", wheel, "--author", author)
    assert status == 0 and "rebuilt from the wheel" in out
    repository = tmp_path / "out/repository"
    subjects = git(repository, "log", "--reverse", "--format=%s", "v0.11.2..orz-seams").splitlines()
    assert subjects == [SERIES.read(name)[0]["Subject"] for name in SERIES.names]
    assert set(git(repository, "log", "--format=%an <%ae>", "v0.11.2..").splitlines()) == {author}
    assert "**Why it is safe.**" in git(repository, "log", "-1", "--format=%b")
    assert git(repository, "status", "--porcelain") == ""
    for path, data in patches.patched(SERIES, wheel).items():
        assert (repository / path).read_bytes() == data, path
    assert not any(line.startswith("Upstream-status") for line in git(repository, "log", "--format=%b").splitlines())


def test_the_mails_apply_to_a_clone_with_the_tag(capsys, wheel, tree, tmp_path):
    """Upstream's repository in small: the release somewhere in its history, with files that the wheel has not."""
    clone = tmp_path / "clone"
    release.make_repository(clone, tree | {"README.md": b"upstream\n"}, "v0.11.2")
    (clone / "openrlhf/later.py").write_text("")
    release.git(clone, "add", "--all")
    release.git(clone, "commit", "--quiet", "--message", "later")
    before = git(clone, "rev-parse", "HEAD")
    status, out = run(capsys, "export", tmp_path / "out", "--wheel", wheel, "--repo", clone)
    assert status == 0, out
    repository = tmp_path / "out/repository"
    assert git(repository, "merge-base", "orz-seams", "v0.11.2") == git(clone, "rev-parse", "v0.11.2")
    assert (repository / "README.md").exists() and not (repository / "openrlhf/later.py").exists()
    assert git(clone, "rev-parse", "HEAD") == before and git(clone, "branch", "--list", "orz-seams") == ""
    release.git(clone, "checkout", "--quiet", "v0.11.2")
    release.git(clone, "am", "--quiet", *sorted((tmp_path / "out/mails").iterdir()))
    assert git(clone, "rev-parse", "HEAD^{tree}") == git(repository, "rev-parse", "orz-seams^{tree}")
    assert git(clone, "log", "-11", "--format=%an %s %b") == git(repository, "log", "-11", "--format=%an %s %b")


def test_a_clone_that_differs_is_refused_by_the_patch_that_fails(capsys, wheel, tree, tmp_path):
    path = "openrlhf/trainer/ray/vllm_engine.py"
    changed = tree | {path: tree[path].replace(b"@ray.remote\nclass RolloutRayActor", b"class RolloutRayActor")}
    release.make_repository(tmp_path / "clone", changed, "v0.11.2")
    status, out = run(capsys, "export", tmp_path / "out", "--wheel", wheel, "--repo", tmp_path / "clone")
    assert status == 1 and f"differ in 1 files under openrlhf/, first {path}" in out
    assert "0004-rollout-engine-class.patch does not apply to v0.11.2" in out


def test_what_cannot_be_exported_is_said(capsys, wheel, tmp_path):
    assert (
        "there is no folder" in run(capsys, "export", tmp_path / "a", "--wheel", wheel, "--repo", tmp_path / "no")[1]
    )
    (tmp_path / "bare").mkdir()
    git(tmp_path / "bare", "init", "--quiet")
    out = run(capsys, "export", tmp_path / "b", "--wheel", wheel, "--repo", tmp_path / "bare")[1]
    assert "has no tag v0.11.2: git fetch --tags" in out
    assert "is not empty" in run(capsys, "export", tmp_path, "--wheel", wheel)[1]
    folder = Path(shutil.copytree(ROOT / "patches", tmp_path / "patches"))
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(text.replace("### 0004-", "### 0400-"))
    out = run(capsys, "export", tmp_path / "c", "--patches", folder, "--wheel", wheel)[1]
    assert "no section '### 0004-rollout-engine-class'" in out and not (tmp_path / "c").exists()
    (folder / "README.md").write_text(text.replace("**Test.**", "**Tests.**", 1))
    assert (
        "has the parts Problem, Change, Tests"
        in run(capsys, "export", tmp_path / "c", "--patches", folder, "--wheel", wheel)[1]
    )


# ---- try


def made_wheel(folder, tree, version="0.12.0", prefix="openrlhf-0.12.0.data/purelib/"):
    path = folder / f"openrlhf-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as z:
        for name, data in tree.items():
            z.writestr(prefix + name, data)
        z.writestr(
            f"openrlhf-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: openrlhf\nVersion: {version}\n"
        )
    return path


def test_the_release_itself(capsys, wheel):
    status, out = run(capsys, "try", wheel)
    assert status == 0 and out.startswith("14 of 14 patches apply to openrlhf 0.11.2 (made for 0.11.2)\n")
    assert "moved" not in out and len(out.splitlines()) == 1 + len(SERIES.names)


def test_lines_that_have_moved_are_found(capsys, tree, tmp_path):
    path = "openrlhf/trainer/ray/vllm_engine.py"
    moved = tree | {path: b"# one\n# two\n# three\n" + tree[path]}
    status, out = run(capsys, "try", made_wheel(tmp_path, moved, prefix=""))
    assert status == 0 and "14 of 14 patches apply to openrlhf 0.12.0" in out
    assert re.search(r"ok   0004\S+: 3 hunks: 2 applies, 1 moved\n", out)
    assert re.search(r"vllm_engine.py\n +hunk at line 30: moved by \+3 lines\n", out)


def test_what_no_longer_applies_is_named_and_the_rest_goes_on(capsys, tree, tmp_path):
    engine, agent, config = (
        "openrlhf/trainer/ray/vllm_engine.py", "openrlhf/models/ring_attn_utils.py", "openrlhf/utils/config.py"
    )  # fmt: skip
    changed = dict(tree)
    changed[engine] = tree[engine].replace(b"@ray.remote\nclass RolloutRayActor:", b"class Engine:")
    del changed[agent]
    status, out = run(capsys, "try", made_wheel(tmp_path, changed))
    n = len(SERIES.names)
    assert status == 1 and f"{n - 3} of {n} patches apply to openrlhf 0.12.0 (made for 0.11.2)" in out
    assert re.search(r"FAIL 0004-rollout-engine-class.patch: 3 hunks: .*\b1 does not apply", out)
    assert re.search(r"hunk at line 30: does not apply \(this line is gone or changed: @ray.remote\)", out)
    assert "drop it when a release lets the caller choose both: has that happened?" in out
    assert f"       {agent}\n         hunk at line 1: no such file" in out
    assert "ok   0011-" in out and config not in out


def test_a_patch_that_the_release_has_taken(capsys, wheel, tree, tmp_path):
    with release.scratch_repository(tree) as repository:
        release.apply_patch(SERIES, SERIES.names[0], repository)
        taken = release.files_of(repository)
    status, out = run(capsys, "try", made_wheel(tmp_path, taken))
    assert status == 0 and re.search(r"ok   0001-importable-cli.patch: 10 hunks: 10 already there", out)


def test_what_does_not_compile_is_not_fine(tree):
    """A hunk that is left out may leave the rest without sense; and the tree that came in is left alone."""
    before = dict(tree)
    path = "openrlhf/trainer/ppo_utils/replay_buffer.py"
    source = tree[path].replace(b"    def setup_dynamic_batch", b"    def setup_batch")
    result, outcomes = porting.try_series(SERIES, tree | {path: source})
    failed = [outcome for outcome in outcomes if outcome.state in porting.FAILED]
    assert failed and {outcome.path for outcome in failed} == {path} and tree == before
    assert result[path] != source, "the other hunks are applied"


def test_what_is_no_release_is_refused(capsys, tmp_path):
    (tmp_path / "x.whl").write_bytes(b"no zip")
    assert "is no wheel" in run(capsys, "try", tmp_path / "x.whl")[1]
    with zipfile.ZipFile(tmp_path / "y.whl", "w") as z:
        z.writestr("other/__init__.py", "")
    assert "is no wheel of OpenRLHF" in run(capsys, "try", tmp_path / "y.whl")[1]
    assert "does not exist" in run(capsys, "try", tmp_path / "z.whl")[1]
