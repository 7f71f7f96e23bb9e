"""Imports flow cli -> trainer -> {rollout, reward, data, models, algo, config, compat}; the leaves stand alone."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "openrlhf_orz"
ALONE = {"algo", "models", "reward", "data", "report", "text_stats"}  # no OpenRLHF, no compat, only each other
MAY_IMPORT = {
    "rollout": ALONE | {"config", "defaults", "compat", "rollout"},
    "trainer": ALONE
    | {"config", "skip_plan", "checkpoints", "resume", "redact", "peak_memory", "compat", "rollout", "evaluate"}
    | {"trainer"},
    "config": {"flag_checks", "skip_plan"},
    "defaults": set(),
    "flag_checks": {"redact"},
    "model_check": {"config"},
    "skip_plan": set(),
    "plan": {"plan", "skip_plan"},  # pure: no torch either
    "redact": set(),
    "peak_memory": set(),
    "checkpoints": set(),
    "resume": {"checkpoints", "config", "redact"},
    "compat": {"compat"},
    **{name: {name} for name in ALONE},
    "data": {"data", "reward"},
    "report": {"report", "text_stats"},
    "miniature": {"miniature", "data", "report"},  # the training command runs in processes of its own
    "evaluate": ALONE | {"config", "evaluate"},
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
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "openrlhf":
            stand_alone = ALONE | {"config", "defaults", "flag_checks", "model_check", "plan", "redact", "skip_plan"}
            assert layer not in stand_alone, f"{layer} must not import {name}"
        if top == "openrlhf_orz" and rest:
            target = rest.split(".")[0]
            assert target != "cli" or layer == "cli", f"nothing but cli imports {name}"
            assert layer == "cli" or target in MAY_IMPORT[layer], f"{layer} must not import {name}"


def test_algo_needs_torch_alone():
    for path in (PACKAGE / "algo").glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= {"torch", "random", "math", "typing", "openrlhf_orz"}


def test_plans_need_nothing_but_python():
    for path in (PACKAGE / "plan").glob("*.py"):
        standard = {"__future__", "copy", "dataclasses", "math", "os", "re", "typing", "openrlhf_orz"}
        assert {name.split(".")[0] for name in imports(path)} <= standard, path
