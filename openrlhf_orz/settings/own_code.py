"""Code of the user's that flags name: classes as MODULE:CLASS, reward and agent files. Checked before Ray starts."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

from openrlhf_orz.settings.checks import ConfigError

IMPORT_S = 300.0  # longest import of a reward or agent file; vLLM takes half a minute on a busy machine
_IMPORT = """
import importlib.util, sys
path, name = sys.argv[1:]
spec = importlib.util.spec_from_file_location("orz_check", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
if not hasattr(module, name):
    raise SystemExit(f"it has no {name}")
"""


def load_class(flag: str, given: str | type | None) -> type | None:
    """The class that ``--orz.FLAG MODULE:CLASS`` names; a class is itself, None is None.

    MODULE is imported as Python finds it: installed, or beside the command (the current directory). Raises
    ConfigError, which names the flag, if there is no such class or its module does not import.
    """
    if given is None or isinstance(given, type):
        return given
    module, _, name = given.partition(":")
    if not module or not name.isidentifier():
        raise ConfigError(f"--orz.{flag} {given}: MODULE:CLASS is expected, as in my_code.trainer:MyTrainer")
    try:
        found = getattr(importlib.import_module(module), name)
    except AttributeError:
        raise ConfigError(f"--orz.{flag} {given}: the module {module} has no class {name}") from None
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(
            f"--orz.{flag} {given}: {module} does not import: {type(error).__name__}: {error}. Mend it, or start the"
            " command where Python finds it (PYTHONPATH)"
        ) from error
    if not isinstance(found, type):
        raise ConfigError(f"--orz.{flag} {given} is {found!r:.80}: it must be a class")
    return found


def own_class(flag: str, given: str | type | None, base: type) -> type:
    """As ``load_class``, but ``base`` for None. Raises ConfigError if the class is no subclass of ``base``."""
    found = load_class(flag, given)
    if found is None:
        return base
    if not issubclass(found, base):
        raise ConfigError(
            f"--orz.{flag} {found.__module__}:{found.__qualname__} is no subclass of {base.__module__}.{base.__name__}"
            ": inherit from it"
        )
    return found


def reward_class(given: str | type | None) -> type | None:
    """The class of ``--orz.reward_cls``. Raises ConfigError if it has no method grade, or needs arguments."""
    found = load_class("reward_cls", given)
    if found is not None and not callable(getattr(found, "grade", None)):
        raise ConfigError(f"--orz.reward_cls {found.__qualname__} has no method grade(response, label, stopped)")
    return found


def check_own_files(args: SimpleNamespace) -> None:
    """Import reward and agent file, in a process of their own, as each engine will. Raises ConfigError with the error.

    In a process of their own, so that what they do when imported is not done to this one.
    """
    url: Any = args.reward.remote_url
    url = (url[0] if isinstance(url, list) else url) or ""
    for flag, path, name in (
        ("--reward.remote_url", url, "reward_func"),
        ("--train.agent_func_path", args.train.agent_func_path or "", "AgentExecutor"),
    ):
        if not path.endswith(".py"):
            continue
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(part or os.getcwd() for part in sys.path)}
        command = [sys.executable, "-c", _IMPORT, path, name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=IMPORT_S, env=env)
        except subprocess.TimeoutExpired:
            raise ConfigError(f"{flag} {path}: its import has not ended after {IMPORT_S:g} s") from None
        if done.returncode:
            raise ConfigError(f"{flag} {path}: {_reason(done.stderr, path)}. Mend the file")


def _reason(traceback: str, path: str) -> str:
    """The error at the end of a traceback, with the last line of ``path`` that led to it."""
    lines = traceback.strip().splitlines() or ["it ended without a word"]
    places = [
        line.split(", line ")[1].split(",")[0] for line in lines if line.strip().startswith(f'File "{path}", line ')
    ]
    return (f"line {places[-1]}: " if places else "") + lines[-1]
