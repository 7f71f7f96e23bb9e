"""Cleans the text of questions and answers: one spelling of characters and white space, no links and numbering.

What it does to LaTeX is little, since the kept rows are shown to the model as they are; `signature` has a spelling of
its own for comparing questions.
"""

from __future__ import annotations

import re
import unicodedata

from openrlhf_orz.data.curate.config import import_for_stage

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_UNSHOWN = re.compile("[\ufffd\ue000-\uf8ff\U000f0000-\U0010ffff]")  # replacement and private-use characters
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3\u00e2\u00e3\u00ef\u00d0\u00d1\u00e6\u00e7\u00e4\u00e5]"
    "[\u0080-\u00bf\u20ac\u201a-\u201e\u0152-\u0178\u02c6\u02dc\u2020-\u2039]"
)
# Full-width letters, digits, brackets and operators have plain twins; Chinese punctuation stays.
_WIDE = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if chr(code - 0xFEE0) not in ",.;:?!"}
_WIDE |= {
    0x3000: " ",
    0xA0: " ",
    0x2212: "-",
    0xFB00: "ff",
    0xFB01: "fi",
    0xFB02: "fl",
    0x85: "\n",
    0x2028: "\n",
    0x2029: "\n",
}
_WIDE |= dict.fromkeys(range(8192, 8203), " ") | {0x202F: " ", 0x205F: " "}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎", "0123456789+-()")

_MD_IMAGE = re.compile(r"!\[([^\]\n]{0,300})\]\(([^()\s]{0,2000})(?:\s+\"[^\"\n]{0,300}\")?\)")
_HTML_IMAGE = re.compile(r"<img\b[^<>]{0,2000}>|\[img[^\]\n]{0,200}\][^\[\n]{0,2000}\[/img\]", re.I)
_IMAGE_TAG = re.compile(r"<\s*image\s*[_-]?\d*\s*/?>|\[\s*image\s*[_-]?\d*\s*\](?!\()", re.I)
_IMAGE_ADDRESS = re.compile(
    r"(?:https?://|www\.)[^\s<>\"')\]}$]+\.(?:png|jpe?g|gif|bmp|svg|webp|tiff?)\b(?:\?[^\s<>\"')\]}$]*)?", re.I
)
_TEX_IMAGE = re.compile(r"\\includegraphics\s*(?:\[[^\]]{0,200}\])?\s*\{[^{}]{0,500}\}")
_LINK = re.compile(
    r"\[([^\]\n]{1,300})\]\((?:https?://|www\.|/)[^()\s]{0,2000}(?:\([^()\s]{0,200}\))?[^()\s]{0,500}\)"
)
_TEX_LINK = re.compile(r"\\href\s*\{[^{}]{0,2000}\}\s*\{([^{}]{0,500})\}|\\url\s*\{[^{}]{0,2000}\}")
_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"')\]}$]+")
_TAG = re.compile(r"</?(?:p|br|b|i|em|strong|span|div|center|font|sup|sub)\b[^<>]{0,200}>", re.I)
_BBCODE = re.compile(r"\[(b|i|u|hide|quote|color|size|url)(?:=[^\]\n]{0,200})?\]([^\[\]]{0,2000})\[/\1\]", re.I)
_CREDIT = re.compile(r"(?<!\s)\s*\*?(?:Proposed|Submitted|Suggested) by[^\n.]{0,80}\.?\**\s*$", re.I)

