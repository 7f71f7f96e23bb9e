"""Rewrites a span into one notation before it is compared.

:func:`tidy_latex` rewrites a span into a small dialect of LaTeX without changing what it says:
delimiters and sizing commands go, Unicode and plain-text notation become commands,
thousands separators go, and text wrappers become ``\\text{...}``. All patterns are linear.
"""

from __future__ import annotations

import re
import unicodedata

from openrlhf_orz.reward.judge.brackets import outward, strip_group

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
}  # fmt: skip
_CHARACTER = re.compile("|".join(map(re.escape, _CHARACTERS)))
_SUPER, _SUB = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "₀₁₂₃₄₅₆₇₈₉₋₊ₙ"
_SCRIPT = re.compile(f"[{_SUPER}]+|[{_SUB}]+")
_PLAIN = {**dict(zip(_SUPER, "0123456789-+n")), **dict(zip(_SUB, "0123456789-+n"))}

_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (
            r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|rm|bf|it|sf"
            r"|tiny|small|normalsize|large|Large|LARGE|huge|Huge)(?![a-zA-Z])",
            " ",
        ),
        (r"\\m?(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?", ""),
        (r"(\d)(?:\{,\}|,\s*\\!|\\!,|,\\,|\\,|\\;|\\ |~|\\thinspace )\s*(?=\d{3}(?!\d))", r"\1"),
        (r"(?<=\d)\{([.:])\}(?=\d)", r"\1"),
        (r"(?<=[\d.])\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?(?!\d)", r"\\overline{\1\2\3}"),
        (r"(?<=[\d.])\\dot\s*(?:\{(\d)\}|(\d))(?!\d)", r"\\overline{\1\2}"),
        (r"\\mathrm\s*\{\s*i\s*\}", " i "),
        (r"\\(?:phantom|hphantom|vphantom)\s*(?:\{[^{}]*\}|[^{\s])", ""),
        (r"\\(?:color|textcolor)\s*\{[^{}]*\}", ""),
        (r"\\(?:underline|underbar|mathstrut)(?![a-zA-Z])", ""),
        (r"\{\s*([^{}]+?)\s*\\choose(?![a-zA-Z])\s*([^{}]+?)\s*\}", r"\\binom{\1}{\2}"),
        (r"\\pi\s*\(", r"\\pi \\cdot ("),
        (r"\\text\{\s*(?:positive\s+)?infinity\s*\}", r"\\infty "),
        (r"\\text\{\s*negative\s+infinity\s*\}", r"-\\infty "),
        (r"(?<!\\)\\[!,;:> ]|\\(?:quad|qquad|thinspace|enspace|hfill)(?![a-zA-Z])|~", " "),
        (r"(?<!\\)\\[()\[\]]|(?<!\\)\$", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (r"\\(?:mathbf|boldsymbol|bm|mathit|mathsf|vec)\s*\{\s*([a-zA-Z])\s*\}", r"\1"),
        (
            r"\\operatorname\*?\s*\{\s*(gcd|lcm|min|max|arcsin|arccos|arctan|sec|csc|cot|deg|det|sin|cos|tan|log|ln)\s*\}",
            r"\\\1 ",
        ),
        (
            r"\\(?:mathrm|mathit|mathsf|textrm|textbf|textit|textsf|texttt|textnormal|mbox|hbox|emph|mathbf|boldsymbol|bm"
            r"|operatorname\*?|textup)\s*\{",
            r"\\text{",
        ),
        (r"\\(?:lbrace)(?![a-zA-Z])", r"\\{"),
        (r"\\(?:rbrace)(?![a-zA-Z])", r"\\}"),
        (r"\\(?:lbrack)(?![a-zA-Z])", "["),
        (r"\\(?:rbrack)(?![a-zA-Z])", "]"),
        (r"\\(?:[lr]?vert|mid)(?![a-zA-Z])", "|"),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"\\(?:leqslant|leqq|le)(?![a-zA-Z])|<=|=<|&le;", r"\\leq "),
        (r"\\(?:geqslant|geqq|ge)(?![a-zA-Z])|(?<!=)>=|&ge;", r"\\geq "),
        (r"\\(?:ne)(?![a-zA-Z])|!=|\\not\s*=", r"\\neq "),
        (r"\\lt(?![a-zA-Z])|&lt;", "<"),
        (r"\\gt(?![a-zA-Z])|&gt;", ">"),
        (r"\\(?:simeq|cong|thickapprox|doteq)(?![a-zA-Z])", r"\\approx "),
        (r"\\(?:varnothing|emptyset)(?![a-zA-Z])", r"\\emptyset "),
        (r"\\backslash(?![a-zA-Z])", r"\\setminus "),
        (r"\\(?:Bbb|mathbb)\s*\{?\s*([RNZQC])\s*\}?", r"\\mathbb{\1}"),
        (
            r"(?:\{\s*\})?\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degrees?(?![a-zA-Z])|\\textdegree"
            r"|(?<=\d)\s*\\text\{\s*degrees?\s*\}",
            r"^\\circ ",
        ),
        (r"(?<!\\)%", r"\\%"),
        (r"\\text\{\s*(\\[%$])\s*\}", r"\1"),
        (r"\\colon(?![a-zA-Z])", ":"),
        (r"\\text\{\s*(-?[\d.,/]+)\s*\}", r"\1"),
        (r"\\text\{\s*(-?\d[\d.,/]*)(\s+[a-zA-Z][a-zA-Z .]*)\}", r"\1\\text{\2}"),
        (r"\\log_\{?e\}?(?![a-zA-Z])", r"\\ln "),
        (r"\\(?:ldots|dots|cdots|dotsc|dotsb)(?![a-zA-Z])|\.\.\.", r"\\ldots "),
        (r"(\d)\s*(?:\\text\{)?\s*thousand\b\s*\}?", r"\1\\times 10^{3}"),
        (r"(\d)\s*(?:\\text\{)?\s*million\b\s*\}?", r"\1\\times 10^{6}"),
        (r"(\d)\s*(?:\\text\{)?\s*billion\b\s*\}?", r"\1\\times 10^{9}"),
        (r"(?:\\text\{)?\s*\b(?:percent|percentage|pct)\b\.?\s*\}?", r"\\%"),
        (r"\*\*", "^"),
        (r"\\(?:varphi)(?![a-zA-Z])", r"\\phi "),
        (r"\\(?:exp)\s*\(", r"\\exp("),
        (r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\a-zA-Z])(sqrt|pi|infty|cup|times|cdot|theta|alpha|beta|sin|cos|tan|ln|log)(?![a-zA-Z])", r"\\\1 "),
        (r"(?<![\\a-zA-Z])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
        (r"\\(?:infin)(?![a-zA-Z])", r"\\infty "),
    ]
]
_ROOT = re.compile(r"\\sqrt\s*(\\[a-zA-Z]+|[0-9a-zA-Z])")
_INDEXED_ROOT = re.compile(r"(\\sqrt\s*\[[^\[\]{}]{1,9}\])\s*(\\(?!frac|sqrt|left)[a-zA-Z]+|[0-9a-zA-Z])")
_NEGATIVE_POWER = re.compile(r"\^\s*-\s*(\d+(?!\d|\.\d)|[a-zA-Z](?![a-zA-Z]))")
_FRACTION = re.compile(r"\\frac(?![a-zA-Z])\s*")
_ATOM = re.compile(r"\\[a-zA-Z]+|[0-9a-zA-Z]")
_SINGLE_TEXT = re.compile(r"\\text\{\s*([a-zA-Z])\s*\}(?=\s*\^|\s*_|\s*\()|(?<=[\^_])\\text\{\s*([a-zA-Z0-9])\s*\}")
_POWER_AT_END = re.compile(r"\s*\^\s*\{?\s*[23]\s*\}?$")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])|(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?![\d,])")
_PREFIX = re.compile(
    r"^\s*(?:\\text\{)?\s*(?:therefore,?\s*)?(?:(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\s*[:=]?|[:=])|there\s+(?:is|are))\s*(?:\}\s*[:=]?\s*)?(?=\S)",
    re.IGNORECASE,
)
_MARKDOWN = re.compile(r"^\s*(\*\*|__|`+|\*|_)(?=\S)(.+?)(?<=\S)\1\s*$", re.DOTALL)
_DOUBLED = re.compile(r"\\{2,}(?=[a-zA-Z(){}\[\],!%$])")  # escaped once too often
_SPACES = re.compile(r"\s+")


