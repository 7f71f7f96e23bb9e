"""Strict unified diffs over an in-memory tree: no fuzz, no offset, reversible.

Set-up must work where neither git nor patch is installed, so this stands on the
standard library alone. A tree is a dict from path to file contents (bytes).
"""

import re
from dataclasses import dataclass

HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
CODEC = ("utf-8", "surrogateescape")  # any bytes survive the way there and back


class PatchError(Exception):
    """One line for the user: what is wrong and what to do."""


@dataclass
class Hunk:
    old_start: int
    new_start: int
    old: list  # lines with their line ends
    new: list
    changed: int = 0  # lines removed and added


@dataclass
class FileDiff:
    old_path: str | None  # None: the file is created
    new_path: str | None  # None: the file is deleted
    hunks: list

    @property
    def path(self):
        return self.new_path or self.old_path

    def reversed(self):
        hunks = [Hunk(h.new_start, h.old_start, h.new, h.old, h.changed) for h in self.hunks]
        return FileDiff(self.new_path, self.old_path, hunks)


def _path(line, prefix, where):
    name = line[4:].split("\t")[0]
    if name == "/dev/null":
        return None
    if not name.startswith(prefix):
        raise PatchError(f"{where}: '{name}' lacks the prefix {prefix}: make the diff with a/ and b/ prefixes")
    return name[2:]


def parse(text, name):
    """The FileDiffs of a unified diff; anything that is not understood is an error."""
    lines = text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    diffs, i = [], 0
    while i < len(lines):
        line, where = lines[i], f"{name}:{i + 1} of the diff"
        if line.startswith(("diff --git ", "index ", "new file mode ", "deleted file mode ")):
            i += 1
        elif line.startswith("--- ") and i + 1 < len(lines) and lines[i + 1].startswith("+++ "):
            diffs.append(FileDiff(_path(line, "a/", where), _path(lines[i + 1], "b/", where), []))
            i += 2
        elif diffs and (m := HUNK.match(line)):
            counts = [int(c) if c is not None else 1 for c in (m[2], m[4])]
            hunk, i = _read_hunk(lines, i + 1, int(m[1]), int(m[3]), counts, where)
            diffs[-1].hunks.append(hunk)
        else:
            raise PatchError(f"{where}: not a line of a unified diff: {line[:60]!r}")
    if not diffs or not all(d.hunks for d in diffs):
        raise PatchError(f"{name}: no hunks: write a unified diff after the '---' line")
    return diffs


def _read_hunk(lines, i, old_start, new_start, counts, where):
    hunk, last = Hunk(old_start, new_start, [], []), ()
    while i < len(lines):
        mark, line = lines[i][:1], lines[i][1:] + "\n"
        if mark == "\\":  # "\ No newline at end of file"
            for side in last:
                side[-1] = side[-1][:-1]
        elif [len(hunk.old), len(hunk.new)] == counts:
            break
        elif mark in (" ", "-", "+"):
            last = {" ": (hunk.old, hunk.new), "-": (hunk.old,), "+": (hunk.new,)}[mark]
            hunk.changed += mark != " "
            for side in last:
                side.append(line)
        else:
            break
        i += 1
    if [len(hunk.old), len(hunk.new)] != counts:
        raise PatchError(f"{where}: the hunk's line counts do not match its header: make the diff anew")
    return hunk, i


def _apply_hunks(source, diff, name):
    out, pos = [], 0
    for hunk in diff.hunks:
        start = hunk.old_start - 1 if hunk.old else hunk.old_start
        out += source[pos:start]
        new_start = hunk.new_start - 1 if hunk.new else hunk.new_start
        if source[start : start + len(hunk.old)] != hunk.old or start < pos or len(out) != new_start:
            raise PatchError(
                f"{name}: hunk at line {hunk.old_start} does not match {diff.path} exactly: "
                "make the diff anew against the tree with the earlier patches applied"
            )
        out += hunk.new
        pos = start + len(hunk.old)
    return out + source[pos:]


def apply(tree, diffs, name):
    """A copy of the tree with the diffs applied; the given tree is left as it is."""
    tree = dict(tree)
    for diff in diffs:
        if diff.old_path is None and diff.new_path in tree:
            raise PatchError(f"{name}: creates {diff.new_path}, which is already there")
        if diff.old_path is not None and diff.old_path not in tree:
            raise PatchError(f"{name}: changes {diff.old_path}, which is not in the release")
        text = tree.pop(diff.old_path).decode(*CODEC) if diff.old_path else ""
        out = _apply_hunks(re.findall(r"[^\n]*\n|[^\n]+", text), diff, name)
        if diff.new_path:
            tree[diff.new_path] = "".join(out).encode(*CODEC)
        elif out:
            raise PatchError(f"{name}: deletes {diff.old_path} but leaves lines of it")
    return tree


def revert(tree, diffs, name):
    return apply(tree, [d.reversed() for d in reversed(diffs)], f"{name} (reverted)")
