"""tools/mutate.py: the mutations that it makes of a source."""

import ast
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import mutate

SOURCE = '''
def f(x: int = 1) -> int:
    """λ, outside of ASCII: columns are counted in bytes. 1 + 1"""
    name = "λ" if x < 2 else f"{x + 1}"
    print(name)
    return x and not x * 3
'''


def test_each_mutation_changes_one_thing_and_is_still_python():
    found = list(mutate.mutations(SOURCE))
    changes = {(line, old, new) for line, old, new, _ in found}
    assert changes == {
        (2, "1", "2"),
        (4, "x < 2", "(x <= 2)"),
        (4, "2", "3"),
        (5, "print(name)", "pass"),
        (6, "return x and not x * 3", "return None"),
        (6, "x and not x * 3", "(x or not x * 3)"),
        (6, "not x * 3", "(x * 3)"),
        (6, "x * 3", "(x / 3)"),
        (6, "3", "4"),
    }
    for line, _, _, source in found:
        ast.parse(source)
        pairs = list(enumerate(zip(SOURCE.splitlines(), source.splitlines()), 1))
        assert [number for number, (before, after) in pairs if before != after] == [line]