_WHICH_ONE = r"(?:(?:following|attached|given|above|accompanying|adjoining|right|left|next|corresponding)\s+)?"
_PICTURE = r"(?:figure|diagram|picture|image|illustration|drawing|sketch|photograph|chart|(?:bar|pie|line) graph)s?"
_SHOWN = r"(?:shown|pictured|drawn|depicted|illustrated|displayed)"
_PLACE = r"(?:below|above|here|(?:at|to|on)(?: the)? (?:left|right))"
_SHAPE = (
    r"(?:\w+angle|\w+gon|square|circle|rhombus|trapezoid|parallelogram|quadrilateral|cube|prism|pyramid|cylinder|cone"
    r"|sphere|solid|shape|region|grid|board|graph|function|curve|spinner|net|tiling|map|thermometer|clock|ruler"
    r"|number line|angle|line)s?"
)
# The text points to a picture. "A line in the drawing that ..." and "the figure formed by ..." do not.
_FIGURE = re.compile(
    rf"\b(?:in|from|see|refer(?:ring)? to|according to|based on|consult|look(?:ing)? at|as {_SHOWN} (?:in|on|by))\s+"
    rf"(?:the\s+)?{_WHICH_ONE}{_PICTURE}\b(?!\s+(?:of|that|which|with|whose)\b)"
    r"|\b(?:figure|fig\.|diagram)\s*\(?\d"
    rf"|\bthe\s+{_WHICH_ONE}{_PICTURE}\s+(?:\w+\s+)?(?:shows?|depicts?|illustrates?|represents?|displays?)\b"
    rf"|\b(?:{_PICTURE}|tables?|graphs?)\s+(?:{_SHOWN}\s+)?{_PLACE}"
    rf"|\b{_SHAPE}\b(?:\s+(?:of\s+)?\$[^$]{{0,60}}\$)?\s+(?:(?:is|are|as|that is)\s+)?{_SHOWN}\s+{_PLACE}"
    rf"|\b{_SHOWN} in the graph\b|\bpictured {_PLACE}"
    r"|(?:如图|见图|下图|右图|左图|图中|如右图)",
    re.I,
)
_MIGHT_SHOW = re.compile(r"!\[|<\s*im|\[\s*im|\\includegraphics|://|www\.", re.I)
_FIGURE_CODE = re.compile(
    r"\[asy\]|tikz|\\begin\{(?:array|tabular|picture|pspicture|[bpvV]?matrix)|\|[^|\n]*\|[^|\n]*\|\s*\n|```"
)

# "Problem 12.", "Question 3:", "12. ", "(7) ", "3 (20 points) ", "[2019 AIME, Problem 5]", "例3", "【例2】", "题目："
_WORD = r"(?:problem|question|exercise|example|task|puzzle|ex|q|задача|problema|aufgabe|exercice)"
_NUMBER = r"[A-Z]?-?\d{1,4}(?:[.\-]\d{1,3}){0,2}[a-z]?"
_POINTS = r"\(\s*\d{1,3}\s*(?:points?|pts?|marks?|分|балл\w*)\.?\s*\)"
_NUMBERING = re.compile(
    rf"^\s*[#*>\s]*(?:{_WORD}\s*(?:#|№|no\.?|number)?\s*{_NUMBER}\s*"
    r"(?:\([^()\n]{0,60}\)\s*)?(?:[.:)\]\-–—*]+\s*|\n\s*)"
    rf"|{_WORD}\s*:\**\s+"
    rf"|{_NUMBER}\s*\.?\s*{_POINTS}\s*|{_POINTS}\s*"
    rf"|\*\*{_NUMBER}[.)]?\*\*[.:)]?\s*"
    r"|[A-Z]?\d{1,3}(?:\.\d{1,3}){0,2}\s*[.)]\s+(?=[A-Za-z$\\(\[\u4e00-\u9fff\"“*])"
    r"|\d{1,3}\s*[、．]\s*|\d{1,3}\.(?=[A-Z\u4e00-\u9fff])"
    r"|\(\d{1,3}\)\s*(?=[A-Z\u4e00-\u9fff$\\])"
    r"|[【\[](?:例|题|问题)\s*\d*[】\]]\s*|例\s*\d+\s*[.、:：]?\s*|(?:题目|问题)\s*\d*\s*[：:]\s*"
    r"|\[(?=[^\]]*[A-Za-z]{3})[^\[\]\n]{0,40}\b(?:19|20)\d\d\b[^\[\]\n]{0,40}\]\s*"
    r"|\((?:19|20)\d\d\b[^()\n$]{0,50}\)\s*"
    r"|\d{1,3}\s*[★☆▲△]+\s*|[★☆▲△]+\s*\d{0,3}\.?\s*)",
    re.I,
)


def characters(text: str) -> str:
    """One spelling: NFC, plain signs for full-width ones, powers for raised digits, no invisible characters."""
    if text.isascii():
        return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    if _MOJIBAKE.search(text):  # bytes once read in the wrong encoding
        text = import_for_stage("ftfy", "ftfy", "clean").fix_encoding(text)
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    text = _INVISIBLE.sub("", text.translate(_WIDE))
    text = re.sub("[⁰¹²³⁴-⁹⁺⁻⁽⁾ⁿ]+", lambda found: "^{" + found.group().translate(_RAISED) + "}", text)
    return re.sub("[₀-₉₊₋₍₎]+", lambda found: "_{" + found.group().translate(_LOWERED) + "}", text)


