"""A question's signature, by which questions are compared: its mathematics in order, and its words.

The mathematics (numbers, operators, commands, variables) decides whether two questions can be the same at all:
questions that differ in a number or a sign are different questions, however alike their words are.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import xxhash

from openrlhf_orz.data.curate.framing import unframed

_FONTS = (
    r"text|mbox|hbox|textbf|textrm|textit|mathrm|mathbf|mathit|mathsf|mathbb|mathcal|operatorname|emph|overline|vec"
)
_TEXT = re.compile(r"\\(?:text|mbox|hbox|textrm|textnormal)\s*\{([^{}]*)\}")
_SIZES = r"left|right|bigl?|bigr|Bigl?|Bigr|bigg|Bigg|displaystyle|textstyle|limits|nolimits|mathstrut|bf|rm|it"
# One spelling for equal mathematics. The grader's table (reward/judge/notation.py) has other targets: it keeps units,
# delimiters and commands apart that are one here. The packaged hashes of evaluation sets depend on every entry.
_PREPARE: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\[asy\](.*?)\[/asy\]", re.S), lambda m: f" asy{_drawing(m.group(1))} "),
    (re.compile(rf"\\(?:{_SIZES})(?![A-Za-z])\.?"), " "),
    (re.compile(rf"\\(?:{_FONTS})\*?(?![A-Za-z])\s*(?:\{{([^{{}}]*)\}})?"), lambda m: f" {m.group(1) or ''} "),
    (re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}(?:\{[^{}]*\})?|\\(?:qquad|quad|[,;:! ])|\\\\|[~&]"), " "),
    (re.compile(r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))"), ""),
    (re.compile(r"[_^]\s*\{\s*\}"), ""),
    (re.compile(r"\\[dtc]?frac\s*(\d)(\d)"), r" \1/\2 "),
    (re.compile(r"\\[dtc]?frac\s*\{\s*(\w+)\s*\}\s*\{\s*(\w+)\s*\}"), r" \1/\2 "),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\{\s*([A-Za-z0-9])\s*\}"), r" \1 "),
    (re.compile(r"\\leq(?:slant)?(?![A-Za-z])|≤"), r"\\le "),
    (re.compile(r"\\geq(?:slant)?(?![A-Za-z])|≥"), r"\\ge "),
    (re.compile(r"\\neq(?![A-Za-z])|≠"), r"\\ne "),
    (re.compile(r"\\(?:cdot|times|ast|bullet)(?![A-Za-z])|[×·∙]"), "*"),
    (re.compile(r"\\div(?![A-Za-z])|÷"), "/"),
    (re.compile(r"\\(?:[lc]?dots|dots[cbm])(?![A-Za-z])|…|\.{3,}"), r"\\ldots "),
    (re.compile(r"\\plus(?:\{\}|(?![A-Za-z]))"), "+"),
    (re.compile(r"\\minus(?:\{\}|(?![A-Za-z]))|[−–—]"), "-"),
    (re.compile(r"\\equal(?:\{\}|(?![A-Za-z]))"), "="),
    (re.compile("±"), r"\\pm "),
    (re.compile("√"), r"\\sqrt "),
    (re.compile("π"), r"\\pi "),
    (re.compile(r"\\circ(?![A-Za-z])|°"), " degrees "),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\\$"), " "),
]
_TOKEN = re.compile(
    r"\\[A-Za-z]+"  # a command
    r"|\d+(?:\.\d+)?|\.\d+"  # a number
    r"|[\u3400-\u9fff]"  # a Chinese sign is a word
    r"|[^\W\d_]+(?:['’][^\W\d_]+)*"  # letters
    r"|[-+*/=<>^_|!%:∈∩∪⊂∠△⊥∥∞]"  # an operator
    r"|[()\[\]{}]"
)
_SPANS = re.compile(r"(\$\$.*?\$\$|\$[^$]*\$|\\\[.*?\\\]|\\\(.*?\\\))", re.S)
_OPERATORS = frozenset("-+*/=<>^_|!%:∈∩∪⊂∠△⊥∥∞")
_UNITS = frozenset("cm mm km kg mg ml ft mi mph hr min sec in".split())
_TWO_TO_TWENTY = """
    two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty
