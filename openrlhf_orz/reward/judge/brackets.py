"""Brackets of a span: what they enclose, whether they pair, and splits outside them."""

from __future__ import annotations

import re


def strip_group(text: str) -> str:
    """``text`` without braces or round brackets around all of it; the round brackets of a list stay."""
    while len(text) > 1 and ((text[0] == "{" and text[-1] == "}") or (text[0] == "(" and text[-1] == ")")):
        if not encloses(text) or (text[0] == "(" and len(split_top(text[1:-1], ",;")) > 1) or text[-2] == "\\":
            return text
        text = text[1:-1].strip()
    return text


_SQUARE = re.compile(r"[\[\]]")


def outward(text: str) -> str:
    """``]0,1]`` as ``(0,1]`` and ``[0,1[`` as ``[0,1)``: an outward bracket excludes its bound."""
    places = [match.start() for match in _SQUARE.finditer(text)]
    for low, high in zip(places[::2], places[1::2]):
        inside = text[low + 1 : high]
        two_bounds = [bool(part.strip()) for part in split_top(inside, ",;")] == [True, True]
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


_PAIR = re.compile(r"[()\[\],;]")
_TEXT = re.compile(r"\\text\{[^{}]*\}")


def balanced(text: str) -> bool:
    """Whether round and square brackets pair; a mixed pair such as ``[1,2)`` must hold a comma.

    Those inside ``\\text`` count together or not at all.
    """
    return _paired(_TEXT.sub(" ", text)) or "\\text" in text and _paired(text)


def _paired(text: str) -> bool:
    opened: list[list] = []
    for match in _PAIR.finditer(text):
        char = match.group()
        if char in "([":
            opened.append([char, False])
        elif char in ",;":
            if opened:
                opened[-1][1] = True
        elif not opened:
            return False
        else:
            opener, comma = opened.pop()
            if opener + char not in ("()", "[]") and not comma:
                return False
    return not opened


def split_top(text: str, separators: str | re.Pattern) -> list[str]:
    """Split at separators outside all brackets (escaped braces count) and ``\\begin``-``\\end``.

    ``separators`` is a string of single characters or a pattern tried at each position.
    """
    parts, start, depth, position = [], 0, 0, 0
    while position < len(text):
        char = text[position]
        width = 1
        if char == "\\":
            if text.startswith(("\\{", "\\begin"), position):
                depth += 1
                width = 2
            elif text.startswith(("\\}", "\\end"), position):
                depth -= 1
                width = 2
            elif depth or isinstance(separators, str):
                width = 2
        elif char in _OPENERS:
            depth += 1
        elif char in _CLOSERS:
            depth -= 1
        if depth <= 0:
            if isinstance(separators, str):
                hit = 1 if width == 1 and char in separators else 0
            else:
                found = separators.match(text, position)
                hit = len(found.group()) if found else 0
            if hit:
                parts.append(text[start:position])
                position = start = position + hit
                continue
        position += width
    parts.append(text[start:])
    return parts
