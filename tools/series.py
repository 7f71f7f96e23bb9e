"""The patch series, the release it is made for, and a git repository of that release to apply it in.

Standard library and git.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODEC = ("utf-8", "surrogateescape")  # any bytes survive the way there and back
DATE = "Thu, 1 Jan 2026 00:00:00 +0000"  # equal input, equal commits
# settings of the user's that would change what git reads and writes here
FIXED = ("core.autocrlf=false", "core.fsmonitor=false", "commit.gpgsign=false", "apply.ignoreWhitespace=no")
HUNK = re.compile(r"@@ -(\d+)")
# a/ and b/ before the paths, and no white space but at the ends of lines is looked at
APPLY = ("-c", "core.whitespace=-space-before-tab,-blank-at-eof", "apply", "-p1", "--whitespace=warn")
BAD_COUNTS = "a hunk's line counts do not match its header: make the diff anew"
NOT_EXACT = "make the diff anew against the tree with the earlier patches applied"


class PatchError(Exception):
    """One line for the user: what is wrong and what to do."""


@dataclass
class Hunk:
    """One hunk of a patch, as a diff that git applies alone. ``line`` is its first old line in the file, from 1."""

    path: str
    line: int
    diff: str

    @property
    def old(self) -> list[str]:
        """The lines that the hunk expects in the file."""
        return [line[1:] for line in self.diff.split("\n")[3:] if line[:1] in (" ", "-")]

    @property
    def growth(self) -> int:
        """Lines that the hunk adds less those that it removes."""
        marks = [line[:1] for line in self.diff.split("\n")[3:]]
        return marks.count("+") - marks.count("-")


class Series:
    """patches/: the pinned release and the ordered patches."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.version, self.wheels = "", {}
        for words in self._lines("UPSTREAM"):
            key, *rest = words.split()
            if key == "version" and len(rest) == 1:
                self.version = rest[0]
            elif key == "sha256" and len(rest) == 2:
                self.wheels[rest[1]] = rest[0]
            else:
                raise PatchError(f"{self.folder}/UPSTREAM: not 'version V' or 'sha256 HASH FILE': {words}")
        self.names = self._lines("series")
        self.local_version = f"{self.version}+orz.{len(self.names)}"

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        if not path.is_file():
            raise PatchError(f"{path} is missing")
        lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line]

    def read(self, name: str) -> tuple[dict[str, str], str]:
        """(headers, diff) of one patch."""
        path = self.folder / name
        if not path.is_file():
            raise PatchError(f"{path} is in series but not in the folder")
        head, mark, diff = path.read_bytes().decode(*CODEC).partition("\n---\n")
        if not mark:
            raise PatchError(f"{name}: no '---' line between the header and the diff")
        headers: dict[str, str] = {}
        key = ""
        for line in head.split("\n"):
            if line[:1].isspace() and key:  # a folded line
                headers[key] += " " + line.strip()
            elif m := re.match(r"([A-Za-z-]+):(.*)", line):
                key = m[1]
                headers[key] = m[2].strip()
            else:
                raise PatchError(f"{name}: not a header line: {line[:60]!r}")
        return headers, diff

    def hunks(self, name: str) -> list[Hunk]:
        """The hunks of one patch, in order."""
        found, paths = [], []
        for line in self.read(name)[1].split("\n"):
            if line.startswith(("--- a/", "--- /dev/null")):
                paths = [line]
            elif line.startswith(("+++ b/", "+++ /dev/null")):
                paths.append(line)
            elif (match := HUNK.match(line)) and len(paths) == 2:
                path = next(name[6:] for name in reversed(paths) if name[4:] != "/dev/null")
                found.append(Hunk(path, int(match[1]), "\n".join([*paths, line]) + "\n"))
            elif found and line[:1] in (" ", "+", "-", "\\"):
                found[-1].diff += line + "\n"
        return found