"""
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_TWO_TO_TWENTY.split(), 2)}
_NUMBER_WORDS |= {"zero": "0", "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60"}
_NUMBER_WORDS |= {"hundred": "100", "thousand": "1000", "twice": "2"}
_SMALL_WORDS = "a an the of in on at to for and or is are be that this it as by with from"
SMALL = frozenset(_SMALL_WORDS.split())
_SAME = {"%": "percent", "percentage": "percent", "average": "mean", "kids": "children", "cent": "cents"}
_SAME |= {"perimeters": "perimeter"}
_SAME |= dict.fromkeys(("calculate", "compute", "determine", "evaluate", "obtain"), "find")
_SAME |= dict.fromkeys(("min", "least", "smallest", "minimal", "lowest"), "minimum")
_SAME |= dict.fromkeys(("max", "greatest", "largest", "biggest", "maximal", "highest"), "maximum")
# Words whose exchange makes another question, though all else is equal.
_DECIDE_WORDS = """
    minimum maximum sum product difference quotient ratio even odd positive negative nonnegative prime composite
    more less fewer increase decrease increased decreased increasing decreasing ascending descending
    median mean mode range area perimeter volume surface length width height half third quarter double triple twice
    before after first last not without never distinct identical distinguishable indistinguishable
    inclusive exclusive exactly inscribed circumscribed inradius circumradius radius diameter circumference
    incircle circumcircle horizontal vertical row column left right north south east west up down
    real complex integer integers rational irrational divisible multiple factor factors divisors remainder
    numerator denominator domain sine cosine tangent arithmetic geometric harmonic open closed parallel perpendicular
    circle square triangle rectangle pentagon hexagon octagon cube sphere cone cylinder
    above below inside outside older younger taller shorter longer larger smaller faster slower
    permutations combinations ordered unordered together each per win lose won lost
    boys girls men women mother father brother sister red blue green white black
    monday tuesday wednesday thursday friday saturday sunday january february march april may june july august
    september october november december minute hour day week month year minutes hours days weeks months years
    dollars cents
