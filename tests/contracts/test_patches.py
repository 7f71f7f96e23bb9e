"""tools/patches.py: the shipped series is sound, and an unsound one is refused in one line."""

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import series as release

import patches

SERIES = patches.Series(ROOT / "patches")
FIRST = SERIES.names[0]


@pytest.fixture(scope="module")
def wheel():
    return patches.get_wheel(SERIES)


@pytest.fixture
def folder(tmp_path):
    """A copy of patches/ to spoil."""
    return Path(shutil.copytree(ROOT / "patches", tmp_path / "patches"))


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def run(capsys, *args):
    status = patches.main([str(a) for a in args])
    out = capsys.readouterr()
    return status, out.out + out.err


# ---- the shipped series


def test_lint(capsys):
    assert run(capsys, "lint") == (0, f"{len(SERIES.names)} patches: no problems\n")


def test_roundtrip(capsys):
    assert run(capsys, "roundtrip") == (0, f"{len(SERIES.names)} patches apply and revert cleanly\n")


def test_all_wheels_of_the_release_are_pinned():
    assert [re.search(r"-(cp\d+)-", name)[1] for name in SERIES.wheels] == ["cp310", "cp311", "cp312"]


def test_git_applies_the_same(tmp_path, wheel, capsys):
    """Upstream's maintainers use `git apply` without our options: it must give the same files."""
    assert run(capsys, "apply", tmp_path / "ours")[0] == 0
    patches.write_tree(patches.read_release(wheel)[1], tmp_path / "git")
    for name in SERIES.names:
        subprocess.run(["git", "apply", SERIES.folder / name], cwd=tmp_path / "git", check=True)
    ours, gits = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "ours", tmp_path / "git")
    )
    assert ours == gits


def test_wheel(tmp_path, wheel, capsys):
    status, out = run(capsys, "wheel", "--out", tmp_path)
    path, version = Path(out.strip()), f"0.11.2+orz.{len(SERIES.names)}"
    assert status == 0 and path.name == wheel.name.replace("0.11.2", version)
    tree = patches.patched(SERIES, wheel)
    with zipfile.ZipFile(path) as z:
        files = {name: z.read(name) for name in z.namelist()}
    data, info = f"openrlhf-{version}.data/purelib/", f"openrlhf-{version}.dist-info/"
    code = {name[len(data) :]: text for name, text in files.items() if name.startswith(data)}
    assert code == {name: text for name, text in tree.items() if name.startswith("openrlhf/")}
    assert not any("/tests/" in name for name in files)  # they would shadow the project's own
    assert all(name.startswith((data, info)) for name in files)
    assert re.findall(rb"(?m)^Version: (.*)$", files[info + "METADATA"]) == [version.encode()]
    assert files[info + "top_level.txt"] == b"openrlhf\n"
    assert [line.split()[1] for line in files[info + "orz-series.txt"].decode().splitlines()] == SERIES.names
    record = dict(line.split(",", 1) for line in files[info + "RECORD"].decode().splitlines())
    assert record.pop(info + "RECORD") == ","
    for name, entry in record.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        assert entry == f"sha256={digest},{len(files[name])}"
    assert len(record) == len(files) - 1


def test_pip_installs_the_wheel(tmp_path, wheel):
    built = patches.build_wheel(SERIES, wheel, tmp_path)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", tmp_path / "site", built], check=True)
    names = {p.name for p in (tmp_path / "site").iterdir()}
    assert names == {"openrlhf", f"openrlhf-{SERIES.local_version}.dist-info"}


def test_equal_inputs_give_an_equal_wheel(tmp_path, wheel):
    built = [patches.build_wheel(SERIES, wheel, tmp_path / n) for n in "ab"]
    assert built[0].read_bytes() == built[1].read_bytes()


# ---- what is refused


def test_tampered_wheel_is_refused(tmp_path, wheel, capsys):
    bad = tmp_path / wheel.name
    bad.write_bytes(wheel.read_bytes() + b"\0")
    status, out = run(capsys, "apply", "--wheel", bad, tmp_path / "out")
    assert status == 1 and "sha256" in out and not (tmp_path / "out").exists()
    other = tmp_path / "openrlhf-0.11.1-cp311-cp311-manylinux1_x86_64.whl"
    shutil.copy(wheel, other)
    status, out = run(capsys, "apply", "--wheel", other, tmp_path / "out")
    assert status == 1 and "none of the wheels in UPSTREAM" in out


