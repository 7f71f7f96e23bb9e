#!/usr/bin/env python3
"""The patch series against the pinned OpenRLHF wheel: lint, apply, roundtrip, wheel, export, try.

Standard library and git. N in the patched version 0.11.2+orz.N is the number of patches in the series.
"""

import argparse
import base64
import hashlib
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import porting
from series import (
    APPLY,
    CODEC,
    DATE,
    ROOT,
    PatchError,
    Series,
    apply_patch,
    files_of,
    get_wheel,
    git,
    make_repository,
    read_release,
    run_git,
    scratch_repository,
    sha256,
    write_tree,
)

HEADERS = ("Subject", "Why-not-a-subclass", "Upstream-status", "Drop-when", "Test")
MAX_CHANGED = 250  # a patch that a maintainer reads in one sitting
BRANCH = "orz-seams"
PARTS = ("Problem", "Change", "Test", "Why it is safe")  # of a pull request's text


def patched(series: Series, wheel: Path) -> dict[str, bytes]:
    """{path: content} of the release with the series applied."""
    with scratch_repository(read_release(wheel)[1]) as repository:
        for name in series.names:
            apply_patch(series, name, repository)
        return files_of(repository)


# ---- lint, roundtrip


def lint(series: Series, wheel: Path) -> list[str]:
    """Every problem found, one line each."""
    problems = [f"{n}: twice in series" for n in sorted(set(series.names)) if series.names.count(n) > 1]
    for path in sorted(series.folder.glob("*.patch")):
        if path.name not in series.names:
            problems.append(f"{path.name}: not in series: add it there or delete it")
    with scratch_repository(read_release(wheel)[1]) as repository:
        for name in series.names:
            try:
                problems += lint_header(name, series.read(name)[0])
                changes, warnings = apply_patch(series, name, repository)
            except PatchError as e:
                return [*problems, str(e)]  # later patches build on this one
            problems += lint_diff(name, changes, warnings, repository)
    return problems


def lint_header(name: str, headers: dict[str, str]) -> Iterator[str]:
    if not re.fullmatch(r"\d{4}-[a-z0-9-]+\.patch", name):
        yield f"{name}: the name is not NNNN-topic.patch"
    for key in HEADERS:
        if not headers.get(key):
            yield f"{name}: header '{key}:' is missing or empty"
    test = headers.get("Test", "").split("::")[0]
    if test and not (ROOT / test).is_file():
        yield f"{name}: Test: {test} does not exist"


def lint_diff(name: str, changes: dict[str, int], warnings: list[str], repository: Path) -> Iterator[str]:
    """Problems of what a patch has changed in the repository."""
    if sum(changes.values()) > MAX_CHANGED:
        yield f"{name}: {sum(changes.values())} changed lines, more than {MAX_CHANGED}: cut it in two"
    for place, line in zip(warnings, warnings[1:]):
        if place.endswith(": trailing whitespace."):
            yield f"{name}: trailing white space added: {line.strip()[:60]!r}"
    for path in changes:
        if not path.startswith("openrlhf/"):
            yield f"{name}: {path} is not under openrlhf/"
        elif path.endswith(".py") and (repository / path).is_file():
            try:
                compile((repository / path).read_bytes(), path, "exec")
            except (SyntaxError, ValueError) as e:
                yield f"{name}: {path} does not compile after it: {e}"


def roundtrip(series: Series, wheel: Path) -> None:
    """Apply and revert each patch in its place, then revert all from the top."""
    with scratch_repository(read_release(wheel)[1]) as repository:
        trees = [git(repository, "write-tree")]
        for name in series.names:
            apply_patch(series, name, repository)
            after = git(repository, "write-tree")
            apply_patch(series, name, repository, "--reverse")
            if git(repository, "write-tree") != trees[-1]:
                raise PatchError(f"{name}: reverting it does not give back the tree before it")
            apply_patch(series, name, repository)
            trees.append(after)
        for name in reversed(series.names):
            apply_patch(series, name, repository, "--reverse")
        if git(repository, "write-tree") != trees[0]:
            raise PatchError("reverting the series does not give back the release byte for byte")


# ---- wheel


def build_wheel(series: Series, wheel: Path, out: str | Path) -> Path:
    """The patched wheel: new version, no `tests` package, the patches' hashes in its dist-info."""
    old, new = f"openrlhf-{series.version}", f"openrlhf-{series.local_version}"
    info = f"{new}.dist-info/"
    files = {f"{new}.data/purelib/{p}": d for p, d in patched(series, wheel).items() if p.startswith("openrlhf/")}
    with zipfile.ZipFile(wheel) as z:
        for name in z.namelist():
            if name.startswith(f"{old}.dist-info/") and not name.endswith(("/", "/RECORD")):
                files[info + name.split("/", 1)[1]] = z.read(name)
    files[info + "METADATA"] = re.sub(
        rb"(?m)^Version: .*$", f"Version: {series.local_version}".encode(), files[info + "METADATA"], count=1
    )
    files[info + "top_level.txt"] = b"openrlhf\n"
    applied = [f"{sha256(series.folder / name)} {name}\n" for name in series.names]
    files[info + "orz-series.txt"] = "".join(applied).encode()
    record = [f"{name},sha256={record_hash(data)},{len(data)}\n" for name, data in sorted(files.items())]
    files[info + "RECORD"] = "".join([*record, f"{info}RECORD,,\n"]).encode()

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    target = out / wheel.name.replace(old, new, 1)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as z:
        for name in sorted(files, key=lambda n: (n.startswith(info), n)):  # dist-info last, as PEP 427 advises
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # equal inputs, equal wheel
            entry.external_attr = 0o100644 << 16
            z.writestr(entry, files[name], zipfile.ZIP_DEFLATED)
    return target


