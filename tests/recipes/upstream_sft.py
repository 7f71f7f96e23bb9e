"""The parser of OpenRLHF's SFT trainer, which stands in its __main__ block: that source, run up to parse_args."""

import argparse
import ast
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    package = find_spec("openrlhf").submodule_search_locations[0]
    path = Path(package) / "cli/train_sft.py"
    (block,) = (
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
    )
    end = next(i for i, node in enumerate(block.body) if "parse_args" in ast.unparse(node))
    names = {"argparse": argparse, "datetime": datetime}
    exec(compile(ast.Module(block.body[:end], []), str(path), "exec"), names)
    return names["parser"]
