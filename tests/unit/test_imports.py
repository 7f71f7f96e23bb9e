"""Imports flow cli -> trainer -> rollout -> {runtime, reward, data, models, algo, settings}; most stand alone."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "openrlhf_orz"
# no OpenRLHF: they can be read, tested and used without it
ALONE = {"algo", "models", "reward", "data", "report", "plan", "runtime", "settings"}
UPSTREAM = "settings/upstream.py"  # the one file among them that knows OpenRLHF
MAY_IMPORT = {
    "algo": {"algo"},
    "models": {"models"},
    "reward": {"reward"},
    "settings": {"settings"},
    "data": {"data", "reward", "report"},
    "report": {"report", "algo"},
    "plan": {"plan", "settings"},
    "runtime": {"runtime", "settings", "report"},
    "evaluate": {"evaluate", "algo", "models", "data", "reward", "settings"},
    "rollout": {"rollout", "runtime", "settings", "reward", "models"},
    "trainer": {"trainer", "rollout", "evaluate", "runtime", "settings", "algo", "models", "reward", "data"},
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} if node.level == 0 else {"openrlhf_orz." + node.module}
    return names


FILES = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_direction(path):
    place = path.relative_to(PACKAGE)
    room = place.parts[0]
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "openrlhf":
            assert room not in ALONE or str(place) == UPSTREAM, f"{room} must not import {name}"
        if top == "openrlhf_orz" and rest:
            target = rest.split(".")[0]
            assert target != "cli" or room == "cli", f"nothing but cli imports {name}"
            assert room == "cli" or target in MAY_IMPORT[room], f"{room} must not import {name}"


def test_algo_needs_torch_alone():
    for path in (PACKAGE / "algo").glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= {
            "__future__",
            "torch",
            "numpy",
            "random",
            "math",
            "re",
            "typing",
            "collections",
            "dataclasses",
            "openrlhf_orz",
        }


def test_plans_need_nothing_but_python():
    for path in (PACKAGE / "plan").glob("*.py"):
        standard = {
            "__future__",
            "types",
            "collections",
            "copy",
            "dataclasses",
            "itertools",
            "math",
            "os",
            "re",
            "subprocess",
            "typing",
            "openrlhf_orz",
        }
        assert {name.split(".")[0] for name in imports(path)} <= standard, path