"""
DECIDE = frozenset(_DECIDE_WORDS.split())
_SIMPLE = re.compile(r"(?:[A-Za-z0-9 \n?!:;'\"()+*/=<>^_-]|,(?!\d)|\.(?!\.))*")  # nothing to respell
_BRACKETS = frozenset("()[]{}")
_DIGITS = frozenset("0123456789.")
_PLACEHOLDER = "v"


def hash64(text: str) -> int:
    return xxhash.xxh64_intdigest(text.encode("utf-8", "surrogatepass"))


@dataclass
class Signature:
    """The parts of one question. `tokens` are (kind, text): n number, o operator or command, v variable, w word."""

    tokens: list[tuple[str, str]]

    @cached_property
    def words(self) -> list[str]:
        return [text for kind, text in self.tokens if kind == "w"]

    @cached_property
    def grams(self) -> set[str]:
        """Words and pairs of neighbouring words."""
        words = [word for word in self.words if word not in SMALL] or self.words
        return {*words, *(f"{a} {b}" for a, b in zip(words, words[1:]))}

    @cached_property
    def letters(self) -> set[str]:
        """Runs of three characters of the words: typing errors leave most of them alike."""
        text = f" {' '.join(self.words)} "
        return {text[i : i + 3] for i in range(len(text) - 2)}

    @cached_property
    def maths(self) -> list[str]:
        """Numbers, operators and variables in order; variables are renamed by first appearance."""
        names: dict[str, str] = {}
        found = []
        for kind, text in self.tokens:
            if kind == "v":
                found.append(names.setdefault(text, f"{_PLACEHOLDER}{len(names)}"))
            elif kind != "w":
                found.append(text)
        return found

    @cached_property
    def chunks(self) -> list[str]:
        """Runs of mathematics between words, with the variables as they are written."""
        found, run = [], []
        for kind, text in [*self.tokens, ("w", "")]:
            if kind != "w":
                run.append(text)
            elif run:
                found.append(" ".join(run))
                run = []
        return found

    @cached_property
    def guard(self) -> int:
        """A hash that two questions must share to be duplicates: the numbers and operators, whatever their order."""
        return hash64("\0".join(sorted(text for kind, text in self.tokens if kind in "no")))

    @cached_property
    def exact(self) -> int:
        """A hash of all tokens in order."""
        return hash64(" ".join(text for _, text in self.tokens))

    @cached_property
    def deciding(self) -> Counter[str]:
        """The words of DECIDE, counted."""
        return Counter(word for word in self.words if word in DECIDE)


def _drawing(code: str) -> str:
    return xxhash.xxh32_hexdigest("".join(code.lower().split()).encode("utf-8", "surrogatepass"))


def signature(question: str) -> Signature:
    """The signature of a cleaned question."""
    text = unframed(question) if len(question) < 20_000 else question
    tokens: list[tuple[str, str]] = []
    for i, span in enumerate(_SPANS.split(text)):
        inside = i % 2 == 1
        if inside:
            edge = 1 if span[0] == "$" and span[:2] != "$$" else 2
            inside = edge == 2 or len(span) <= 40 or not _prose(span)
            span = span[edge:-edge]
        # \\text{ cm} among formulas is prose
        for j, part in enumerate(_TEXT.split(span) if inside and "\\" in span else [span]):
            if not _SIMPLE.fullmatch(part):
                for pattern, replacement in _PREPARE:
                    part = pattern.sub(replacement, part)
            _tokenise(part, inside and j % 2 == 0, tokens)
    return Signature(tokens)


def plain_tokens(text: str) -> list[str]:
    """Lower-case words, numbers, operators, commands and letters in order, whatever stands around the question.

    In a signature a letter is a word or a variable by its surroundings, and instructions are left out. Here nothing
    depends on what is before or behind, so that a question in a frame has the tokens that it has alone.
    """
    text = text.lower().replace("$", " ")
    if not _SIMPLE.fullmatch(text):
        for pattern, replacement in _PREPARE:
            text = pattern.sub(replacement, text)
    return [
        _number(token) if token[0] in _DIGITS else token for token in _TOKEN.findall(text) if token not in _BRACKETS
    ]


def _number(token: str) -> str:
    if "." in token:
        token = token.rstrip("0").rstrip(".").lstrip("0")
    return token.lstrip("0") or "0"


def _prose(span: str) -> bool:
    """Whether the text between two dollar signs is prose between two amounts of money."""
    return len(re.findall(r"(?<![\\A-Za-z{])[a-z]{3,}\s", span)) >= 4


def _tokenise(span: str, inside: bool, tokens: list[tuple[str, str]]) -> None:
    places = list(_TOKEN.finditer(span))
    found = [place.group() for place in places]
    depth = 0  # open brackets of mathematics in prose
    for i, text in enumerate(found):
        first = text[0]
        if first in _BRACKETS:
            opens = first in "([{"
            if inside or (_of_maths(found, i + 1) if opens else depth):
                depth += (1 if opens else -1) * (not inside)
                tokens.append(("o", text))
            continue
        if first.isdigit() or first == ".":
            tokens.append(("n", _number(text)))
        elif text in _OPERATORS:
            if text in "-:!|" and not inside and not _beside_maths(found, i):
                continue  # a dash or mark of punctuation
            if text == "-" and not inside and i + 1 < len(found) and found[i + 1].isalpha() and len(found[i + 1]) > 1:
                continue  # 4-foot
            tokens.append(("w", "percent") if text == "%" else ("o", text))
        elif first == "\\":
            tokens.append(("o", text))
        elif inside and text in _UNITS:
            tokens.append(("w", text))
        elif text.isascii() and len(text) <= 3 and (inside or (len(text) > 1 and text.isupper())):
            tokens.extend(("v", letter) for letter in text)
        elif len(text) == 1 and (
            _is_variable(found, i, inside) or (text == "A" and not _begins(span, places[i].start()))
        ):
            tokens.append(("v", text))
        elif len(text) >= 4 and text.isascii() and text.isupper():
            # a triangle's corners, or a word whose letters are arranged: it must be equal
            tokens.append(("o", text))
        else:
            word = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower().replace("’", "'")
            if word in _NUMBER_WORDS:
                tokens.append(("n", _NUMBER_WORDS[word]))
            else:
                tokens.append(("w", _SAME.get(word, word)))


def _is_variable(found: list[str], i: int, inside: bool) -> bool:
    """Whether a single letter is a variable: in prose "a", "A" and "I" are words."""
    text = found[i]
    return inside or (text.isascii() and text not in "aAI") or (text in "aI" and _beside_operator(found, i))


def _begins(span: str, place: int) -> bool:
    """Whether a sentence begins at this place, where "A" is the article."""
    before = span[:place].rstrip(" \"'(*")
    return not before or before[-1] in ".?!:;,\n"


def _of_maths(found: list[str], i: int) -> bool:
    text = found[i] if i < len(found) else ""
    return bool(text) and (text[0].isdigit() or text[0] in "\\-+" or (len(text) == 1 and text.isascii()))


def _beside_maths(found: list[str], i: int) -> bool:
    before, after = found[i - 1] if i else "", found[i + 1] if i + 1 < len(found) else ""
    return any(text and (text[0].isdigit() or text[0] in "\\" or len(text) == 1) for text in (before, after))


def _beside_operator(found: list[str], i: int) -> bool:
    return (i > 0 and found[i - 1] in _OPERATORS) or (i + 1 < len(found) and found[i + 1] in _OPERATORS)
