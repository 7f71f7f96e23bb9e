"""Brackets of a span: what they enclose, whether they pair, and splits outside them."""

from __future__ import annotations

import re
from collections.abc import Iterator

COMMA = re.compile("[,;]")


def strip_group(text: str) -> str:
    """``text`` without braces or round brackets around all of it; the round brackets of a list stay."""
    while len(text) > 1 and ((text[0] == "{" and text[-1] == "}") or (text[0] == "(" and text[-1] == ")")):
        if not encloses(text) or (text[0] == "(" and len(split_top(text[1:-1], COMMA)) > 1) or text[-2] == "\\":
            return text
        text = text[1:-1].strip()
    return text


_SQUARE = re.compile(r"[\[\]]")


def outward(text: str) -> str:
    """``]0,1]`` as ``(0,1]`` and ``[0,1[`` as ``[0,1)``: an outward bracket excludes its bound."""
    places = [match.start() for match in _SQUARE.finditer(text)]
    for low, high in zip(places[::2], places[1::2]):
        inside = text[low + 1 : high]
        two_bounds = [bool(part.strip()) for part in split_top(inside, COMMA)] == [True, True]
        if text[low] + text[high] != "[]" and "\\cup" not in inside and two_bounds:
            ends = {"[": "[", "]": "("}[text[low]], {"]": "]", "[": ")"}[text[high]]
            text = text[:low] + ends[0] + inside + ends[1] + text[high + 1 :]
    return text


_OPENERS, _CLOSERS = ("{", "(", "["), ("}", ")", "]")
_BRACKET = re.compile(r"\\.|[{}()\[\]]", re.DOTALL)


def closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at ``start`` (which may be ``\\{``), -1 if none does."""
    brace = next((brace for brace in ("\\{", "{") if text.startswith(brace, start)), None)
    openers, closers = ((brace,), (brace.replace("{", "}"),)) if brace else (_OPENERS, _CLOSERS)
    depth = 0
    for token in _BRACKET.finditer(text, start):
        depth += (token[0] in openers) - (token[0] in closers)
        if depth == 0 and token[0] in closers:
            return token.start()
    return -1


def encloses(text: str) -> bool:
    """Whether the bracket that ``text`` starts with is closed by its last character."""
    end = closing(text, 0)
    return end > 0 and text[end:] in ("\\}", *_CLOSERS)


TEXT = re.compile(r"\\text\{([^{}]*)\}")
_PAIR = re.compile(r"\([^()\[\]]*\)|\[[^()\[\]]*\]|[(\[][^()\[\]]*[,;][^()\[\]]*[)\]]")


def balanced(text: str) -> bool:
    """Whether brackets pair, mixed ones around a comma only (``[1,2)``); those in ``\\text`` may be left out."""
    return _paired(TEXT.sub(" ", text)) or "\\text" in text and _paired(text)


def _paired(text: str) -> bool:
    before = ""
    while text != before:
        before, text = text, _PAIR.sub("", text)
    return not re.search(r"[()\[\]]", text)


def spoken(text: str) -> str:
    """``text`` with the words of ``\\text{...}`` bare."""
    return TEXT.sub(r" \1 ", text).replace("\\ ", " ").strip()


_TOKENS = r"(?s)(?P<open>\\\{|\\begin|[({\[])|(?P<close>\\\}|\\end|[)}\]])"


def top_matches(text: str, separators: re.Pattern) -> Iterator[re.Match]:
    """The separators in ``text`` outside all brackets (escaped braces count) and ``\\begin``-``\\end``."""
    tokens, depth, position = re.compile(rf"{_TOKENS}|(?P<separator>{separators.pattern})|\\."), 0, 0
    while match := tokens.search(text, position):
        position = match.end()
        if match.lastgroup in ("open", "close"):
            depth += 1 if match.lastgroup == "open" else -1
        elif match.lastgroup and depth <= 0:
            yield match
        elif match.lastgroup:
            position = match.start() + 1 + (match[0][0] == "\\")


def split_top(text: str, separators: re.Pattern) -> list[str]:
    """``text`` in parts, split at the separators that :func:`top_matches` finds."""
    parts, start = [], 0
    for match in top_matches(text, separators):
        parts.append(text[start : match.start()])
        start = match.end()
    return [*parts, text[start:]]
