"""Recognises kinds of tidy spans: words, a choice, a time, a list, a labelled value."""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

from sympy.core.alphabets import greeks

from openrlhf_orz.reward.judge.brackets import TEXT, encloses, split_top, spoken, strip_group, top_matches
from openrlhf_orz.reward.judge.words import number_words

_WORDS = re.compile(r"[A-Za-z\u00c0-\u024f][A-Za-z\u00c0-\u024f .,'\"!?()/&;:-]*$")
_CLOCK = re.compile(
    r"(\d{1,4}) ?: ?(\d{1,4})(?: ?: ?(\d{1,4}))?\s*(?:\\text\{)?\s*([aApP])?(?:\s*\.?\s*[mM]\.?)?\s*\}?$"
    r"|(\d{1,2})\s*(?:\\text\{)?\s*([aApP])\s*\.?\s*[mM]\.?\s*\}?$"
)
_BASE = re.compile(
    r"(?:\(|\\text\{)?\s*(-?[0-9A-Za-z.]+)\s*[)}]?\s*_\s*\{?\s*\(?\s*(?:\\text\{)?\s*(\d+|[a-z]+)\s*\}?\s*\)?\s*\}?$"
)
_BASE_WORDS = {"binary": 2, "octal": 8, "hex": 16}


def words_of(text: str) -> str | None:
    """``text`` as plain words in one case and spacing, None if it is not only words.

    ``\\text{...}`` is words; three or more bare letters are a word (``xy`` is a product, ``abc`` a word).
    """
    plain = spoken(text).replace("\\&", "&")
    wrapped = "\\text{" in text
    if not _WORDS.match(plain) or (wrapped and re.search(r"(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])", TEXT.sub("", text))):
        return None
    letters = re.sub(r"[^A-Za-z\u00c0-\u024f]", "", plain)
    if not wrapped and (len(letters) < 3 or re.search(r"[()/&:]", plain) and " " not in plain):
        return None
    plain = re.sub(r"^(?:the|an?) ", "", re.sub(r"[.,'\"!?();:]", " ", plain).casefold().strip())
    return " ".join(plain.replace("-", " ").split())


_OPTION = re.compile(
    r"(?is)(?:(?:the )?(?:correct |final )?(?:option|choice|answer)(?: is)?\s*:?\s*)?(?P<open>[\[(]\s*)?"
    r"(?P<letter>(?-i:[A-Z])|[a-z](?=\s*(?:[\])]|$)))\s*(?P<close>[\])])?\s*(?P<mark>[.:,=])?\s*(?P<content>.*)$"
)
_OTHER_OPTION = re.compile(
    r"(?i)(?<![\\a-z'])[A-H](?:\s*(?:[).:,;/\]]|$)|\s+(?:is|are|and|or|too|also)\b)|(?:\b(?:and|or|not)\b|/)\s*\(?[A-H]\b|,\s*[A-H]\s*="
)
_CONTENT = re.compile(r"(?s)-?\d|[a-z]\w*\s*[=^+-]|\\(?:frac|sqrt|\$)|(?![-+*/^_=<>!\\])(?:.*[\s(\"])?[A-Za-z]{3}")


class Option(NamedTuple):
    """A multiple-choice answer: its letter, the content behind it, and whether text or brackets hold the letter."""

    letter: str
    content: str
    wrapped: bool


def option_of(text: str, marks: str = ".:", content: re.Pattern = _CONTENT) -> Option | None:
    """``(D)``, ``D. 17`` and ``\\text{Option D}``; None if ``text`` (tidy) is no option, or names several.

    ``marks`` may stand between the letter and what is behind it, which ``content`` must match.
    """
    match = _OPTION.match(re.sub(r"\\text\s*\{|[{}]", " ", text).strip())
    if not match or (match["open"] and not match["close"]) or (match["mark"] or marks[0]) not in marks:
        return None
    rest = match["content"].strip()
    if rest and (not (match["close"] or match["mark"]) or not content.match(rest) or _OTHER_OPTION.search(rest)):
        return None
    return Option(match["letter"].upper(), rest, bool(re.search(r"[a-z(\[]", text)))


