"""Mutation testing: changes one expression at a time in a scratch copy and runs the tests that should notice.

    python tools/mutate.py openrlhf_orz/evaluate/statistics.py tests/unit/evaluate [--sample 30] [--seed 0]
        [--preload openrlhf.trainer.ppo_trainer]

Prints a line for each mutation: killed (a test failed or hung), or SURVIVED: no test noticed. A survivor is a missing
test, or a change without any effect (an equivalent mutation). Exit status 0: none survived, 1: some did, 2: the tests
fail without any mutation. Nothing in the working tree is changed.
"""

import argparse
import ast
import importlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "runs", "build", "__pycache__", ".*_cache")
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
}  # fmt: skip


def changed(node: Any) -> Iterator[ast.AST]:
    """The mutations of one node, each as the node in its place."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield ast.Compare(node.left, [SWAPS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(SWAPS[type(node.op)](), node.values)
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        yield ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Return) and ast.unparse(node) not in ("return", "return None"):
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, (ast.IfExp, ast.If)) and not isinstance(node.test, (ast.Compare, ast.UnaryOp)):
        yield ast.UnaryOp(ast.Not(), node.test)


def mutations(source: str) -> Iterator[tuple[int, str, str, str]]:
    """(line, old text, new text, whole source) of every mutation outside of annotations and f-strings."""
    text, tree = source.encode(), ast.parse(source)
    starts = list(accumulate((len(line) for line in text.splitlines(keepends=True)), initial=0))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        inside = [getattr(node, name, None) for name in ("annotation", "returns")]
        inside.append(node if isinstance(node, ast.JoinedStr) else None)
        skipped.update(part for one in inside if one for part in ast.walk(one))
    for node in ast.walk(tree):
        for new in changed(node) if node not in skipped else ():
            place: Any = node.test if isinstance(node, (ast.If, ast.IfExp)) else node
            start = starts[place.lineno - 1] + place.col_offset
            end = starts[place.end_lineno - 1] + place.end_col_offset
            written = ast.unparse(ast.fix_missing_locations(new))
            if isinstance(new, ast.expr) and not isinstance(new, ast.Constant):
                written = f"({written})"
            mutated = (text[:start] + written.encode() + text[end:]).decode()
            yield place.lineno, text[start:end].decode(), written, mutated


def run_tests(folder: Path, tests: list[str]) -> None:
    """Ends this process, a fork of the tool's, with pytest's exit status for the copy in ``folder``."""
    os.setsid()
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.path[:0] = paths = [str(folder), str(folder / "examples")]
    os.environ.update(PYTHONPATH=os.pathsep.join(paths), PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    import pytest

    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def passes(folder: Path, tests: list[str], limit_s: float | None = None) -> bool:
    """Whether the tests pass in the copy within the time."""
    run = multiprocessing.get_context("fork").Process(target=run_tests, args=(folder, tests))
    run.start()
    run.join(limit_s)
    if run.is_alive() and run.pid:
        os.killpg(run.pid, signal.SIGKILL)
        run.join()
    return run.exitcode == 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the module, relative to the root")
    parser.add_argument("tests", nargs="+", help="as for pytest")
    parser.add_argument("--sample", type=int, default=30, help="at most so many mutations, drawn by --seed; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preload", nargs="*", default=[], help="libraries to import once instead of in each run")
    options = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of torch's would not survive the fork
    for library in options.preload:
        importlib.import_module(library)
    found = list(mutations((ROOT / options.file).read_text()))
    if options.sample:
        found = random.Random(options.seed).sample(found, min(options.sample, len(found)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT, folder, ignore=NOT_COPIED, dirs_exist_ok=True)
        began = time.monotonic()
        if not passes(folder, options.tests):
            print("the tests fail without any mutation", file=sys.stderr)
            return 2
        limit_s = 30 + 3 * (time.monotonic() - began)
        survivors = 0
        for line, old, new, source in sorted(found):
            (folder / options.file).write_text(source)
            alive = passes(folder, options.tests, limit_s)
            survivors += alive
            words = "SURVIVED" if alive else "killed  "
            print(f"{words} {options.file}:{line}: {' '.join(old.split())} -> {' '.join(new.split())}", flush=True)
    print(f"{len(found) - survivors} of {len(found)} mutations killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