def _single(match: re.Match) -> str:
    """The letter without ``\\text``, except the metres of ``45\\text{ m}^2``."""
    if match.group(1) == "m" and match.string[: match.start()].rstrip(" \\")[-1:] in tuple("0123456789})"):
        return match.group() if _POWER_AT_END.match(match.string, match.end()) else "m"
    return match.group(1) or match.group(2)


def _script(match: re.Match) -> str:
    run = match.group()
    return ("^{" if run[0] in _SUPER else "_{") + "".join(_PLAIN[c] for c in run) + "}"


def _brace_fractions(text: str) -> str:
    """``\\frac12``, ``\\frac{1}2`` and the like with both arguments in braces."""
    parts, done = [], 0
    for head in _FRACTION.finditer(text):
        position = head.end()
        if head.start() < done:
            continue
        arguments = []
        for _ in range(2):
            atom = _ATOM.match(text, position)
            if not atom:
                break
            arguments.append("{" + atom.group() + "}")
            position = atom.end()
            while position < len(text) and text[position] == " ":
                position += 1
        if len(arguments) == 1 and text[position : position + 1] == "{":
            parts += [text[done : head.start()], "\\frac", arguments[0]]
            done = position
        elif len(arguments) == 2:
            parts += [text[done : head.start()], "\\frac", *arguments]
            done = position
    return "".join(parts) + text[done:]


