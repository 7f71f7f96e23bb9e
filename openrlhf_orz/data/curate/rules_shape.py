"""Rules on the shape of a question: several choices, or several parts. Each returns the rule's name or None."""

from __future__ import annotations

import re

from openrlhf_orz.data.curate.choices import Items, strictly_placed

I = re.I

# ---- what asks for an answer

_VERBS = (
    r"find|determine|compute|calculate|evaluate|solve|simplify|express|factor|factori[sz]e|expand|estimate|obtain|"
    r"work out|write|give|state|list|name|count|deduce|derive|sketch|draw|plot|construct|prove|show|verify|explain|"
    r"describe|justify|discuss|suppose|how|what|which|who|where|when|why|is|are|does|do|can|will|for what|in "
    r"how|hence|"
    r"use|identify|graph|convert|round|complete|fill|conclude|investigate|examine|check|decide"
)
_TASK = re.compile(
    rf"^\W*(?:(?:please|hence|then|now|also|next|finally|if [^.?]{{1,80}},|when [^.?]{{1,60}},|using [^.?]{{1,60}},|"
    rf"for (?:what|which|how)\b|at what|in what|by how|to what|from)\s*)*(?:{_VERBS})\b", I
)  # fmt: skip
_CN_TASK = re.compile(r"求|证明|计算|写出|判断|是否|多少|什么|哪|说明|讨论|确定|化简|解方程|解不等式|画出|作出|试")
ASKS = re.compile(
    r"[?？]|\b(?:find|determine|compute|calculate|evaluate|what (?:is|are|was|value)|how (?:many|much))\b|求|计算", I
)


def _asks(text: str) -> bool:
    """Whether an item of a list is a task of its own."""
    return bool(_TASK.search(text)) or "?" in text or "？" in text or bool(_CN_TASK.search(text[:40]))


# ---- multiple choice

_WHICH = re.compile(
    r"\b(?:which|what)\s+(?:one\s+|ones\s+|two\s+|three\s+)?(?:of|among|from)\s+(?:the\s+|these\s+|those\s+)?"
    r"(?:(?:four|five|three|two|given|above|below|following)\s+)*"
    r"(?:following|above|below|these|those|statements?|options?|choices?|answers?|alternatives?|expressions?"
    r"|equations?|"
    r"graphs?|figures?)\b"
    r"|\bwhich\s+(?:statement|option|choice|answer|alternative)s?\b(?:\s+\w+){0,3}\s+(?:is|are|must|could|cannot"
    r"|best|correct|true|false)\b"
    r"|\bwhich (?:following|listed) \w+"
    r"|\b(?:choose|select|pick|mark|circle|tick)\s+(?:only\s+)?(?:the\s+|all\s+|one\s+)?(?:\w+\s+){0,2}(?:answers?"
    r"|options?|choices?|statements?|alternatives?)\b"
    r"|\benter (?:the letters?|\"[A-Z]\" for|[A-Z] (?:for|if))"
    r"|\b(?:choose|select|pick)\s+(?:one\s+)?from\s*:"
    r"|\b(?:answer choices|the choices are|options are|choices\s*:|options\s*:|possible answers\s*:)"
    r"|\b(?:one|all|none|any|each|both|some) of the (?:following|above)\s+(?:is|are|statements|options|must|could"
    r"|equals?|can(?:not)?)\b"
    r"|\bnone of (?:the above|these)\b(?!\s+[a-z])|\ball of the above\b"
    r"|\bletters? of the (?:correct|right|true)\b", I
)  # fmt: skip
_WHICH_STEMS = ("which", "of the", "of these", "among", "choose", "select", "pick", "mark", "circle", "tick",
"choice", "option",
                "answers:", "answers :", "enter", "letter", "from the", "what of", "from these")  # fmt: skip
_CN_WHICH = re.compile(
    r"下列|下面(?:的)?(?:哪|四个|说法|结论|命题)|以下(?:哪|四个|说法|结论|命题|选项)|选项|选择题|单选|多选"
    r"|(?:正确|错误|成立|符合|不正确)的(?:是|有|选项|个数是)|[(（]\s*[)）]\s*[。.]?\s*(?:$|\n|A)|哪一个选项|的是\s*[(（]"
)
_ONE_LETTER = re.compile(r"\W*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*\(?([A-Ja-j])\)?\s*\}?\W*")


