"""docs/architecture.md names files, classes and methods of the package: all of them exist."""

import ast
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "openrlhf_orz"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:\w+/)+\w+\.py(?::[\w.]+)?)`", PAGE)))


def defined(tree: ast.Module) -> set[str]:
    """Top-level functions and classes, and Class.method."""
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (child for child in node.body if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))
            names |= {f"{node.name}.{child.name}" for child in methods}
    return names


def test_the_page_names_enough():
    assert len(NAMED) > 50


@pytest.mark.parametrize("named", NAMED)
def test_it_exists(named):
    file, _, name = named.partition(":")
    path = next((base / file for base in (PACKAGE, ROOT) if (base / file).exists()), None)
    assert path is not None, f"docs/architecture.md names {file}, which is not there"
    if name:
        assert name in defined(ast.parse(path.read_text(encoding="utf-8"))), f"{file} defines no {name}"


def methods(*classes: type) -> set[str]:
    return {name for cls in classes for name, value in vars(cls).items() if inspect.isfunction(value)} - {"__init__"}


def test_each_hook_of_the_loop_is_named():
    """Methods of OpenRLHF's trainer that ours has in their place are on the page or in the docstring of its file."""
    from openrlhf.trainer.ppo_trainer import BasePPOTrainer, PPOTrainer

    from openrlhf_orz.trainer import ppo_trainer

    ours = methods(ppo_trainer.OrzTrainer, ppo_trainer.OrzPPOTrainer) & methods(BasePPOTrainer, PPOTrainer)
    text = PAGE + ppo_trainer.__doc__
    assert len(ours) >= 12 and [hook for hook in sorted(ours) if hook not in text] == []
