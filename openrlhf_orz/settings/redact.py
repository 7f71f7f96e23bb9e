"""Keeps credentials out of everything that a run writes and prints: passwords in URLs, access tokens, secrets of the
environment. Imports nothing heavy.
"""

import os
import re
from pathlib import Path
from types import SimpleNamespace

HIDDEN = "(not shown)"
_IN_URL = re.compile(r"(?<=://)[^/\s'\"@]+(?=@)")  # https://user:password@host
_IN_QUERY = re.compile(r"(?i)(?<=[?&])((?:api[_-]?key|(?:access_|auth_)?token|secret|password|sig)=)[^&\s'\"]+")
_TOKENS = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})\b")
_NAMES = re.compile(r"(?i)(token|key|secret|password|passwd|credential)s?$")
SHORTEST = 8  # characters: hiding shorter values of the environment would hide ordinary words


class Secret(str):
    """A text whose ``repr`` hides it: OpenRLHF prints all arguments at the start."""

    def __repr__(self):
        return repr(redact(self) if redact(self) != str(self) else HIDDEN)


def environment_secrets() -> list[str]:
    """Values of this process's environment variables that are named like secrets (HF_TOKEN, WANDB_API_KEY ...)."""
    found = {value for name, value in os.environ.items() if _NAMES.search(name) and len(value) >= SHORTEST}
    return sorted((value for value in found if value[0] not in "/.~" and not value.isdigit()), key=len, reverse=True)


def redact(text: str, secrets: list[str] | None = None) -> str:
    """Replace every recognisable credential in ``text``. ``secrets``: default ``environment_secrets()``."""
    for secret in environment_secrets() if secrets is None else secrets:
        text = text.replace(secret, HIDDEN)
    text = _IN_URL.sub(HIDDEN, text)
    text = _IN_QUERY.sub(rf"\g<1>{HIDDEN}", text)
    return _TOKENS.sub(HIDDEN, text)


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
    """Copy a log file into the folder ``target``, line by line, without credentials."""
    secrets = environment_secrets()
    with open(source, errors="replace") as old, open(target / source.name, "w") as new:
        for line in old:
            new.write(redact(line, secrets))
