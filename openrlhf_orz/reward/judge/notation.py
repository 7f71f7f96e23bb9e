"""Rewrites a span into a small dialect of LaTeX without changing what it says, before it is compared.

Delimiters, sizing commands and thousands separators go, Unicode and plain text become commands, and wrappers of
text ``\\text{...}``. All patterns are linear.
"""

from __future__ import annotations

import html
import re
import unicodedata
from decimal import Decimal
from typing import Any

from openrlhf_orz.reward.judge.brackets import closing, outward, strip_group
from openrlhf_orz.reward.judge.markup import ROWS, called, plain_rows, unstyled
from openrlhf_orz.reward.judge.words import LABEL, number_words, without_label

_CHARACTERS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "－": "-",
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ", "∗": "*",
    "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "º": r"^\circ ", "±": r"\pm ", "∓": r"\mp ",
    "≤": r"\leq ", "≥": r"\geq ", "⩽": r"\leq ", "⩾": r"\geq ", "≠": r"\neq ", "≈": r"\approx ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "√": r"\sqrt ", "θ": r"\theta ",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "μ": r"\mu ", "φ": r"\phi ",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅕": r"\frac{1}{5}", "⅛": r"\frac{1}{8}", "⟨": "(", "⟩": ")", "…": r"\ldots ", "′": "'", "∖": r"\setminus ",
    "“": '"', "”": '"', "’": "'", "‘": "'", "∶": ":", "：": ":", "△": r"\triangle ", "∠": r"\angle ",
    "∧": r"\land ", "∨": r"\lor ", "¬": r"\neg ", "∀": r"\forall ", "→": r"\to ", "⇒": r"\Rightarrow ",
    "≡": r"\equiv ", "∴": r"\therefore ", "Δ": r"\Delta ", "∛": r"\sqrt[3]", "■": r"\blacksquare ", "□": r"\square ",
    "✓": r"\checkmark ",
}  # fmt: skip
_CHARACTER = re.compile("|".join(map(re.escape, _CHARACTERS)))
_SCRIPT = re.compile("([⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+)|([₀₁₂₃₄₅₆₇₈₉₋₊ₙ]+)")

# One name for each command: those on the right become the one on the left.
_SYNONYMS = {
    name: target
    for target, names in {
        " ": "displaystyle textstyle scriptstyle limits nolimits rm bf it sf tiny small normalsize large Large LARGE "
        "huge Huge quad qquad thinspace enspace hfill",
        "": "left right mleft mright big bigl bigr bigm Big Bigl Bigr Bigm bigg biggl biggr biggm Bigg Biggl "
        "Biggr Biggm",
        r"\frac": "dfrac tfrac cfrac", r"\binom": "dbinom tbinom", r"\{": "lbrace", r"\}": "rbrace", "[": "lbrack",
        "]": "rbrack", "|": "vert lvert rvert mid", "(": "langle", ")": "rangle", ":": "colon", "<": "lt", ">": "gt",
        r"\leq ": "leqslant leqq le", r"\geq ": "geqslant geqq ge", r"\neq ": "ne", r"\phi ": "varphi",
        r"\approx ": "simeq cong thickapprox doteq", r"\emptyset ": "varnothing", r"\setminus ": "backslash",
        r"\ldots ": "dots cdots dotsc dotsb", r"\infty ": "infin", r"\text{ and }": "land wedge",
        r"\text{ or }": "lor vee", r"\text{ not }": "neg lnot",
        r"\text{ iff }": "iff Leftrightarrow leftrightarrow", r"^\circ ": "degree degrees textdegree",
        r"\to ": "rightarrow longrightarrow implies Rightarrow Longrightarrow",
    }.items()
    for name in names.split()
}  # fmt: skip
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_SCALES = {"dozen": "12", "hundred": "10^{2}", "thousand": "10^{3}", "million": "10^{6}", "billion": "10^{9}",
           "trillion": "10^{12}"}  # fmt: skip