def _brace_denominators(text: str) -> str:
    """``\\frac{a}2`` as ``\\frac{a}{2}``, by one scan over the braces."""
    closes, opened = {}, []
    for position, char in enumerate(text):
        if char == "{":
            opened.append(position)
        elif char == "}" and opened:
            closes[opened.pop()] = position
    inserts = []
    for head in _FRACTION.finditer(text):
        close = closes.get(head.end())
        if close is not None:
            atom = _ATOM.match(text, close + 1)
            if atom:
                inserts.append((close + 1, atom.end()))
    for start, end in sorted(inserts, reverse=True):
        text = text[:start] + "{" + text[start:end] + "}" + text[end:]
    return text


def _one_pass(text: str) -> str:
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if "\\frac" in text:
        text = _brace_denominators(_brace_fractions(text))
    text = _NEGATIVE_POWER.sub(r"^{-\1}", text)
    return _INDEXED_ROOT.sub(r"\1{\2}", _ROOT.sub(r"\\sqrt{\1}", text))


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
    if "\\\\" in span and "matrix" not in span and "array" not in span and "cases" not in span:
        span = _DOUBLED.sub(r"\\", span)
    text = _SCRIPT.sub(_script, _MARKDOWN.sub(r"\2", span))
    text = _CHARACTER.sub(lambda m: _CHARACTERS[m.group()], text)
    text = unicodedata.normalize("NFKC", text)
    text = _one_pass(text)
    text = _SINGLE_TEXT.sub(_single, text)
    text = _PREFIX.sub("", text)
    text = _SPACES.sub(" ", text).strip()
    if "]" in text or "[" in text:
        text = outward(text)
    if thousands and not re.search(r"[(\[{]\s*-?[\d.]+,", text):  # (12,102) is a pair
        text = _THOUSANDS.sub(lambda m: re.sub("[ ,]", "", m.group()), text)
    while True:
        before = text
        text = strip_group(text.strip())
        if text and text[-1] in ".,;" and not text.endswith("\\,"):
            text = text[:-1]
        if text.endswith("\\") and not text.endswith("\\\\"):  # the rest of a stripped control space
            text = text[:-1]
        if text.startswith((". ", ", ", ": ")):
            text = text[1:]
        if text == before:
            return text