def choice(flat: str, lists: list[Items], answer: str) -> str | None:
    """The rule by which a flattened question is left out."""
    letter = _ONE_LETTER.fullmatch(answer)
    for items in lists:
        upper = items.style in ("(A)", "A)", "A.", "line") and _case(flat, items)
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
        if (
            not ASKS.search(items.before)
            and not _WHICH.search(items.before)
            and not letter
            and not (strict and count >= 4)
        ):
            if not re.search(r"[_(（]\s*[_)）]|\bis\b|\bare\b|\bequals?\b|=|:|为|是", items.before[-60:]):
                continue
        if count >= 3 and short and (strict or items.style == "(A)" or letter):
            return f"options {items.style}"
        if (
            count == 2
            and short
            and (letter or (strict and _WHICH.search(flat)) or (strict and upper and _asked_before(items)))
        ):
            return f"two options {items.style}"
    if _might_choose(flat) and _WHICH.search(flat):
        return "which of these"
    if _CN_WHICH.search(flat):
        return "which of these (Chinese)"
    return None


_CONDITIONS = re.compile(
    r"\b(?:such that|conditions?|properties|satisf\w+|where|rules?|facts?|given that|following holds?"
    r"|if)\b[^.?]{0,60}$",
    I,
)


def _might_choose(flat: str) -> bool:
    lower = flat.lower()
    return any(stem in lower for stem in _WHICH_STEMS)


def _case(flat: str, items: Items) -> bool:
    label = re.match(r"[(\[\s]*([A-Za-z])", flat[len(items.before) :])
    return bool(label) and label.group(1).isupper()


def _asked_before(items: Items) -> bool:
    return bool(re.search(r"[?？]\s*$|\bor\b", items.before)) and all(len(text) <= 60 for text in items.texts)


# ---- several parts

_PARTS = re.compile(r"\bpart\s*\(?(?:a|b|i|ii|1|2)\)?\s*[:.)]|\bparts?\s+\(?a\)?\s*(?:and|,)\s*\(?b\)?", I)
_ANSWER_PARTS = re.compile(
    r"(?:^|[\s;,$])(?:part\s*)?\(?(?:a|i|1)\)\s*.+(?:[\s;,$]|\\quad|\\\\)\s*(?:part\s*)?\(?(?:b|ii"
    r"|2)\)\s*\S|①.+②", I | re.S
)  # fmt: skip
_SECOND_TASK = re.compile(
    r"[.?!;]\s*(?:also|and|then|next|finally|in addition|furthermore|secondly),?\s*(?:please\s+)?"
    r"(?:find|determine|compute|calculate|evaluate|what (?:is|are)|how (?:many|much))\b", I
)  # fmt: skip
_FIRST_TASK = re.compile(
    r"\b(?:find|determine|compute|calculate|evaluate|what (?:is|are|was)|how (?:many|much|long|far))\b", I
)


def multi_part(flat: str, lists: list[Items], answer: str) -> str | None:
    """The rule by which a flattened question is left out."""
    for items in lists:
        if items.style == "line":
            continue
        if sum(_asks(text) for text in items.texts) >= 2 and not _is_letter_point(flat, items):
            return f"parts {items.style}"
    if _PARTS.search(flat):
        return "parts by name"
    if _ANSWER_PARTS.search(answer) and len(lists):
        return "an answer in parts"
    questions = [part for part in re.split(r"(?<=[?？])", flat) if part.rstrip().endswith(("?", "？"))]
    questions = [part for part in questions if not re.match(r"\s*(?:that is|in other words|i\.e\.|namely)\b", part, I)]
    if len(questions) >= 2 and sum(bool(_FIRST_TASK.search(part)) for part in questions) >= 2:
        return "several questions"
    second = _SECOND_TASK.search(flat)
    if second and _FIRST_TASK.search(flat[: second.start() + 1]) and re.search(r"[,;，]|\band\b", answer):
        return "a second task"
    return None


def _is_letter_point(flat: str, items: Items) -> bool:
    """Sentence ends like "through A. Find B. Find" are no labels of parts."""
    return items.style == "A." and _case(flat, items) and not strictly_placed(items)