def test_apply_wants_a_new_folder(tmp_path, capsys):
    (tmp_path / "mine").write_text("keep")
    status, out = run(capsys, "apply", tmp_path)
    assert status == 1 and "not empty" in out and (tmp_path / "mine").read_text() == "keep"


@pytest.mark.parametrize("command", ["lint", "roundtrip", "wheel", "apply"])
@pytest.mark.parametrize("spoiled", ["context", "old line number", "new line number"])
def test_no_fuzz_and_no_offset(folder, tmp_path, capsys, command, spoiled):
    first = folder / FIRST
    hunk = re.search(r"@@ -(\d+),(\d+) \+(\d+),(\d+) @@.*\n (.*\S.*)\n", first.read_text())
    if spoiled == "context":
        edit(first, f"\n {hunk[5]}\n", f"\n {hunk[5]}  # fuzz\n")
    elif spoiled == "old line number":
        edit(first, f"@@ -{hunk[1]},{hunk[2]} ", f"@@ -{int(hunk[1]) + 1},{hunk[2]} ")
    else:
        edit(first, f" +{hunk[3]},{hunk[4]} @@", f" +{int(hunk[3]) + 1},{hunk[4]} @@")
    target = {"apply": [tmp_path / "out"], "wheel": ["--out", tmp_path / "out"]}.get(command, [])
    status, out = run(capsys, command, "--patches", folder, *target)
    assert status == 1 and "does not match" in out and "make the diff anew" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("header", patches.HEADERS)
def test_lint_wants_every_header(folder, capsys, header):
    path = folder / FIRST
    line = re.search(rf"(?m)^{header}: .*$", path.read_text())[0]
    edit(path, line, f"{header}:")
    status, out = run(capsys, "lint", "--patches", folder)
    assert status == 1 and f"{FIRST}: header '{header}:' is missing or empty" in out
    edit(path, f"{header}:\n", "")
    assert "missing or empty" in run(capsys, "lint", "--patches", folder)[1]


def test_lint_matches_series_and_files(folder, capsys):
    (folder / "0999-stray.patch").write_text((folder / FIRST).read_text())
    status, out = run(capsys, "lint", "--patches", folder)
    assert status == 1 and "0999-stray.patch: not in series" in out
    (folder / "0999-stray.patch").unlink()
    with (folder / "series").open("a") as f:
        f.write("0998-absent.patch\n")
    status, out = run(capsys, "lint", "--patches", folder)
    assert status == 1 and "0998-absent.patch is in series but not in the folder" in out


NEW_FILE = """Subject: x
Why-not-a-subclass: x
Upstream-status: x
Drop-when: x
Test: {test}
---
--- /dev/null
+++ b/{path}
@@ -0,0 +1,{count} @@
{lines}
"""