# ---- the release


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def verified(series: Series, path: Path) -> Path:
    if not path.is_file():
        raise PatchError(f"{path} does not exist")
    if sha256(path) != series.wheels[path.name]:
        raise PatchError(f"{path.name}: sha256 {sha256(path)} is not the one in UPSTREAM: delete it and download anew")
    return path


def download(version: str, folder: Path, *options: str) -> Path:
    """The wheel of openrlhf of that version, by pip, into an empty folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *options]
    command += ["--dest", str(folder), f"openrlhf=={version}"]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = next(folder.glob("*.whl"), None)
    if found is None:
        errors = [line for line in run.stdout.splitlines() if line.startswith("ERROR")] or [run.stdout.strip()]
        raise PatchError(
            f"could not download openrlhf=={version}: check that pip reaches its index ({errors[0][:200]})"
        )
    return found


def get_wheel(series: Series, given: str | Path | None = None) -> Path:
    """The upstream wheel for this interpreter, checked against UPSTREAM. It is downloaded once into .cache/."""
    if given:
        path = Path(given)
        if path.name not in series.wheels:
            raise PatchError(f"{path.name} is none of the wheels in UPSTREAM: {', '.join(series.wheels)}")
        return verified(series, path)
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    name = next((n for n in series.wheels if f"-{tag}-" in n), None)
    if name is None:
        raise PatchError(f"openrlhf {series.version} has no wheel for {tag}: use Python 3.10, 3.11 or 3.12")
    cached = ROOT / ".cache" / "wheels" / name
    if cached.is_file() and sha256(cached) == series.wheels[name]:
        return cached
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent) as tmp:
        options = ["--platform", name[:-4].split("-")[-1], "--python-version", tag[2:], "--implementation", "cp"]
        download(series.version, Path(tmp), *options)
        verified(series, Path(tmp) / name).replace(cached)
    return cached


def read_release(wheel: Path) -> tuple[str, dict[str, bytes]]:
    """(version, {path: content}) of any release's wheel, with paths from `openrlhf/` or `tests/` on."""
    try:
        with zipfile.ZipFile(wheel) as z:
            names = z.namelist()
            init = next((n for n in names if n.endswith("openrlhf/__init__.py")), None)
            metadata = next((n for n in names if n.endswith(".dist-info/METADATA")), None)
            if init is None or metadata is None:
                raise PatchError(f"{wheel.name} is no wheel of OpenRLHF: it has no openrlhf/__init__.py")
            prefix = init[: -len("openrlhf/__init__.py")]
            version = re.search(rb"(?m)^Version: (\S+)", z.read(metadata))
            files = {n[len(prefix) :]: z.read(n) for n in names if n.startswith(prefix) and not n.endswith("/")}
    except zipfile.BadZipFile:
        raise PatchError(f"{wheel} is no wheel") from None
    tree = {n: data for n, data in files.items() if n.startswith(("openrlhf/", "tests/"))}
    return version[1].decode() if version else "?", tree


def write_tree(tree: dict[str, bytes], folder: str | Path) -> None:
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise PatchError(f"{folder} is not empty: give a new folder")
    for path, data in tree.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


# ---- git


def run_git(folder: Path, *words: str | Path, text: str = "") -> subprocess.CompletedProcess:
    """A git command in ``folder``. Git's own variables, which a hook would pass on, and its translations are off."""
    settings = [part for setting in FIXED for part in ("-c", setting)]
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env |= {"LC_ALL": "C", "GIT_COMMITTER_NAME": "orz", "GIT_COMMITTER_EMAIL": "orz@localhost"}
    env |= {"GIT_AUTHOR_NAME": "orz", "GIT_AUTHOR_EMAIL": "orz@localhost"}
    env |= {"GIT_AUTHOR_DATE": DATE, "GIT_COMMITTER_DATE": DATE}
    command = ["git", *settings, *map(str, words)]
    try:
        run = subprocess.run(command, cwd=folder, env=env, input=text.encode(*CODEC), capture_output=True)
    except FileNotFoundError:
        if not folder.is_dir():
            raise PatchError(f"{folder} is no folder") from None
        raise PatchError("git is not installed: install it (apt-get install git)") from None
    out, err = (part.decode(*CODEC) for part in (run.stdout, run.stderr))
    return subprocess.CompletedProcess(command, run.returncode, out, err)