def record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


# ---- export


def pull_request(series: Series, name: str) -> str:
    """The pull request's text of one patch: the section of README.md with its name, all four parts in order."""
    path, topic = series.folder / "README.md", name.removesuffix(".patch")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    section = re.search(rf"(?ms)^### {re.escape(topic)}\n(.*?)(?=^#|\Z)", text)
    if section is None:
        raise PatchError(f"{path}: no section '### {topic}' with the pull request's text")
    found = re.findall(r"(?m)^\*\*([^*]+)\.\*\*", section[1])
    if found != list(PARTS):
        raise PatchError(f"{path}: {name} has the parts {', '.join(found)}, not {', '.join(PARTS)}")
    return section[1].strip() + "\n"


def clone_of(folder: Path, repo: Path, tag: str, tree: dict[str, bytes]) -> None:
    """A clone of a checkout at the tag. Says so if the tag does not hold what the wheel does."""
    if not repo.is_dir():
        raise PatchError(f"--repo: there is no folder {repo}: name a clone of OpenRLHF")
    if not git(repo, "tag", "--list", tag).split():
        raise PatchError(f"--repo: {repo} has no tag {tag}: git fetch --tags, or leave --repo out")
    git(folder.parent, "clone", "--quiet", "--no-checkout", repo.resolve(), folder.name)
    git(folder, "checkout", "--quiet", "--detach", tag)
    ours = {path: data for path, data in sorted(tree.items()) if path.startswith("openrlhf/")}
    differ = [p for p, data in ours.items() if not (folder / p).is_file() or (folder / p).read_bytes() != data]
    if differ:
        print(f"{tag} and the wheel differ in {len(differ)} files under openrlhf/, first {differ[0]}", flush=True)


def export(series: Series, wheel: Path, out: Path, repo: Path | None, author: str) -> list[str]:
    """Write the branch in OUT/repository and its commits as OUT/mails. Returns lines for the reader."""
    if out.exists() and any(out.iterdir()):
        raise PatchError(f"{out} is not empty: give a new folder")
    texts = {name: f"{series.read(name)[0]['Subject']}\n\n{pull_request(series, name)}" for name in series.names}
    mails, folder, tag, tree = out / "mails", out / "repository", f"v{series.version}", read_release(wheel)[1]
    mails.mkdir(parents=True)
    if repo is None:
        make_repository(folder, tree, tag)
    else:
        clone_of(folder, repo, tag, tree)
    git(folder, "checkout", "--quiet", "-b", BRANCH, tag)
    for number, (name, text) in enumerate(texts.items(), 1):
        try:
            git(folder, *APPLY, "--index", "-", text=series.read(name)[1])
        except PatchError as error:
            raise PatchError(f"{name} does not apply to {tag}: {error}") from None
        git(folder, "commit", "--quiet", "--author", author, "--date", DATE, "--file", "-", text=text)
        prefix = f"PATCH {number}/{len(texts)}"
        words = ["--stdout", "--full-index", "--zero-commit", "--subject-prefix", prefix]  # full: for git am -3
        (mails / name).write_bytes(run_git(folder, "format-patch", "-1", *words).stdout.encode(*CODEC))
    return [
        f"{len(texts)} mails for git am in {mails}",
        f"{folder}: branch {BRANCH}, {len(texts)} commits upon {tag}"
        + (", rebuilt from the wheel" if repo is None else ""),
    ]


def main(argv: list[str] | None = None) -> int:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--patches", default=ROOT / "patches", help="folder with UPSTREAM, series and the patches")
    common.add_argument("--wheel", help="the upstream wheel (default: downloaded once into .cache/)")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, parents=[common])

    add("lint", "check headers, names, paths, size, white space, and that the result compiles")
    add("apply", "unpack the release into DIR and apply the series").add_argument("dir")
    add("roundtrip", "apply and revert each patch and the whole series; the release must come back")
    add("wheel", "build the patched wheel").add_argument("--out", default=ROOT / "build")
    one = add("export", "write the series as commits upon the release, for pull requests, into DIR")
    one.add_argument("dir", type=Path)
    one.add_argument("--repo", type=Path, help="a clone of OpenRLHF with the release's tag (default: from the wheel)")
    one.add_argument("--author", default="openrlhf_orz <orz@localhost>", help="of the commits: 'NAME <MAIL>'")
    add("try", "report what of the series applies to another release").add_argument("release", help="wheel or version")
    args = parser.parse_args(argv)
    try:
        series = Series(args.patches)
        if args.command == "try":
            lines, applies = porting.try_release(series, args.release)
            print("\n".join(lines))
            return 0 if applies else 1
        wheel = get_wheel(series, args.wheel)
        if args.command == "lint":
            problems = lint(series, wheel)
            print("\n".join(problems) or f"{len(series.names)} patches: no problems")
            return 1 if problems else 0
        if args.command == "apply":
            write_tree(patched(series, wheel), args.dir)
            print(f"openrlhf {series.local_version} in {args.dir}")
        elif args.command == "roundtrip":
            roundtrip(series, wheel)
            print(f"{len(series.names)} patches apply and revert cleanly")
        elif args.command == "export":
            print("\n".join(export(series, wheel, args.dir, args.repo, args.author)))
        else:
            print(build_wheel(series, wheel, args.out))
    except PatchError as e:
        print(f"tools/patches.py: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
