"""Writes the patch series as pull requests: a git branch upon the upstream release, a commit a patch, by `git am`.

The text of a commit is the pull request's in patches/README.md. Standard library and git.
"""

import re
import subprocess
from pathlib import Path

import unidiff
from unidiff import PatchError

BRANCH = "orz-seams"
PARTS = ("Problem", "Change", "Test", "Why it is safe")
DATE = "Thu, 1 Jan 2026 00:00:00 +0000"  # equal input, equal commits


def pull_request(series, name: str) -> str:
    """The pull request's text of one patch: the section of README.md with its name, all four parts in order."""
    path = series.folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    section = re.search(rf"(?ms)^### {re.escape(name.removesuffix('.patch'))}\n(.*?)(?=^#|\Z)", text)
    if section is None:
        raise PatchError(f"{path}: no section '### {name.removesuffix('.patch')}' with the pull request's text")
    found = re.findall(r"(?m)^\*\*([^*]+)\.\*\*", section[1])
    if found != list(PARTS):
        raise PatchError(f"{path}: {name} has the parts {', '.join(found)}, not {', '.join(PARTS)}")
    return section[1].strip() + "\n"


def mail(series, name: str, author: str) -> bytes:
    """One patch as `git am` reads it."""
    headers, _ = series.read(name)
    path = series.folder / name
    diff = path.read_bytes().decode(*unidiff.CODEC).partition("\n---\n")[2]
    number, total = series.names.index(name) + 1, len(series.names)
    head = f"From: {author}\nDate: {DATE}\nSubject: [PATCH {number}/{total}] {headers['Subject']}\n"
    head += "MIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n"
    text = f"From {'0' * 40} Mon Sep 17 00:00:00 2001\n{head}\n{pull_request(series, name)}---\n\n{diff}-- \norz\n"
    return text.encode(*unidiff.CODEC)


def git(folder: Path, *words: str, ok: bool = True) -> str:
    """What a git command prints; PatchError with its last words unless it succeeds."""
    fixed = ["-c", "user.name=orz", "-c", "user.email=orz@localhost", "-c", "commit.gpgsign=false"]
    try:
        done = subprocess.run(["git", *fixed, *words], cwd=folder, capture_output=True)
    except FileNotFoundError:
        raise PatchError("git is not installed: install it, or take the series as it is") from None
    out, err = (part.decode(*unidiff.CODEC) for part in (done.stdout, done.stderr))
    if ok and done.returncode:
        raise PatchError(f"git {' '.join(words[:2])} failed in {folder}: {(err or out).strip()[-400:]}")
    return out


def release_repository(folder: Path, tree: dict[str, bytes], tag: str) -> None:
    """A new repository whose one commit is the release as its wheel installs it."""
    for path, data in tree.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--date", DATE, "--message", f"OpenRLHF {tag}, as its wheel installs it")
    git(folder, "tag", tag)


def clone_of(folder: Path, repo: Path, tag: str, tree: dict[str, bytes]) -> None:
    """A clone of a checkout at the tag; PatchError where the tag is missing or does not hold what the wheel does."""
    if not repo.is_dir():
        raise PatchError(f"--repo: there is no folder {repo}: name a clone of OpenRLHF")
    tags = git(repo, "tag", "--list", tag).split()
    if tag not in tags:
        raise PatchError(f"--repo: {repo} has no tag {tag}: git fetch --tags, or leave --repo out")
    git(folder.parent, "clone", "--quiet", "--no-checkout", str(repo.resolve()), str(folder))
    git(folder, "checkout", "--quiet", "--detach", tag)
    differ = [
        path for path, data in sorted(tree.items())
        if path.startswith("openrlhf/") and (not (folder / path).is_file() or (folder / path).read_bytes() != data)
    ]  # fmt: skip
    if differ:
        print(f"{tag} and the wheel differ in {len(differ)} files under openrlhf/, first {differ[0]}", flush=True)


def export(series, tree: dict[str, bytes], out: Path, repo: Path | None, author: str) -> list[str]:
    """Write OUT/mails and the branch in OUT/repository; returns lines for the reader. PatchError if a patch fails."""
    if out.exists() and any(out.iterdir()):
        raise PatchError(f"{out} is not empty: give a new folder")
    mails, folder, tag = out / "mails", out / "repository", f"v{series.version}"
    texts = {name: mail(series, name, author) for name in series.names}  # first of all: is every text there?
    mails.mkdir(parents=True)
    for name, text in texts.items():
        (mails / name).write_bytes(text)
    if repo is None:
        folder.mkdir()
        release_repository(folder, tree, tag)
    else:
        clone_of(folder, repo, tag, tree)
    git(folder, "checkout", "--quiet", "-b", BRANCH, tag)
    for name in series.names:
        try:
            git(folder, "am", "--quiet", "--committer-date-is-author-date", str((mails / name).resolve()))
        except PatchError as error:
            git(folder, "am", "--abort", ok=False)
            raise PatchError(f"{name} does not apply to {tag}: {error}") from None
    return [
        f"{len(series.names)} mails for git am in {mails}",
        f"{folder}: branch {BRANCH}, {len(series.names)} commits upon {tag}"
        + (", rebuilt from the wheel" if repo is None else ""),
    ]