def clock_of(text: str) -> tuple[tuple[int, ...], bool] | None:
    """``4:51:06 p.m.`` as (16, 51, 6) and whether it says am or pm, also for ratios; None if it is neither."""
    whole = TEXT.fullmatch(text)
    match = _CLOCK.match(whole.group(1).strip() if whole else text)
    if not match:
        return None
    hour, *rest = (int(part) for part in match.group(1, 5, 2, 3) if part is not None)
    half = (match.group(4) or match.group(6) or "").lower()
    return (hour % 12 + 12 * (half == "p") if half else hour, *(rest or (0,))), bool(half)


def base_of(text: str) -> tuple[str, int] | None:
    """The digits and base of ``1011_2``, None if it has no base."""
    match = _BASE.match(text)
    if not match or not re.search(r"\d", match.group(1)):
        return None
    base = number_words(match.group(2))
    value = int(base) if base.isdigit() and len(base) < 5 else _BASE_WORDS.get(base)
    return (match.group(1).upper(), value) if value else None


class ItemList(NamedTuple):
    """A list: its parts, its bracket ("(" and "[" ordered, "{" a set, "" bare), and its word if one ("and", "or")."""

    parts: tuple[str, ...]
    bracket: str
    joint: str = ""


_POINT = re.compile(
    r"(?s)(?:[A-Z]'*(?:_\{?\w\}?)?"
    r"|\\text\{\s*(?:[Tt]he\s+)?(?:point|vertex|cent(?:er|re)|focus|at|coordinates?|vector|ordered pair)s?"
    r"(?:\s+is)?:?\s*\})\s*(\(.*\))$"
)
_AND = r"(?:\\text\s*\{\s*(?:,\s*)?(?:and|or|y|&)\s*,?\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|\\&)"
_SEPARATOR = re.compile(rf"\s*[,;]\s*(?:{_AND})?|\s*{_AND}")
_JOINT = re.compile(r"(?<![a-zA-Z])(and|or)(?![a-zA-Z])|\\&")
_SEMICOLON = re.compile(r"\s*;\s*")
_FIGURES = re.compile(r"-?[\d./]+$")
_PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z])")


def items_of(text: str) -> ItemList | None:
    """``text`` as a list; None if it is a single thing. ``a \\pm b`` is two."""
    bracket, inside = "", text
    if text.startswith("\\{") and text.endswith("\\}") and encloses(text):
        bracket, inside = "{", text[2:-2]
    elif text[:1] in "([" and text[-1:] in ")]" and encloses(text):
        bracket, inside = text[0], text[1:-1]
    else:
        whole = TEXT.fullmatch(text)
        said = re.split(r",\s*(?:and\b)?|;|\band\b", whole[1]) if whole else []
        if len(said) > 1:
            words = (part if _FIGURES.match(part) else f"\\text{{{part}}}" for part in map(str.strip, said))
            return ItemList(tuple(words), "")
    joints = {match[1] or "and" for match in _JOINT.finditer(inside)}
    groups = split_top(inside, _SEMICOLON)
    parts = groups if len(groups) > 1 else split_top(inside, _SEPARATOR)
    parts = [strip_group(part.strip()) for part in parts]
    if bracket in ("(", "[") and text[0] + text[-1] not in ("()", "[]") and len(parts) > 2:
        bracket = text[0] + text[-1]  # no interval, and no usual tuple
    if bracket in ("", "{"):
        parts = [signed for part in parts for signed in both_signs(part)]
    if bracket == "{":
        return ItemList(tuple(part for part in parts if part), bracket)
    if len(parts) < 2:
        return None
    return ItemList(tuple(parts), bracket, joints.pop() if len(joints) == 1 and not bracket else "")


LONE_NAME = re.compile(r"\\?[a-zA-Z](?:_\{?\w\}?)?$")