def git(folder: Path, *words: str | Path, text: str = "") -> str:
    """What a git command prints. Raises PatchError with its last words unless it succeeds."""
    run = run_git(folder, *words, text=text)
    if run.returncode:
        raise PatchError(f"git {words[0]} failed in {folder}: {(run.stderr or run.stdout).strip()[-400:]}")
    return run.stdout


def make_repository(folder: Path, tree: dict[str, bytes], tag: str) -> None:
    """A new repository whose one commit is the release as its wheel installs it."""
    write_tree(tree, folder)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--message", f"OpenRLHF {tag}, as its wheel installs it")
    git(folder, "tag", tag)


@contextmanager
def scratch_repository(tree: dict[str, bytes]) -> Iterator[Path]:
    """A repository of the release in a folder that goes afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        make_repository(Path(folder) / "release", tree, "release")
        yield Path(folder) / "release"


def files_of(repository: Path) -> dict[str, bytes]:
    """{path: content} of what the repository holds now."""
    return {path: (repository / path).read_bytes() for path in git(repository, "ls-files", "-z").split("\0") if path}


def apply_patch(series: Series, name: str, repository: Path, *options: str) -> tuple[dict[str, int], list[str]]:
    """Apply a patch to files and index (``options``: or revert it), where its hunks say and nowhere else.

    Returns {path: lines removed and added} and git's warnings. Raises PatchError.
    """
    diff = series.read(name)[1]
    run = run_git(repository, *APPLY, "--index", "--apply", "--numstat", "--verbose", *options, "-", text=diff)
    # git looks for a hunk from its new line on; the way back shows whether the old one is right
    back = ["--check"] if "--reverse" in options else ["--check", "--reverse"]
    back_run = run if run.returncode else run_git(repository, *APPLY, "--verbose", *back, "-", text=diff)
    if back_run.returncode or "(offset" in run.stderr + back_run.stderr:
        raise PatchError(refusal(name, run.stderr + back_run.stderr))
    rows = [row.split("\t") for row in run.stdout.splitlines()]
    changes = {path: int(added) + int(removed) for added, removed, path in rows}
    # git skips the lines beyond the number in a hunk's header, and a header that it does not know
    if sum(line[:1] in ("+", "-") for line in diff.split("\n")) - 2 * len(rows) != sum(changes.values()):
        raise PatchError(f"{name}: {BAD_COUNTS}")
    return changes, run.stderr.splitlines()


def refusal(name: str, said: str) -> str:
    """One line for what `git apply --verbose` said about a patch that does not fit."""
    if "corrupt patch" in said or "fragment without header" in said:
        return f"{name}: {BAD_COUNTS}"
    if match := re.search(r"error: invalid path '(.+)'", said):
        return f"{name}: {match[1]} is not under openrlhf/"
    if match := re.search(r"error: (\S+): already exists", said):
        return f"{name}: creates {match[1]}, which is already there"
    if match := re.search(r"error: (\S+): (?:does not exist|No such file)", said):
        return f"{name}: changes {match[1]}, which is not in the release"
    if match := re.search(r"error: patch failed: (\S+):(\d+)", said):
        return f"{name}: hunk at line {match[2]} does not match {match[1]} exactly: {NOT_EXACT}"
    if match := re.search(r"Checking patch (\S+)\.\.\.\nHunk #(\d+) succeeded at \d+ \(offset", said):
        return f"{name}: hunk {match[2]} of {match[1]} does not match its line number: {NOT_EXACT}"
    return f"{name}: {said.strip().splitlines()[-1] if said.strip() else 'git apply failed'}"
