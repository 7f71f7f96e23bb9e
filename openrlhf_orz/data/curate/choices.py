"""Questions with lists in them: choices with letters, and parts (a), (b) or (1), (2).

`labelled` finds the lists; `multiple_choice_rule` and `multi_part_rule` return the name of the rule by which a
question is left out, or None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# ---- lists of labelled items

_WRAPPER = re.compile(
    r"\\(?:textbf|textit|textrm|text|mathbf|mathrm|mathit|mathsf|mbox|hbox|emph|bf|rm|it|boldsymbol|large|Large|small)"
    r"\b\s*\{?"
)
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
    "1.": re.compile(
        r"(?:(?<=^)|(?<=\n)|(?<=[.;:?。；：？]\s))(\d)\s*[.、](?=\s*[A-Za-z\u4e00-\u9fff])(?!\d)|(?<=\n)\s*(\d)\.\s+(?=\S)"
    ),
    "(i)": re.compile(r"(?<![A-Za-z0-9\\'])[(\[]?(?<![A-Za-z])(iii|ii|iv|vi|v|i)\s*[)\]](?!\s*[=+^/<>])", re.I),
}
_ROMAN = ["i", "ii", "iii", "iv", "v", "vi"]
_CIRCLED = "①②③④⑤⑥"
_STRICT = re.compile(r"(?:^|[?:.;!\n。？：；！,，)])\s*$")


@dataclass(frozen=True)
class LabelledList:
    """A list in a question: the style of its labels, the text before it, and the texts of its items."""

    style: str
    before: str
    texts: list[str]


def plain_latex(text: str) -> str:
    """The text without drawings, font commands and spacing: \\textbf{(A)}\\ 5 becomes (A) 5."""
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


def labelled(flat: str) -> list[LabelledList]:
    """The lists in a flat text: at most one of each style, two or more items, labels in order from the first on."""
    found = []
    for style, pattern in LABEL_STYLES.items():
        marks: list[re.Match] = []
        for mark in pattern.finditer(flat):
            rank = _rank(_label(mark), style)
            if rank == 0 and len(marks) < 2:
                marks = [mark]
            elif marks and rank == len(marks) and _same_case(marks[0], mark):
                marks.append(mark)
        if len(marks) < 2:
            continue
        ends = [mark.start() for mark in marks[1:]] + [len(flat)]
        texts = [flat[mark.end() : end].strip() for mark, end in zip(marks, ends)]
        found.append(LabelledList(style, flat[: marks[0].start()], texts))
    return found


def _label(mark: re.Match) -> str:
    return mark.group(mark.lastindex or 0)


def _same_case(one: re.Match, other: re.Match) -> bool:
    a, b = _label(one), _label(other)
    return not (a.isalpha() and b.isalpha()) or a.isupper() == b.isupper()


def strictly_placed(items: LabelledList) -> bool:
    """Whether the list begins after a sentence, a colon or on a new line, as choices do."""
    return bool(_STRICT.search(items.before)) or not items.before.strip()


# ---- what asks for an answer

_VERBS = (
    r"find|determine|compute|calculate|evaluate|solve|simplify|express|factor|factori[sz]e|expand|estimate|obtain"
    r"|work out|write|give|state|list|name|count|deduce|derive|sketch|draw|plot|construct|prove|show|verify|explain"
    r"|describe|justify|discuss|suppose|how|what|which|who|where|when|why|is|are|does|do|can|will|for what|in how"
    r"|hence|use|identify|graph|convert|round|complete|fill|conclude|investigate|examine|check|decide"
)
_TASK = re.compile(
    r"^\W*(?:(?:please|hence|then|now|also|next|finally|if [^.?]{1,80},|when [^.?]{1,60},|using [^.?]{1,60},"
    rf"|for (?:what|which|how)\b|at what|in what|by how|to what|from)\s*)*(?:{_VERBS})\b",
    re.I,
)
_CN_TASK = re.compile(r"求|证明|计算|写出|判断|是否|多少|什么|哪|说明|讨论|确定|化简|解方程|解不等式|画出|作出|试")
ASKS = re.compile(
    r"[?？]|\b(?:find|determine|compute|calculate|evaluate|what (?:is|are|was|value)|how (?:many|much))\b|求|计算",
    re.I,
)


def _asks(text: str) -> bool:
    """Whether an item of a list asks for something by itself."""
    return bool(_TASK.search(text)) or "?" in text or "？" in text or bool(_CN_TASK.search(text[:40]))


# ---- multiple choice

_WHICH = re.compile(
    r"\b(?:which|what)\s+(?:one\s+|ones\s+|two\s+|three\s+)?(?:of|among|from)\s+(?:the\s+|these\s+|those\s+)?"
    r"(?:(?:four|five|three|two|given|above|below|following)\s+)*"
    r"(?:following|above|below|these|those|statements?|options?|choices?|answers?|alternatives?|expressions?|equations?"
    r"|graphs?|figures?)\b"
    r"|\bwhich\s+(?:statement|option|choice|answer|alternative)s?\b(?:\s+\w+){0,3}\s+"
    r"(?:is|are|must|could|cannot|best|correct|true|false)\b"
    r"|\bwhich (?:following|listed) \w+"
    r"|\b(?:choose|select|pick|mark|circle|tick)\s+(?:only\s+)?(?:the\s+|all\s+|one\s+)?(?:\w+\s+){0,2}"
    r"(?:answers?|options?|choices?|statements?|alternatives?)\b"
    r"|\benter (?:the letters?|\"[A-Z]\" for|[A-Z] (?:for|if))"
    r"|\b(?:choose|select|pick)\s+(?:one\s+)?from\s*:"
    r"|\b(?:answer choices|the choices are|options are|choices\s*:|options\s*:|possible answers\s*:)"
    r"|\b(?:one|all|none|any|each|both|some) of the (?:following|above)\s+"
    r"(?:is|are|statements|options|must|could|equals?|can(?:not)?)\b"
    r"|\bnone of (?:the above|these)\b(?!\s+[a-z])|\ball of the above\b"
    r"|\bletters? of the (?:correct|right|true)\b",
    re.I,
)
# A look for these spares most questions the pattern above.
_MIGHT_CHOOSE = re.compile(
    r"which|of the|of these|among|choose|select|pick|mark|circle|tick|choice|option|answers ?:|enter|letter|from the"
    r"|what of|from these"
)
_CN_WHICH = re.compile(
    r"下列|下面(?:的)?(?:哪|四个|说法|结论|命题)|以下(?:哪|四个|说法|结论|命题|选项)|选项|选择题|单选|多选"
    r"|(?:正确|错误|成立|符合|不正确)的(?:是|有|选项|个数是)|哪一个选项"
)
# A gap in brackets alone is a blank to fill in, unless options follow or the answer is a letter.
_CN_GAP = re.compile(r"[(（]\s*[)）]\s*[。.]?\s*(?:$|\n|A)|的是\s*[(（]")
_LABEL_ANSWER = re.compile(r"\W*(?:\\text\s*\{)?\s*([(\[]?)\s*(iii|ii|iv|vi|v|i|\d)\s*([)\].]?)\s*\}?\W*", re.I)
_GAP_FOR_ANSWER = re.compile(r"[_(（]\s*[_)）]|\bis\b|\bare\b|\bequals?\b|=|:|为|是")
_CONDITIONS = re.compile(
    r"\b(?:such that|conditions?|properties|satisf\w+|where|rules?|facts?|given that|following holds?|if)\b"
    r"[^.?]{0,60}$",
    re.I,
)
_ONE_LETTER = re.compile(r"\W*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*\(?([A-Ja-j])\)?\s*\}?\W*")


def multiple_choice_rule(flat: str, lists: list[LabelledList], answer: str) -> str | None:
    """Multiple choice: the rule by which a question (as `plain_latex` gives it) is left out."""
    letter = _ONE_LETTER.fullmatch(answer)
    for items in lists:
        if rule := _numbered_options(items, answer):
            return rule
        upper = items.style in ("(A)", "A)", "A.", "line") and _is_upper(flat, items)
        if items.style == "line" and len(items.texts) < 3:
            continue
        if not upper and items.style not in ("(A)", "A)", "A."):
            continue
        if any(_asks(text) for text in items.texts[:-1]) or (_TASK.search(items.texts[-1]) and not upper):
            continue  # parts
        if items.style == "(A)" and not any(len(text) > 0 for text in items.texts):
            continue
        count, strict = len(items.texts), strictly_placed(items)
        if not upper and not letter and _CONDITIONS.search(items.before):
            continue
        short = all(len(text) <= 200 for text in items.texts[:-1])
        asked = letter or (strict and count >= 4) or ASKS.search(items.before) or _WHICH.search(items.before)
        if not asked and not _GAP_FOR_ANSWER.search(items.before[-60:]):
            continue
        if count >= 3 and short and (strict or items.style == "(A)" or letter):
            return f"options {items.style}"
        strictly_two = strict and (_WHICH.search(flat) or (upper and _asked_before(items)))
        if count == 2 and short and (letter or strictly_two):
            return f"two options {items.style}"
    if _MIGHT_CHOOSE.search(flat.lower()) and _WHICH.search(flat):
        return "which of these"
    if _CN_WHICH.search(flat) or (letter and _CN_GAP.search(flat)):
        return "which of these (Chinese)"
    return None


def _numbered_options(items: LabelledList, answer: str) -> str | None:
    """Options (i) to (iv) or 1. to 4.: the answer is one of the labels, and the items are short and ask nothing."""
    found = _LABEL_ANSWER.fullmatch(answer)
    if not found or items.style not in ("(i)", "(1)", "1)", "1.") or len(items.texts) < 3:
        return None
    label = found.group(2)
    if label.isdigit() == (items.style == "(i)") or not 0 <= _rank(label, items.style) < len(items.texts):
        return None
    short = all(text and len(text) <= 60 and not _asks(text) for text in items.texts)
    asked = ASKS.search(items.before) or re.search(r"(?:[:：_]|\bis|\bare|\bequals?|=)\s*$", items.before)
    return f"options {items.style}" if short and asked and label not in items.texts else None


def _is_upper(flat: str, items: LabelledList) -> bool:
    label = re.match(r"[(\[\s]*([A-Za-z])", flat[len(items.before) :])
    return label is not None and label.group(1).isupper()


def _asked_before(items: LabelledList) -> bool:
    return bool(re.search(r"[?？]\s*$|\bor\b", items.before)) and all(len(text) <= 60 for text in items.texts)


# ---- several parts

_PARTS = re.compile(r"\bpart\s*\(?(?:a|b|i|ii|1|2)\)?\s*[:.)]|\bparts?\s+\(?a\)?\s*(?:and|,)\s*\(?b\)?", re.I)
_ANSWER_PARTS = re.compile(
    r"(?:^|[\s;,$])(?:part\s*)?\(?(?:a|i|1)\)\s*.+(?:[\s;,$]|\\quad|\\\\)\s*(?:part\s*)?\(?(?:b|ii|2)\)\s*\S|①.+②",
    re.I | re.S,
)
_SECOND_TASK = re.compile(
    r"[.?!;]\s*(?:also|and|then|next|finally|in addition|furthermore|secondly),?\s*(?:please\s+)?"
    r"(?:find|determine|compute|calculate|evaluate|what (?:is|are)|how (?:many|much))\b",
    re.I,
)
_FIRST_TASK = re.compile(
    r"\b(?:find|determine|compute|calculate|evaluate|what (?:is|are|was)|how (?:many|much|long|far))\b", re.I
)
_EACH = re.compile(
    r"\b(?:find|determine|compute|calculate|evaluate|solve|simplify|factor\w*|expand|convert|write|round|express)\b"
    r"[^.?]{0,30}\b(?:each|both|all|following|these)\b[^.?]{0,40}[:.]?\s*$",
    re.I,
)
_ANSWER_LIST = re.compile(r"\s*[,;，；]\s*|\s+and\s+")
_AGAIN = re.compile(r"\s*(?:that is|in other words|i\.e\.|namely)\b", re.I)


def multi_part_rule(flat: str, lists: list[LabelledList], answer: str) -> str | None:
    """Several parts: the rule by which a question (as `plain_latex` gives it) is left out."""
    for items in lists:
        if items.style == "line":
            continue
        if sum(_is_part(text) for text in items.texts) >= 2 and not _is_letter_point(flat, items):
            return f"parts {items.style}"
        several = len(_ANSWER_LIST.split(answer)) == len(items.texts) and _EACH.search(items.before)
        if several and (items.style.startswith("(") or not _is_upper(flat, items)):
            return f"parts {items.style}"
    if _PARTS.search(flat):
        return "parts by name"
    if _ANSWER_PARTS.search(answer) and len(lists):
        return "an answer in parts"
    questions = [part for part in re.split(r"(?<=[?？])", flat) if part.rstrip().endswith(("?", "？"))]
    questions = [part for part in questions if not _AGAIN.match(part)]
    if len(questions) >= 2 and sum(bool(_FIRST_TASK.search(part)) for part in questions) >= 2:
        return "several questions"
    second = _SECOND_TASK.search(flat)
    if second and _FIRST_TASK.search(flat[: second.start() + 1]) and re.search(r"[,;，]|\band\b", answer):
        return "a second task"
    return None


def _is_part(text: str) -> bool:
    """Whether an item of a list is a task of its own: it asks, or leaves a blank behind "="."""
    return _asks(text) or bool(_FIRST_TASK.search(text) or re.search(r"=[\s_]*[;.,。；，]?\s*$", text))


def _is_letter_point(flat: str, items: LabelledList) -> bool:
    """Whether the labels are points at the ends of sentences: "through A. Find ... from B. Find ..."."""
    return items.style == "A." and _is_upper(flat, items) and not strictly_placed(items)
