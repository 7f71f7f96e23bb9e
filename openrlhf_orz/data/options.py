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


def with_options(text: str, choices: Any, answer: str, seed: int, name: str, number: bool = False) -> tuple[str, str]:
    """``lettered`` for a row's ``choices``: a list, ``{"text": [...], "label": [...]}`` or ``{"A": ..., "B": ...}``.

    Where an option speaks of others ("none of these", "A and B") they keep their order. ``answer`` is a label of the
    row's, else a letter, an index from 0, or an option's text; ``number``: it stood there as a number, not as text,
    and among options that are text is an index. Raises BadChoices if there are not 2 to 26 options, or if ``answer``
    names none or several of them.
    """
    found, labels = _options(choices)
    if not found:
        raise BadChoices("its choices are not 2 to 26 options, each with a label")
    options = [str(choice) for choice in found]
    index = number and all(isinstance(choice, str) for choice in found)
    places = _places(answer, options, labels, index)
    if len(places) != 1:
        raise BadChoices(f"the answer {answer!r} names none, or several, of its choices: give its letter")
    (place,) = places
    if any(_ABOUT_OTHERS.search(option) for option in options):
        return _asked(text, options, place)
    return lettered(text, options[place], options[:place] + options[place + 1 :], seed, name)


def _options(choices: Any) -> tuple[list, list[str]]:
    """(options, labels of the row's own, if it has any), else nothing."""
    if isinstance(choices, dict):
        if isinstance(choices.get("text"), (list, tuple)):
            options = list(choices["text"])
            labels = [str(label) for label in choices.get("label") or ()]
        else:
            options, labels = list(choices.values()), [str(label) for label in choices]
    else:
        options, labels = list(choices) if isinstance(choices, (list, tuple)) else [], []
    plain = all(isinstance(option, (str, int, float)) for option in options)
    return (options, labels) if plain and 1 < len(options) <= min(len(labels) or 26, 26) else ([], [])


def _places(answer: str, options: list[str], labels: list[str], index: bool) -> set[int]:
    """The places of the options that ``answer`` may mean; a label of the row's own, or an ``index``, goes first."""

    def named(names: list[str]) -> set[int]:
        return {place for place, name in enumerate(names) if name.strip("(). ").upper() == bare}

    bare = answer.strip("(). ").upper()
    if own := named(labels[: len(options)]):
        return own
    at = {int(bare)} & set(range(len(options))) if bare.isdecimal() and len(bare) < 4 else set()
    if index and at:
        return at
    letters = set() if labels else named(list(string.ascii_uppercase[: len(options)]))
    return at | letters | {place for place, option in enumerate(options) if option.strip() == answer.strip()}
