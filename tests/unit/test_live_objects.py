"""Objects and modules of other libraries are changed at run time in one file alone: trainer/live_objects.py."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "openrlhf_orz"
ALLOWED = "trainer/live_objects.py"
# methods and the class of any object
METHODS = {"__class__", "forward", "train", "eval", "step", "backward", "generate", "__call__"}
# names under which objects of DeepSpeed, transformers and vLLM go in the package
FOREIGN = {"engine", "optimizer", "model", "module", "critic", "head", "norm", "decoder", "llm", "model_runner"}
MEANT_TO_BE_SET = {
    ("runtime/fork_server.py", "sys.argv"),  # what a script is started with
    ("runtime/fork_server.py", "multiprocessing.util.spawnv_passfds"),  # while vLLM starts: docs/architecture.md
    ("rollout/engine.py", "tempfile.tempdir"),  # documented by Python
    ("runtime/private.py", "tempfile.tempdir"),
    ("models/dropout.py", "module.p"),  # documented by torch; numbers, no methods: docs/models.md
    ("models/dropout.py", "module.?"),
    ("trainer/rank.py", "torch.utils.deterministic.fill_uninitialized_memory"),  # documented by torch
    # our own head
    ("trainer/actor.py", "head.labels"),
    ("trainer/actor.py", "head.temperature"),
    ("trainer/actor.py", "head.with_entropy"),
}


def chain(node: ast.expr) -> list[str]:
    """["a", "b", "c"] for a.b.c; calls and subscripts on the way are left out."""
    if isinstance(node, ast.Attribute):
        return [*chain(node.value), node.attr]
    if isinstance(node, (ast.Call, ast.Subscript)):
        return chain(node.func if isinstance(node, ast.Call) else node.value)
    return [node.id] if isinstance(node, ast.Name) else []


def assigned(tree: ast.AST):
    """Yield the chain of each attribute that is assigned or deleted, setattr and delattr included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
            yield chain(node)
        elif isinstance(node, ast.Call) and chain(node.func)[-1:] in (["setattr"], ["delattr"]) and node.args:
            name = node.args[1]
            yield [*chain(node.args[0]), name.value if isinstance(name, ast.Constant) else "?"]


def changes(code: str) -> set[str]:
    """Assignments in ``code`` that change a live object, class or module of another library."""
    tree = ast.parse(code)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("openrlhf_orz"):
            imported |= {alias.asname or alias.name for alias in node.names}
    return {
        ".".join(names)
        for names in assigned(tree)
        if len(names) > 1 and names[0] != "args" and "args" not in names[1:-1]
        and (names[-1] in METHODS or set(names[:-1]) & FOREIGN or names[0] in imported)
        and names[:1] + names[2:] != ["self"]  # its own attribute
    }  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        "head.__class__ = X", "module.forward = f", "engine.optimizer.check = True", "self.critic.train = f",
        "del self.critic.train", "setattr(norm, 'forward', f)", "self.engine.optimizer.step = f",
        "import vllm\nvllm.LLM.generate = f", "from vllm import LLM\nLLM.x = f", "a, model.b = 1, 2",
        "for engine.x in y: pass", "self.model.config.x = 1", "layers[0].forward = f",
    ],
)  # fmt: skip
def test_what_is_seen(code):
    assert changes(code), code


@pytest.mark.parametrize(
    "code", ["self.model = x", "self.optimizer = x", "args.critic.x = 1", "self.x.y = 1", "self.args.actor.x = 1"]
)
def test_what_is_not_meant(code):
    assert not changes(code), code


def test_in_one_file_alone():
    found = {
        (str(path.relative_to(PACKAGE)), what) for path in PACKAGE.rglob("*.py") for what in changes(path.read_text())
    }
    assert {what for file, what in found if file == ALLOWED} == {
        "engine.optimizer.check_grad_overflow",
        "engine.enable_backward_allreduce",
        "engine.optimizer.engine",
        "engine.optimizer.__class__",
    }
    assert {each for each in found if each[0] != ALLOWED} <= MEANT_TO_BE_SET
