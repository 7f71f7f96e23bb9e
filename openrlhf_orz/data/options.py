"""Multiple choice: a row with ``choices`` becomes a question with lettered options, in training as in evaluation."""

from __future__ import annotations

import random
import re
import string
from typing import Any

# An option about other options: true, and with the right letters, in the row's own order alone.
_ABOUT_OTHERS = re.compile(
    r"^\W*(?:all|both|either|neither|none|no correct|not given|cannot be determined)\b"
    r"|\b(?:above|below|preceding|previous|other (?:options?|answers?|choices?))\b"
    r"|\bof (?:the|these|those)(?: \w+)? (?:options|answers|choices|statements)\b|\bof these\b"
    r"|\b[A-J]\b\)?\s*(?:,|and|or|nor|&)\s*\(?[A-J]\b",
    re.I,
)
CHOICE_REQUEST = "Answer with the letter of the right option."


class BadChoices(ValueError):
    """A row's choices cannot be asked; the message says why."""


def lettered(text: str, right: str, wrong: list[str], seed: int, name: str) -> tuple[str, str]:
    """(text, right letter) of a multiple-choice question, its options in an order drawn by ``seed`` and ``name``."""
    options = [right, *wrong]
    random.Random(f"{seed}|{name}").shuffle(options)
    return _asked(text, options, options.index(right))


def _asked(text: str, options: list[str], right: int) -> tuple[str, str]:
    lines = [f"{letter}. {option.strip()}" for letter, option in zip(string.ascii_uppercase, options)]
    return "\n".join([text.strip(), "", *lines, "", CHOICE_REQUEST]), string.ascii_uppercase[right]


def with_options(text: str, choices: Any, answer: str, seed: int, name: str) -> tuple[str, str]:
    """``lettered`` for a row's ``choices``: a list, ``{"text": [...], "label": [...]}`` or ``{"A": ..., "B": ...}``.

    Where an option speaks of others ("none of these", "A and B") they keep their order. ``answer`` is a letter or
    label, an index from 0, or an option's text. Raises BadChoices if there are not 2 to 26
    options, or if ``answer`` does not name one of them.
    """
    found, labels = _options(choices)
    if not found:
        raise BadChoices("its choices are not 2 to 26 options, each with a label")
    options = [str(choice) for choice in found]
    place = options.index(answer) if answer in options else _place(answer, labels, len(options))
    if place is None:
        raise BadChoices(f"the answer {answer!r} names none, or several, of its choices")
    if any(_ABOUT_OTHERS.search(option) for option in options):
        return _asked(text, options, place)
    return lettered(text, options[place], options[:place] + options[place + 1 :], seed, name)


def _options(choices: Any) -> tuple[list, list[str]]:
    """(options, labels), else nothing."""
    if isinstance(choices, dict):
        if isinstance(choices.get("text"), (list, tuple)):
            options = list(choices["text"])
            labels = [str(label) for label in choices.get("label") or string.ascii_uppercase]
        else:
            options, labels = list(choices.values()), [str(label) for label in choices]
    else:
        options, labels = list(choices) if isinstance(choices, (list, tuple)) else [], list(string.ascii_uppercase)
    plain = all(isinstance(option, (str, int, float)) for option in options)
    return (options, labels) if plain and 1 < len(options) <= min(len(labels), 26) else ([], [])


def _place(answer: str, labels: list[str], options: int) -> int | None:
    """The index of the one option that a label or a number from 0 names; None if there is none."""
    bare = answer.strip("(). ").upper()
    named = [place for place, label in enumerate(labels[:options]) if label.strip("(). ").upper() == bare]
    if not named and bare.isdigit() and len(bare) < 4:
        named = [int(bare)]
    return named[0] if len(named) == 1 and named[0] < options else None
