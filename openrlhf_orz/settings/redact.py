"""Keeps credentials out of everything that a run writes and prints: passwords in URLs, access tokens, secrets of the
environment. Imports nothing heavy.
"""

import json
import os
import re
import stat
from pathlib import Path
from types import SimpleNamespace

HIDDEN = "(not shown)"
# https://user:password@host: where no port follows the colon up to the last @, as a password may hold a slash; else up
# to the last @ before the first slash
_IN_URL = re.compile(
    r"(?<=://)(?:[^/\s:'\"@]{0,300}:(?!\d+(?:[/,?#\s]|$))[^\s,'\"]{1,300}(?=@)|[^/\s'\"]{1,300}(?=@))"
)
_IN_QUERY = re.compile(r"(?i)(?<=[?&])((?:api[_-]?key|(?:access_|auth_)?token|secret|password|sig)=)[^&\s'\"]+")
_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|xox[a-z]-[\w-]{10,}|wandb_v1_\w{16,})\b"
)
_NAMES = re.compile(r"(?i)(token|key|secret|password|passwd|credential)s?$")
SHORTEST = 8  # characters: hiding shorter values of the environment would hide ordinary words


class Secret(str):
    """A text whose ``repr`` hides it: OpenRLHF prints all arguments at the start."""

    def __repr__(self):
        return repr(redact(self) if redact(self) != str(self) else HIDDEN)


def environment_secrets() -> list[str]:
    """Values of this process's environment variables that are named like secrets (HF_TOKEN, WANDB_API_KEY ...).

    As they are, and as JSON and Python write them. A path to a file that is there is no secret.
    """
    found = set()
    for name, value in os.environ.items():
        if _NAMES.search(name) and not os.path.exists(os.path.expanduser(value)):
            for part in (value, *value.splitlines()):  # logs are read line by line
                if len(part) >= SHORTEST:
                    found |= {part, json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1]}
                    found.add(repr(part)[1:-1])
    return sorted(found, key=len, reverse=True)


def redact(text: str, secrets: list[str] | None = None) -> str:
    """Replace every recognisable credential in ``text``. ``secrets``: default ``environment_secrets()``."""
    for secret in environment_secrets() if secrets is None else secrets:
        text = text.replace(secret, HIDDEN)
    text = _IN_URL.sub(HIDDEN, text)
    text = _IN_QUERY.sub(rf"\g<1>{HIDDEN}", text)
    return _TOKENS.sub(HIDDEN, text)


def printable(text: str) -> str:
    """``text`` with control characters as escapes: names and keys of files could otherwise steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def hide(args: SimpleNamespace) -> None:
    """Make a ``Secret`` of each text in the nested arguments that holds a credential, and of the W&B key."""
    secrets = environment_secrets()

    def hidden(value):
        if isinstance(value, SimpleNamespace):
            for name, inner in vars(value).items():
                setattr(value, name, hidden(inner))
        elif isinstance(value, (list, tuple)):
            return type(value)(map(hidden, value))
        elif isinstance(value, str) and redact(value, secrets) != value:
            return Secret(value)
        return value

    hidden(args)
    if args.logger.wandb.key:
        args.logger.wandb.key = Secret(args.logger.wandb.key)


def copy_redacted(source: Path, target: Path) -> None:
    """Copy a log file into the folder ``target``, line by line, without credentials.

    What is empty, or is no file of this user's own (a link or a pipe in a folder that others can write to), is not.
    """
    secrets = environment_secrets()
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    with open(handle, errors="replace") as old:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or not found.st_size:
            return
        with open(target / source.name, "w") as new:
            for line in old:
                new.write(redact(line, secrets))
