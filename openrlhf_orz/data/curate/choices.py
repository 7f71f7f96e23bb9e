"""Finds lists of labelled items in a question: lettered choices, and parts (a), (b) or (1), (2)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_WRAPPER = re.compile(r"\\(?:textbf|textit|textrm|text|mathbf|mathrm|mathit|mathsf|mbox|hbox|emph|bf|rm|it"
                      r"|boldsymbol|large|Large|small)\b\s*\{?")  # fmt: skip
_DRAWING = re.compile(r"\[asy\].*?(?:\[/asy\]|$)|\\begin\{(tikzpicture|picture)\}.*?\\end\{\1\}", re.S)
_GAPS = re.compile(
    r"\\(?:qquad|quad|hspace\{[^{}]*\}|hfill|newline|par|item|\\|[ ,;!:])|[~$&*_`]|\\[()\[\]]|\{|\}|<br\s*/?>"
)
LABEL_STYLES = {
    "(A)": re.compile(r"(?<![A-Za-z0-9\\'])[(\[]\s*([A-Ja-j])\s*[)\]](?!\s*[=+^/<>])"),
    "A)": re.compile(r"(?:(?<=^)|(?<=[\s.,;:?!，。；：？]))([A-Ja-j])\s*[)\]](?=\s|\S)"),
    "A.": re.compile(r"(?:(?<=^)|(?<=[\s.,;:?!，。；：？)]))([A-Ja-j])\s*[.．、:：](?!\w\.)(?=\s*\S)"),
    "line": re.compile(r"(?<=\n)\s*([A-J])[ \t]+(?=\S)"),
    "①": re.compile(r"([①②③④⑤⑥])"),
    "(1)": re.compile(r"(?<![A-Za-z0-9\\'^_{])\(\s*(\d)\s*\)(?!\s*[=+^/<>*-])"),
    "1)": re.compile(r"(?:(?<=^)|(?<=[\s.,;:?!，。；：？]))(\d)\s*\)(?=\s|[A-Z\u4e00-\u9fff])"),
    "1.": re.compile(r"(?:(?<=^)|(?<=\n)|(?<=[.;:?。；：？]\s))(\d)\s*[.、](?=\s*[A-Za-z\u4e00-\u9fff])(?!\d)"),
    "(i)": re.compile(r"(?<![A-Za-z0-9\\'])[(\[]?(?<![A-Za-z])(iii|ii|iv|vi|v|i)\s*[)\]](?!\s*[=+^/<>])", re.I),
}
_ROMAN = ["i", "ii", "iii", "iv", "v", "vi"]
_CIRCLED = "①②③④⑤⑥"
_STRICT = re.compile(r"(?:^|[?:.;!\n。？：；！,，)])\s*$")


@dataclass(frozen=True)
class Items:
    """A list that was found: its style, the text before it, and its items' texts."""

    style: str
    before: str
    texts: list[str]


def flatten(text: str) -> str:
    """Without drawings, and LaTeX's wrappers of text and gaps as blanks: \\textbf{(A)}\\ 5 is (A) 5."""
    if "[asy]" in text or "picture}" in text:
        text = _DRAWING.sub(" ", text)
    if "\\" in text or "$" in text or "*" in text or "{" in text:
        text = _GAPS.sub(" ", _WRAPPER.sub(" ", text))
    return text


def _rank(label: str, style: str) -> int:
    if style == "①":
        return _CIRCLED.index(label)
    if style == "(i)":
        return _ROMAN.index(label.lower()) if label.lower() in _ROMAN else -9
    return int(label) - 1 if label.isdigit() else ord(label.lower()) - ord("a")


def labelled(flat: str) -> list[Items]:
    """Lists of two or more items with the labels in order, from the first label on, one a style."""
    found = []
    for style, pattern in LABEL_STYLES.items():
        marks: list[re.Match] = []
        for mark in pattern.finditer(flat):
            rank = _rank(mark.group(1), style)
            if rank == 0 and len(marks) < 2:
                marks = [mark]
            elif marks and rank == len(marks) and _same_case(marks[0], mark):
                marks.append(mark)
        if len(marks) < 2:
            continue
        ends = [mark.start() for mark in marks[1:]] + [len(flat)]
        texts = [flat[mark.end() : end].strip() for mark, end in zip(marks, ends)]
        found.append(Items(style, flat[: marks[0].start()], texts))
    return found


def _same_case(one: re.Match, other: re.Match) -> bool:
    a, b = one.group(1), other.group(1)
    return not (a.isalpha() and b.isalpha()) or a.isupper() == b.isupper()


def strictly_placed(items: Items) -> bool:
    """Whether the list begins after a sentence, a colon or on a new line, as choices do."""
    return bool(_STRICT.search(items.before)) or not items.before.strip()
