#!/usr/bin/env python3
"""The patch series against the pinned OpenRLHF wheel: lint, apply, roundtrip, wheel, export, try.

Standard library only (and git for export). N in the patched version 0.11.2+orz.N is the number of
patches in the series.
"""

import argparse
import base64
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import porting
import unidiff
import upstreaming
from unidiff import PatchError

ROOT = Path(__file__).resolve().parent.parent
HEADERS = ("Subject", "Why-not-a-subclass", "Upstream-status", "Drop-when", "Test")
MAX_CHANGED = 250  # a patch that a maintainer reads in one sitting


class Series:
    """patches/: the pinned release and the ordered patches."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.version, self.wheels = None, {}
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

    def _lines(self, name):
        path = self.folder / name
        if not path.is_file():
            raise PatchError(f"{path} is missing")
        lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line]

    def read(self, name):
        """(headers, diffs) of one patch."""
        path = self.folder / name
        if not path.is_file():
            raise PatchError(f"{path} is in series but not in the folder")
        head, mark, body = path.read_bytes().decode(*unidiff.CODEC).partition("\n---\n")
        if not mark:
            raise PatchError(f"{name}: no '---' line between the header and the diff")
        headers, key = {}, None
        for line in head.split("\n"):
            if line[:1].isspace() and key:  # a folded line
                headers[key] += " " + line.strip()
            elif m := re.match(r"([A-Za-z-]+):(.*)", line):
                key = m[1]
                headers[key] = m[2].strip()
            else:
                raise PatchError(f"{name}: not a header line: {line[:60]!r}")
        return headers, unidiff.parse(body, name)


def get_wheel(series, given=None):
    """The upstream wheel for this interpreter, checked against UPSTREAM."""
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
        cmd = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        cmd += ["--platform", name[:-4].split("-")[-1], "--python-version", tag[2:], "--implementation", "cp"]
        cmd += ["--dest", tmp, f"openrlhf=={series.version}"]
        run = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if not (Path(tmp) / name).is_file():
            errors = [line for line in run.stdout.splitlines() if line.startswith("ERROR")] or [run.stdout.strip()]
            raise PatchError(f"could not download {name}: check that pip reaches its index ({errors[0][:200]})")
        verified(series, Path(tmp) / name).replace(cached)
    return cached


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def verified(series, path):
    if not path.is_file():
        raise PatchError(f"{path} does not exist")
    if sha256(path) != series.wheels[path.name]:
        raise PatchError(f"{path.name}: sha256 {sha256(path)} is not the one in UPSTREAM: delete it and download anew")
    return path


def read_tree(series, wheel):
    """What the wheel installs: paths from `openrlhf/` or `tests/` on."""
    prefix = f"openrlhf-{series.version}.data/purelib/"
    with zipfile.ZipFile(wheel) as z:
        return {n[len(prefix) :]: z.read(n) for n in z.namelist() if n.startswith(prefix) and not n.endswith("/")}


def patched(series, wheel):
    tree = read_tree(series, wheel)
    for name in series.names:
        tree = unidiff.apply(tree, series.read(name)[1], name)
    return tree


def lint(series, wheel):
    """Every problem found, one line each."""
    problems = [f"{n}: twice in series" for n in sorted(set(series.names)) if series.names.count(n) > 1]
    for path in sorted(series.folder.glob("*.patch")):
        if path.name not in series.names:
            problems.append(f"{path.name}: not in series: add it there or delete it")
    tree = read_tree(series, wheel)
    for name in series.names:
        try:
            headers, diffs = series.read(name)
            problems += lint_patch(name, headers, diffs)
            tree = unidiff.apply(tree, diffs, name)
        except PatchError as e:
            return problems + [str(e)]  # later patches build on this one
        for path in {d.new_path for d in diffs if d.new_path and d.new_path.endswith(".py")}:
            try:
                compile(tree[path], path, "exec")
            except (SyntaxError, ValueError) as e:
                problems.append(f"{name}: {path} does not compile after it: {e}")
    return problems


def lint_patch(name, headers, diffs):
    if not re.fullmatch(r"\d{4}-[a-z0-9-]+\.patch", name):
        yield f"{name}: the name is not NNNN-topic.patch"
    for key in HEADERS:
        if not headers.get(key):
            yield f"{name}: header '{key}:' is missing or empty"
    test = headers.get("Test", "").split("::")[0]
    if test and not (ROOT / test).is_file():
        yield f"{name}: Test: {test} does not exist"
    changed = 0
    for diff in diffs:
        for path in {diff.old_path, diff.new_path} - {None}:
            if not path.startswith("openrlhf/") or ".." in path.split("/"):
                yield f"{name}: {path} is not under openrlhf/"
        for hunk in diff.hunks:
            changed += hunk.changed
            for line in hunk.new:
                if line not in hunk.old and line.rstrip("\n") != line.rstrip():
                    yield f"{name}: trailing white space added in {diff.path}: {line.strip()[:60]!r}"
    if changed > MAX_CHANGED:
        yield f"{name}: {changed} changed lines, more than {MAX_CHANGED}: cut it in two"


def roundtrip(series, wheel):
    """Apply and revert each patch in its place, then revert all from the top."""
    pristine = tree = read_tree(series, wheel)
    done = []
    for name in series.names:
        diffs = series.read(name)[1]
        after = unidiff.apply(tree, diffs, name)
        if unidiff.revert(after, diffs, name) != tree:
            raise PatchError(f"{name}: reverting it does not give back the tree before it")
        tree = after
        done.append((name, diffs))
    for name, diffs in reversed(done):
        tree = unidiff.revert(tree, diffs, name)
    if tree != pristine:
        raise PatchError("reverting the series does not give back the release byte for byte")


def write_tree(tree, folder):
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise PatchError(f"{folder} is not empty: give a new folder")
    for path, data in tree.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def build_wheel(series, wheel, out):
    """The patched wheel: new version, no `tests` package, what was applied in its dist-info."""
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


def record_hash(data):
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def main(argv=None):
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--patches", default=ROOT / "patches", help="folder with UPSTREAM, series and the patches")
    common.add_argument("--wheel", help="the upstream wheel (default: downloaded once into .cache/)")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    add = lambda name, text: commands.add_parser(name, help=text, parents=[common])
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
            lines, applies = porting.report(series, args.release)
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
            tree = read_tree(series, wheel)
            print("\n".join(upstreaming.export(series, tree, args.dir, args.repo, args.author)))
        else:
            print(build_wheel(series, wheel, args.out))
    except PatchError as e:
        print(f"tools/patches.py: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
