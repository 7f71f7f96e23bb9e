"""The final answer of a response: the last box in the last closed answer block.

Pure functions, linear in the length of the response: ``rfind`` finds the tags, and one pass
over the braces finds the boxes. A regular expression with lazy groups is quadratic on
unclosed tags, and policies do write those.

``response`` is always what the model wrote after the prompt. The prompt ends in ``<think>``,
and it names the tags and the box itself.
"""

from __future__ import annotations

import decimal
import math
import re
from typing import Any

OPEN, CLOSE, THINK_CLOSE = "<answer>", "</answer>", "</think>"

# A box command (also with a doubled backslash, as in escaped text), an escaped
# character, or a brace. Each alternative has bounded length, so a scan is linear. Each
# begins with a literal, so the scan skips other text at the speed of a character search:
# it holds the interpreter of an engine's process.
_TOKEN = re.compile(r"\\(?:\\?(?:boxed|fbox)(?![A-Za-z])|.)|\{|\}", re.DOTALL)
_BOX = re.compile(r"\\\\?(?:boxed|fbox)(?![A-Za-z])")
# `\boxed 5`: without braces the box command takes the next word.
_BARE = re.compile(r"\s*(\\[A-Za-z]+(?:\{[^{}]*\})*|[^\s{}$\\]+)")
_SPACE = re.compile(r"\s*")


def answer_block(response: str) -> str | None:
    """The text inside the last closed ``<answer>...</answer>``, None if there is none.

    The block runs from the last ``<answer>`` that a ``</answer>`` follows to the first
    ``</answer>`` after it. It counts at any place, before ``</think>`` too: the reward has
    no format part.
    """
    close = response.rfind(CLOSE)
    start = response.rfind(OPEN, 0, close) if close >= 0 else -1
    if start < 0:
        return None
    start += len(OPEN)
    return response[start : response.find(CLOSE, start)]


def boxes(text: str) -> list[str]:
    """Contents of the outermost balanced boxes of ``text``, in order, stripped.

    ``\\boxed{}``, ``\\fbox{}`` and the brace-less ``\\boxed 5`` count; escaped braces do
    not open or close; a box whose brace never closes is skipped, one inside it is not. A
    box that holds nothing but a box is that box; other inner boxes become plain groups.
    """
    spans: list[tuple[int, int, int]] = []  # start of the command, content's start and end
    closes: dict[int, int] = {}  # position of "{" -> position of its "}"
    opened: list[tuple[int, int]] = []  # per open brace: its position, its box's start or -1
    command, brace = -1, -1  # the last box command, and where its brace must stand
    for token in _TOKEN.finditer(text):
        start, end = token.span()
        if text[start] == "{":
            opened.append((start, command if start == brace else -1))
        elif text[start] == "}":
            if not opened:
                continue
            position, box = opened.pop()
            closes[position] = start
            if box >= 0:
                while spans and spans[-1][0] > box:
                    spans.pop()
                spans.append((box, position + 1, start))
        elif _BOX.match(text, start):
            command, brace = start, _after_space(text, end, len(text))
            word = _BARE.match(text, end) if text[brace : brace + 1] != "{" else None
            if word:
                spans.append((start, word.start(1), word.start(1) + len(word.group(1).rstrip(".,;:"))))
    return [_unwrap(text, closes, begin, end) for _, begin, end in spans]


def _after_space(text: str, position: int, end: int) -> int:
    match = _SPACE.match(text, position, end)
    return match.end() if match else position


def _unwrap(text: str, closes: dict[int, int], begin: int, end: int) -> str:
    """The content between ``begin`` and ``end``, without boxes that hold all of it."""
    while True:
        begin = _after_space(text, begin, end)
        head = _BOX.match(text, begin, end)
        brace = _after_space(text, head.end(), end) if head else -1
        close = closes.get(brace, -1)
        if not head or close < 0 or close >= end or text[close + 1 : end].strip():
            return _BOX.sub("", text[begin:end]).strip()
        begin, end = brace + 1, close


def answer_boxes(response: str) -> list[str]:
    """Contents of the outermost boxes of the answer block, in order; empty if there is no block."""
    block = answer_block(response)
    return boxes(block) if block is not None else []


def boxes_agree(contents: list[str]) -> bool:
    """Whether all boxes are equal when white space is removed."""
    return len({"".join(content.split()) for content in contents}) <= 1


def extract_answer(response: str, require_agreement: bool = False) -> str | None:
    """The answer of ``response``: the last box of its last closed answer block.

    Args:
        response: what the model wrote after the prompt.
        require_agreement: with several different boxes in the block, return None.

    Returns:
        The box's content, stripped; None without a block, without a balanced box, or
        with an empty last box. Never raises; time is linear in the response.
    """
    contents = answer_boxes(response)
    if not contents or (require_agreement and not boxes_agree(contents)):
        return None
    return contents[-1] or None


def reference_of(text: str) -> str:
    """The reference that ``text`` is, or that a worked solution ends in: its box; "" if boxes differ."""
    contents = boxes(text) if "box" in text else []
    return text if not contents else contents[-1] if boxes_agree(contents) else ""


def has_format(response: str) -> bool:
    """Whether ``response`` follows the prompt's format, as the paper's Figure 4 counts it.

    The format is: reasoning (may be empty), exactly one ``</think>``, white space, one
    ``<answer>``, an answer that is not blank, one ``</answer>``, and then nothing but white
    space or an end-of-text token such as ``<|endoftext|>``. ``<think>`` must not occur (the
    prompt opened it). A box is not required.
    """
    if any(response.count(tag) != 1 for tag in (THINK_CLOSE, OPEN, CLOSE)) or "<think>" in response:
        return False
    think, start, close = response.find(THINK_CLOSE), response.find(OPEN), response.find(CLOSE)
    if not think < start < close:
        return False
    between = response[think + len(THINK_CLOSE) : start]
    rest = response[close + len(CLOSE) :].strip()
    ended = not rest or (rest.startswith("<|") and rest.endswith("|>") and len(rest) < 40)
    return not between.strip() and bool(response[start + len(OPEN) : close].strip()) and ended


def reference_text(value: Any) -> str:
    """A reference answer, text or a number, as text: ``4``, ``4.0`` and ``"4"`` are all ``"4"``.

    Raises TypeError for anything else, ValueError for a number that is not finite or has thousands of digits.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, decimal.Decimal)):
        raise TypeError(f"a reference is text or a number, not {value!r:.80} ({type(value).__name__})")
    if not isinstance(value, int) and not math.isfinite(value):
        raise ValueError(f"a reference is text or a finite number, not {value}")
    # tables with gaps turn whole numbers into floats
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return str(int(value) if whole else value)
