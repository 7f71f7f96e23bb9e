"""Imports the libraries that only curation needs, with an error that names the remedy."""

from __future__ import annotations

import importlib
from typing import Any

from openrlhf_orz.data.sources import DataError


def need(module: str, package: str, stage: str) -> Any:
    """The module, or a DataError that says which stage wants which package and how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"the stage {stage!r} needs the package {package} ({error}). Install it: bash tools/setup.sh"
        ) from error