@pytest.mark.parametrize(
    "change, problem",
    [
        (dict(test="tests/contracts/no_such_test.py"), "no_such_test.py does not exist"),
        (dict(path="tests/test_new.py"), "tests/test_new.py is not under openrlhf/"),
        (dict(path="openrlhf/../x.py"), "is not under openrlhf/"),
        (dict(lines=["+x = 1 "]), "trailing white space"),
        (dict(lines=["+x = = 1"]), "does not compile"),
        (dict(lines=["+x = 1"] * (patches.MAX_CHANGED + 1)), "cut it in two"),
        (dict(path="openrlhf/utils/utils.py"), "already there"),
        (dict(lines=["x = 1"]), "line counts do not match"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lint_reads_what_a_patch_adds(folder, capsys, change, problem):
    parts = dict(test="tests/contracts/test_patches.py", path="openrlhf/new.py", lines=["+x = 1"]) | change
    parts["count"], parts["lines"] = len(parts["lines"]), "\n".join(parts["lines"])
    (folder / "0100-new.patch").write_text(NEW_FILE.format(**parts))
    with (folder / "series").open("a") as f:
        f.write("0100-new.patch\n")
    status, out = run(capsys, "lint", "--patches", folder)
    assert status == 1 and "0100-new.patch" in out
    assert problem in out and len(out.splitlines()) == 1


@pytest.mark.parametrize("spoiled", ["@@-2,", "@@ -2,"])
def test_no_part_of_a_patch_is_left_out(folder, capsys, spoiled):
    """git skips what it does not take for a hunk: a header with a slip in it, lines below a count that is too low."""
    text = (folder / FIRST).read_text()
    header = re.search(r"@@ -2,(\d+) \+2,(\d+) @@", text)
    short = f"@@ -2,{int(header[1]) - 3} +2,{int(header[2]) - 3} @@" if spoiled == "@@ -2," else None
    edit(folder / FIRST, header[0], short or header[0].replace("@@ -2,", spoiled))
    status, out = run(capsys, "lint", "--patches", folder)
    assert status == 1 and f"{FIRST}: " in out and len(out.splitlines()) == 1
    assert "line counts do not match" in out


# ---- the corners of the format

NO_NEWLINE = "\\ No newline at end of file\n"


def small_series(folder, diff):
    (folder / "UPSTREAM").write_text("version 1\n")
    (folder / "series").write_text("p.patch\n")
    (folder / "p.patch").write_bytes(("Subject: p\n---\n" + diff).encode(*release.CODEC))
    return patches.Series(folder)


@pytest.mark.parametrize(
    "before, after, diff",
    [
        ({}, {"f": b"a\n"}, "--- /dev/null\n+++ b/f\n@@ -0,0 +1 @@\n+a\n"),
        ({"f": b"a\n"}, {}, "--- a/f\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n"),
        ({"f": b"a\nb"}, {"f": b"a\nb\n"}, f"--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\n-b\n{NO_NEWLINE}+b\n"),
        ({"f": b"a\nb"}, {"f": b"c\nb"}, f"--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n-a\n+c\n b\n{NO_NEWLINE}"),
        ({"f": b"-- x\n"}, {"f": b"++ y\n"}, "--- a/f\n+++ b/f\n@@ -1 +1 @@\n--- x\n+++ y\n"),
        ({"f": b"\xff\r\na\n"}, {"f": b"\xff\r\nb\n"}, "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n \udcff\r\n-a\n+b\n"),
    ],
)  # fmt: skip
def test_diff_format(tmp_path, before, after, diff):
    series = small_series(tmp_path, diff)
    with release.scratch_repository({"keep": b"", **before}) as repository:
        release.apply_patch(series, "p.patch", repository)
        assert release.files_of(repository) == {"keep": b"", **after}
        release.apply_patch(series, "p.patch", repository, "--reverse")
        assert release.files_of(repository) == {"keep": b"", **before}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "prose\n",
        "--- a/f\n+++ b/f\n",
        "--- f\n+++ f\n@@ -1 +1 @@\n-a\n+b\n",
        "--- a/f\n+++ b/f\n@@ -0,0 +1 @@\n+b\n@@ -1,0 +3 @@\n+c\n",  # no context: git does not trust it
    ],
)
def test_what_is_no_diff_is_refused(tmp_path, text):
    series = small_series(tmp_path, text)
    with release.scratch_repository({"f": b"a\n"}) as repository, pytest.raises(patches.PatchError):
        release.apply_patch(series, "p.patch", repository)


def test_the_user_s_git_settings_change_nothing(tmp_path, wheel, monkeypatch):
    """As in a hook, which passes GIT_DIR on, and with a configuration that translates line ends."""
    plain = patches.build_wheel(SERIES, wheel, tmp_path / "plain").read_bytes()
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = "[core]\n autocrlf = true\n[apply]\n whitespace = fix\n ignoreWhitespace = change\n"
    (tmp_path / ".gitconfig").write_text(settings)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert patches.build_wheel(SERIES, wheel, tmp_path / "set").read_bytes() == plain


def test_git_is_asked_for(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, out = run(capsys, "roundtrip")
    assert status == 1 and "git is not installed" in out and "apt-get install git" in out