_REWRITES: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\m?(?:left|right)\s*\.|\\(?:math(?:bf|rm|it|sf)|boldsymbol|bm)(?=\s*\d|\s+[a-zA-Z])", ""),
        (r"(?<![\\a-zA-Z])(?:math|np|numpy)\.log(?=\s*\([^,()]*\))", r"\\ln "),
        (r"(?<![\\a-zA-Z])(?:math|np|numpy)\.(?=[a-z\\])", ""),
        (r"(?<![\\a-zA-Z])log(2|10)\s*(?=\()", r"\\log_{\1}"),
        (r"(\d)(?:\{,\}|,\s*\\!|\\!,|,\\,|\\,|\\;|\\ |~|\\thinspace )\s*(?=\d{3}(?!\d))", r"\1"),
        (r"(?<=\d)\{([.:])\}(?=\d)", r"\1"),
        (r"(?<=[\d.])\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?(?!\d)", r"\\overline{\1\2\3}"),
        (r"\\(?:phantom|hphantom|vphantom)\s*(?:\{[^{}]*\}|[^{\s])", ""),
        (r"\{\s*([^{}]+?)\s*\\choose(?![a-zA-Z])\s*([^{}]+?)\s*\}", r"\\binom{\1}{\2}"),
        (r"\\pi\s*\((?![^()]*\\in(?![a-z]))", r"\\pi \\cdot ("),
        (r"(?<!\\)\\[!,;:> ]|~", " "),
        (r"(?<!\\)\\[()\[\]]|(?<!\\)\$", ""),
        (r"\\vec\s*\{\s*([a-zA-Z])\s*\}", r"\1"),
        (r"\\color\s*\{[^{}]*\}|\\mathstrut(?![a-zA-Z])", ""),
        (r"&\w+;", lambda m: html.unescape(m[0])),
        (r"<=|=<", r"\\leq "),
        (r"(?<!=)>=", r"\\geq "),
        (r"!=|\\not\s*=", r"\\neq "),
        (r"\\(?:Bbb|mathbb)\s*\{?\s*([RNZQC])\s*\}?", r"\\mathbb{\1}"),
        (r"(?:\{\s*\})?\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))", r"^\\circ "),
        (r"(?<=\d)\s*\\text\{\s*degrees?\s*\}", r"^\\circ "),
        (r"(?<!\\)%", r"\\%"),
        (r"\\text\{\s*(\\[%$]|-?[\d.,/]+)\s*\}", r"\1"),
        (r"\\text\{\s*(-?\d[\d.,/]*)(\s+[a-zA-Z][a-zA-Z .]*)\}", r"\1\\text{\2}"),
        (r"\\log_\{?e\}?(?![a-zA-Z])", r"\\ln "),
        (r"\.\.\.", r"\\ldots "),
        (
            r"(?<![\d.,/^_{])(\d{1,15}(?:\.\d{1,9})?)\s*(\\text\{)?\s*dozen\b\s*(?(2)(\})?)",
            lambda m: f"{Decimal(m[1]) * 12:f}" + (m[2] if m[2] and not m[3] else "") + " ",
        ),
        (
            r"(\d)\s*(\\text\{)?\s*(dozen|hundred|thousand|million|billion|trillion)\b\s*(?(2)(\})?)",
            lambda m: m[1] + r"\times " + _SCALES[m[3]] + (m[2] + " " if m[2] and not m[4] else ""),
        ),
        (r"(?:\\text\{)?\s*\b(?:percent|percentage|pct)\b\.?\s*\}?", r"\\%"),
        (r"\*\*", "^"),
        (
            r"(?<![\\a-zA-Z])(pi|infty|cup|times|cdot|theta|alpha|beta|(?:arc|a)?(?:sin|cos|tan)h?|sec|csc|cot|ln|log|sqrt(?=\s*[\[{])"
            r"|(?:gcd|lcm|max|min)(?=\s*\())(?![a-zA-Z])",
            lambda m: "\\" + re.sub("^a(?=[sct])", "arc", m[1]) + " ",
        ),
        (r"\\arc(sin|cos|tan)h(?![a-zA-Z])", r"\\operatorname{ar\1h}"),
        (r"(?<=[^\s{])\s*\\to(?![a-zA-Z])", r"\\text{ implies }"),
        (r"\\prime(?![a-zA-Z])\s*", "'"),
        (r"\s*\^\s*(?:\{\s*('+)\}|('))", r"\1\2"),
        (
            r"(?:\(\s*(?:\\text\{\s*)?mod(?:ulo)?\s*\}?|\\text\{\s*\(\s*mod(?:ulo)?\s*\})\s*\{?(\w+)\}?\s*\}?\s*\)"
            r"|\\pmod\s*(\w)(?!\w)|(?:\\text\{\s*mod(?:ulo)?\s*\}|\\b?mod(?![a-zA-Z])|\bmod(?:ulo)?\b)\s*\{?(\w+)\}?",
            lambda m: rf"\bmod{{{m[3]}}}" if m[3] else rf"\pmod{{{m[1] or m[2]}}}",
        ),
        (r"^(\w|\w\(\w\))\s*\\equiv(?!.*mod)\s*", lambda m: f"{m[1]}{'' if '(' in m[1] else '(x)'} = "),
        (r"(?<![\\a-zA-Z])(?:positive\s+)?(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
        (r"(?<![\\a-zA-Z])negative\s+(?=\\infty)", "-"),
    ]
]
_NEGATIVE_POWER = re.compile(r"\^\s*-\s*(\d+(?!\d|\.\d)|[a-zA-Z](?![a-zA-Z]))")
_HEAD = re.compile(r"\\(?:frac|sqrt)(?![a-zA-Z])(?:\s*\[[^\[\]{}]{1,9}\])?\s*")
_ATOM = re.compile(r"(\\(?!frac|sqrt|left|text)[a-zA-Z]+|[0-9a-zA-Z])\s*")
_SINGLE_TEXT = re.compile(
    r"\\text\{\s*(?!m\s*\}\s*\^\s*\{?[23])([a-zA-Z])\s*\}(?=\s*\^|\s*_|\s*\()|(?<=[\^_])\\text\{\s*([a-zA-Z0-9])\s*\}"
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])|(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?![\d,])")
_TABLE = re.compile(r"matrix|array|cases|align|gathered|split")
_END = re.compile(r"(?<=\S)\s*\\(?:blacksquare|square|Box|checkmark|qed)(?![a-zA-Z])\s*$")
_MARKDOWN = re.compile(r"^\s*(\*\*|__|`+|\*|_)(?=\S)(.+?)(?<=\S)\1\s*$", re.DOTALL)
_DOUBLED = re.compile(r"\\{2,}(?=[a-zA-Z(){}\[\],!%$])")  # escaped once too often
_SPACES = re.compile(r"\s+")
_EDGES = re.compile(r"^[.,:](?=\s)|(?<!\\)[.,;]$|(?<!\\)\\$")  # the last is what is left of a control space