def unshowable(text: str) -> str | None:
    """The first control, replacement or private-use character, which cannot be shown, and its place; None without."""
    found = _CONTROL.search(text) or _UNSHOWN.search(text)
    return f"U+{ord(found.group()):04X} at {found.start()}" if found else None


def spaces(text: str) -> str:
    """The text without blanks at line ends, with single blanks and at most one empty line in a row."""
    text = re.sub(r"[ \t]*\n", "\n", text)
    text = re.sub(r"(?<=\S)[ \t]{2,}", " ", text) if "  " in text or "\t" in text else text
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def images(text: str) -> tuple[str, bool]:
    """The text without images, and whether one was lost. An image whose caption is a formula becomes the formula."""
    if not _MIGHT_SHOW.search(text):
        return text, False
    lost = False

    def caption(found: re.Match) -> str:
        nonlocal lost
        alt = found.group(1).strip()
        if re.search(r"[\\$^_=]", alt):
            return alt if "$" in alt else f"${alt}$"
        lost = True
        return " "

    text = _MD_IMAGE.sub(caption, text)
    text, n_html = _HTML_IMAGE.subn(" ", text)
    text, n_tex = _TEX_IMAGE.subn(" ", text)
    text, n_tag = _IMAGE_TAG.subn(" ", text)
    return text, lost or n_html + n_tex + n_tag > 0 or bool(_IMAGE_ADDRESS.search(text))


def links(text: str) -> str:
    """The text with the words of links in place of the links, without bare addresses and mark-up of forums."""
    if "](" in text:
        text = _LINK.sub(r"\1", text)
    if "\\href" in text or "\\url" in text:
        text = _TEX_LINK.sub(lambda found: found.group(1) or "", text)
    if "://" in text or "www." in text:
        text = _URL.sub("", text)
    if "<" in text and ">" in text:
        text = _TAG.sub(" ", text)
    if "[/" in text:
        text = _BBCODE.sub(r"\2", text)
    return text


def numbering(text: str) -> str:
    """The question without its number in a collection. A number that begins a list of parts stays."""
    for _ in range(2):  # "Problem 3. (10 points)"
        found = _NUMBERING.match(text)
        if not found or found.end() >= len(text):
            return text
        label = found.group()
        part = re.search(r"\(?([1a])\s*[.)、]\s*$", label)
        if part:
            second = "2" if part.group(1) == "1" else "b"
            if re.search(rf"(?:\(|\s|^|[;；。]){second}\s*[.)、]", text[found.end() :]):
                return text
        text = text[found.end() :].lstrip()
    return text


def figure_missing(text: str) -> bool:
    """Whether the question points to a figure that is not there, neither drawn by code nor as a table."""
    return bool(_FIGURE.search(text)) and not _FIGURE_CODE.search(text)


def clean_question(text: str) -> tuple[str, bool]:
    """The cleaned question, and whether an image was lost."""
    text, lost = images(characters(text))
    text = spaces(links(text))
    if "ed by" in text[-120:]:
        text = _CREDIT.sub("", text)
    return spaces(numbering(text)), lost


def clean_answer(text: str) -> str:
    """The answer alone: no dollar signs, box or introduction around it."""
    text = spaces(characters(text))
    text = re.sub(r"^(?:the\s+)?(?:final\s+)?(?:answer|ans|答案|解)\s*(?:is)?\s*[:：]\s*", "", text, flags=re.I)
    for _ in range(3):
        bare = text.strip()
        in_dollars = len(bare) > 1 and bare[0] == bare[-1] == "$" and bare.count("$") in (2, 4)
        if in_dollars and "$" not in bare.strip("$"):
            bare = bare.strip("$")
        found = re.fullmatch(r"\\(?:boxed|fbox)\s*\{(.*)\}|\\[\[(](.*)\\[\])]", bare, re.S)
        if found and "boxed" not in (found.group(1) or "")[:-1]:
            inner = found.group(1) if found.group(1) is not None else found.group(2)
            bare = inner if _balanced(inner) else bare
        if bare == text:
            break
        text = bare
    return text.strip()


def _balanced(text: str) -> bool:
    depth = 0
    for sign in re.sub(r"\\.", "", text):
        depth += (sign == "{") - (sign == "}")
        if depth < 0:
            return False
    return depth == 0