def chained(text: str) -> ItemList | None:
    """``m = n = 1`` as the list ``m = 1, n = 1``."""
    if text.count("=") < 2:
        return None
    sides, signs = relations(text)
    if set(signs) != {"="} or not all(map(LONE_NAME.match, sides[:-1])) or LONE_NAME.match(sides[-1]):
        return None
    return ItemList(tuple(f"{name} = {sides[-1]}" for name in sides[:-1]), "")


_COLUMN = re.compile(r"\\begin\{[pb]matrix\}([^&]*?)\s*\\end\{[pb]matrix\}$")


def tuple_of(text: str) -> ItemList | None:
    """The coordinates of a named point, as in ``P(3,4)``, or the elements of a column vector."""
    point, match = _POINT.match(text), _COLUMN.match(text)
    if point:
        return items_of(point[1]) if encloses(point[1]) else None
    parts = [part.strip() for part in match[1].removesuffix("\\\\").split("\\\\")] if match else []
    return ItemList(tuple(parts), "(") if len(parts) > 1 and all(parts) else None


def both_signs(part: str) -> list[str]:
    """The values of an element with ``\\pm``: all choices of its signs (``\\mp`` follows the first)."""
    if "\\pm" not in part:
        part = part.replace("\\mp", "\\pm")
    count = len(_PLUS_MINUS.findall(part))
    if not 0 < count <= 3:
        return [part]
    head, *rest = _PLUS_MINUS.split(part)
    results = []
    for signs in itertools.product("+-", repeat=count):
        spelled = head + "".join(sign + piece for sign, piece in zip(signs, rest))
        results.append(re.sub(r"\\mp(?![a-zA-Z])", "-" if signs[0] == "+" else "+", spelled))
    return results


_RELATION = re.compile(r"=|<|>|\\(?:approx|equiv|leq|geq|neq|(?:not)?in|sim)(?![a-zA-Z])")


def relations(text: str) -> tuple[list[str], list[str]]:
    """The sides and the signs of a chain of relations outside brackets; one side if there is none."""
    sides, signs, start = [], [], 0
    for sign in top_matches(text, _RELATION):
        sides.append(text[start : sign.start()].strip())
        signs.append(sign[0])
        start = sign.end()
    return [*sides, text[start:].strip()], signs


_CALL = re.compile(
    r"(?s)(?:\\text\{[^{}]*\}|\\?[a-zA-Z]+)(?:_\{[^{}]*\}|_\w)?'*(?:\^\{?[(-]?[\d'n]+\)?\}?)?\s*\((.*)\)$"
)
NAME = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]")
_GREEK = {*greeks, "lambda", "ell"}


def is_label(text: str, strict: bool = False) -> bool:
    """Whether the left side of ``label = value`` only names the value.

    So do names, calls (``f(2)``), words, symbols without numbers (``A/S``), tuples of names, and, unless ``strict``,
    expressions in two symbols (``m+2n``). ``x^2`` and ``2x`` do not: an equation in one unknown is not solved for it.
    """
    text = text.strip()
    if not text:
        return True
    bare = re.sub(r"_\s*(?:\{[^{}]*\}|[0-9a-zA-Z])", "", TEXT.sub("T", text))
    call = _CALL.match(text)
    if call and not re.match(r"\(?[xyzt]\s*\(", text) and encloses(text[text.index("(") :]):
        return True
    letters = [t for t in NAME.findall(bare) if len(t) == 1 or t[1:].lower() in _GREEK]
    if not letters:
        return re.fullmatch(r"\\(?:gcd|lcm|max|min|det)", text) is not None
    if len(set(letters)) > 1 and not strict:
        return True
    computed = re.search(r"\d|\^|^-|\\(?:sqrt|log|ln)", bare)
    return not computed and (len(letters) == 1 or letters[0].isupper() or strict)


def label_key(text: str) -> str:
    """A label without spelling differences."""
    return re.sub(r"\s|\\text|[{}]", "", text)