def _braced(text: str) -> str:
    """``\\frac12``, ``\\frac{a}2`` and ``\\sqrt[3]5`` with all arguments in braces."""
    inserts = []
    for head in _HEAD.finditer(text):
        position = head.end()
        for _ in range(2 if head[0].startswith("\\frac") else 1):
            atom = _ATOM.match(text, position)
            if atom:
                inserts.append(atom.span(1))
            elif text[position : position + 1] != "{":
                break
            position = atom.end() if atom else closing(text, position) + 1 or len(text)
    for start, end in sorted(inserts, reverse=True):
        text = text[:start] + "{" + text[start:end] + "}" + text[end:]
    return text


MAX_PASSES = 100  # each pass removes a layer, such as one of several prefixes


def tidy_latex(span: str, thousands: bool = True) -> str:
    """``span`` in the notation of the rules; never raises, and a second call changes nothing more.

    If ``thousands`` is False, the commas of ``12,102`` separate two numbers.
    """
    for _ in range(MAX_PASSES):  # one rewrite can make another applicable
        before, span = span, _tidy_once(span, thousands)
        if span == before:
            break
    return span


def _tidy_once(span: str, thousands: bool) -> str:
    if "\\\\" in span and not _TABLE.search(span):
        span = _DOUBLED.sub(r"\\", span)
    text = _SCRIPT.sub(lambda m: f"{'^' if m[1] else '_'}{{{m[0]}}}", _MARKDOWN.sub(r"\2", span))
    text = unicodedata.normalize("NFKC", _CHARACTER.sub(lambda m: _CHARACTERS[m[0]], text))
    if "\\" in text and "{" in text:
        text = unstyled(text)
    if "(" in text:
        text = called(text)
    text = _COMMAND.sub(lambda m: _SYNONYMS.get(m[1], m[0]), text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _NEGATIVE_POWER.sub(r"^{-\1}", _braced(text))
    if "\\begin" in text:
        text = ROWS.sub(plain_rows, text)
    text = _SINGLE_TEXT.sub(lambda m: m[1] or m[2], text)
    text = number_words(LABEL.sub(without_label, _END.sub("", text)))
    text = _SPACES.sub(" ", text).strip()
    if "]" in text or "[" in text:
        text = outward(text)
    if thousands and not re.search(r"[(\[{]\s*-?[\d.]+,", text):  # (12,102) is a pair
        text = _THOUSANDS.sub(lambda m: re.sub("[ ,]", "", m[0]), text)
    return _EDGES.sub("", strip_group(text)).strip()
