"""Refusals before parsing: cheap tests for what no true answer contains.

Each guard measures one thing, in linear time and without parsing. It refuses an answer whose
measure is above the limit *and* above that of the reference, so it never refuses what the
reference contains. Guards run in the caller's process: a refused answer costs no worker.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

MAX_ANSWER_CHARS = 1000
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069"
    "\ufeff\ufff9-\uffff\ud800-\udfff\U000e0000-\U0010ffff]"
)
_DIGITS = re.compile(r"\d+")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_LETTER = re.compile(r"\\(?:theta|alpha|beta|phi|lambda)(?![a-zA-Z])|(?<![\\a-zA-Z])[a-df-hj-zA-Z](?![a-zA-Z])")
_SPACES = re.compile(r"\s+")
_TOKEN = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]+|\d+")
_RUN = re.compile(r"([^\w\s{}()\[\]])(?:\s*\1){7}|(\\[a-zA-Z]+\s*)\2{7}")
_POWER = re.compile(r"\^\s*|\*\*\s*")
_SMALL_TOWER = re.compile(r"\s*-?(\d{1,3}|e|\\pi)\s*\^\s*\{?\s*(\d)\s*\}?\s*")
_FACTORIAL = re.compile(r"(\d+)\s*[}\])]*\s*!(?!=)")
_NESTED_FACTORIAL = re.compile(r"!\s*[}\])]*\s*!|(?:\^\s*\{?\s*\d+\s*\}?|!)\s*[}\])]+\s*!")
_COMBINATORIAL = re.compile(
    r"\\(?:d|t)?binom|\\Gamma|\\choose|\\Beta|\\zeta|\\gamma\s*\(|\bC\s*\(|\bP\s*\(|\\(?:sqrt)\s*\["
)
_UNEVALUATED = re.compile(
    r"\\(?:int|iint|iiint|iiiint|idotsint|oint|sum|prod|coprod|lim|limsup|liminf|bigcup|bigcap|partial|nabla)"
    r"(?![a-zA-Z])"
    r"|\\(?:operatorname\*?|text|mathrm)\s*\{\s*(?:lim|sum|prod|int)\s*\}"
    r"|\\[dt]?frac\s*\{\s*(?:\\mathrm\s*\{?)?\s*d\b|[∫∑∏∂]"
)
_MACRO = re.compile(
    r"\\(?:g?def|edef|xdef|let|futurelet|newcommand|renewcommand|providecommand|DeclareMathOperator|newenvironment"
    r"|input|include|loop|repeat|write|read|openin|openout|csname|expandafter|catcode|special|immediate"
    r"|usepackage|requirepackage|verb|lstinline|url|href)(?![a-zA-Z])"
)


def _depth(text: str) -> int:
    """The deepest nesting of brackets, or the number of bars; 99 for doubled escaped braces."""
    depth = deepest = 0
    for char in text:
        if char in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "})]":
            depth = max(0, depth - 1)
    return max(deepest, _SPACES.sub("", text).count("\\{\\{") and 99, text.count("|"))


def _longest(text: str) -> int:
    """Digits of the longest run of digits."""
    return max(map(len, _DIGITS.findall(text)), default=0)


def _exponent(text: str, start: int) -> str:
    """The argument of the power sign that ends at ``start``."""
    if start >= len(text):
        return ""
    if text[start] not in "{([":
        match = re.compile(r"-?\s*(?:\d+(?:\s*\^\s*\S+)?|\\[a-zA-Z]+|.)", re.DOTALL).match(text, start)
        return match.group() if match else ""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "{([") - (text[position] in "})]")
        if depth == 0:
            return text[start + 1 : position]
    return text[start + 1 :]


def _power(text: str) -> int:
    """Digits of the largest exponent; 99 for a numeric exponent that is itself a power or factorial."""
    largest, stacked, budget = 0, 0, 50
    numeric_text = not _LETTER.search(text)
    for sign in _POWER.finditer(text):
        budget -= 1
        if budget < 0:
            return 99
        exponent = _exponent(text, sign.end())
        digits = [len(run.lstrip("0")) for run in _DIGITS.findall(exponent)]
        numeric = not _LETTER.search(exponent)
        size = max(digits, default=0)
        if numeric and ("^" in exponent or "!" in exponent or "**" in exponent or "binom" in exponent):
            tower = _SMALL_TOWER.fullmatch(exponent)
            size = max(size, len(str(int(tower[1] if tower[1].isdigit() else 3) ** int(tower[2]))) if tower else 99)
        elif size > 1 and sum(digits) > 6 and re.search(r"\\cdot|\\times|\*|\)\s*\(", exponent):
            size = sum(digits)
        before = text[: sign.start()].rstrip()[-1:]
        if before in ("}", ")", "]") and size > 1:
            stacked += size + (size == 4 and not numeric_text)
        largest = max(largest, size, stacked)
    return largest


def _factorial(text: str) -> int:
    """The largest number under a factorial sign; a million for a factorial of a factorial or power."""
    if "!" not in text:
        return 0
    if _NESTED_FACTORIAL.search(text):
        return 10**6
    return max((int(run[:7]) if len(run) < 8 else 10**7 for run in _FACTORIAL.findall(text)), default=0)


def _combinatorial(text: str) -> int:
    """Digits of the largest number in an answer with binomials, gamma functions or odd roots."""
    if not _COMBINATORIAL.search(text):
        return 0
    return 99 if re.search(r"\d\s*\^", text) and _power(text) > 2 else _longest(text)


def _cells(text: str) -> int:
    """Column and row separators of a matrix or an array."""
    return text.count("&") + (text.count("\\\\") if "&" in text or "matrix" in text or "array" in text else 0)


class Guard(NamedTuple):
    """A guard: its name among the rules, what it measures, and the most that it lets pass."""

    name: str
    measure: Callable[[str], int]
    limit: int


GUARDS = (
    Guard("length", len, MAX_ANSWER_CHARS),
    Guard("control_characters", lambda text: len(_CONTROL.findall(text)), 0),
    Guard("repetition", lambda text: bool(_RUN.search(text)), 0),  # eight times the same sign or command
    Guard("nesting", _depth, 8),
    Guard("digits", _longest, 60),  # in one number
    Guard("all_digits", lambda text: sum(map(len, _DIGITS.findall(text))), 250),
    Guard("commands", lambda text: len(_COMMAND.findall(text)), 100),
    Guard("tokens", lambda text: len(_TOKEN.findall(text)), 150),
    Guard("macros", lambda text: len(_MACRO.findall(text)), 0),
    Guard("elements", lambda text: text.count(",") + text.count(";"), 100),
    Guard("matrix_cells", _cells, 100),
    Guard("unevaluated", lambda text: len(_UNEVALUATED.findall(text)), 0),
    Guard("power", _power, 4),  # digits of an exponent
    Guard("factorial", _factorial, 2999),  # such as the year of a competition
    Guard("combinatorial", _combinatorial, 4),  # digits of an argument
)


def refusal(gold: str, answer: str) -> str | None:
    """The name of the first guard that refuses ``answer`` where the reference is ``gold``, or None."""
    for name, measure, limit in GUARDS:
        size = measure(answer)
        if size > limit and size > measure(gold):
            return name
    return None
