"""Lines for the user's terminal, also while the driver's output goes to a file."""

import os

_terminal: int | None = None


def keep() -> None:
    """Remember where standard error goes now."""
    global _terminal
    if _terminal is None:
        _terminal = os.dup(2)


def say(text: str) -> None:
    """Write a line there."""
    try:
        os.write(2 if _terminal is None else _terminal, f"[orz] {text}\n".encode(errors="replace"))
    except OSError:
        pass  # the terminal has gone
