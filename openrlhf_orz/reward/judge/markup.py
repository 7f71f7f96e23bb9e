"""Fonts, calls of functions in code, and rows of systems, rewritten as what a reader sees."""

from __future__ import annotations

import re

from openrlhf_orz.reward.judge.brackets import COMMA, closing, split_top

_STYLED = re.compile(
    r"\\(?:(?P<box>fcolorbox\s*\{[^{}]*\}\s*\{[^{}]*\}|(?:text|f?)color(?:box)?\s*\{[^{}]*\}|underline|underbar|ensuremath|f?boxe?d?)"
    r"|(?P<math>math(?:bf|it|sf|tt|cal|normal)|boldsymbol|bm|pmb)|text(?:rm|bf|it|sf|tt|normal|up|md|sl|sc)?|mathrm|[mh]box"
    r"|emph|operatorname\*?)\s*\{"
)
_DOLLARS = re.compile(r"\$([^$]*)\$|\\\((.*?)\\\)", re.DOTALL)
_EMPTY_TEXT = re.compile(r"\\text\{\s*\}")
_A_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
_SIGNS = re.compile(r"[=^\\_+*]|[(\[{].*\d.*[)\]}]|\d+\s*/\s*\d", re.DOTALL)


def unstyled(text: str) -> str:
    """Without colours and fonts: words stay in ``\\text{...}``, and mathematics comes out of it."""
    parts, done = [], 0
    for head in _STYLED.finditer(text):
        close = closing(text, head.end() - 1) if head.start() >= done else -1
        if close < 0:
            continue
        inside, before = text[head.end() : close], text[: head.start()].rstrip()[-1:]
        plain = _A_WORD.search(inside) is None and "$" not in inside
        if head["box"] or inside.strip() == "i" or plain and (head["math"] or _SIGNS.search(inside)):
            inside = f"{{{inside}}}" if before in ("^", "_") else inside
        else:
            inside = _EMPTY_TEXT.sub(" ", "\\text{" + _DOLLARS.sub(r"}\1\2\\text{", inside) + "}")
        parts += [text[done : head.start()], inside]
        done = close + 1
    return "".join(parts) + text[done:]


_CODE = re.compile(
    r"(?<![\\a-zA-Z])(?P<name>sqrt|cbrt|exp|abs|Abs|floor|ceil|ceiling|factorial|binomial|comb)\s*\("
    r"|\\(?P<command>exp|sqrt)\s*\("
)
_CALLS = {
    "sqrt": r"\sqrt{%s}", "cbrt": r"\sqrt[3]{%s}", "exp": "e^{%s}", "abs": "|%s|", "floor": r"\lfloor %s \rfloor ",
    "ceil": r"\lceil %s \rceil ", "factorial": "(%s)!", "binomial": r"\binom{%s}{%s}",
}  # fmt: skip
_CALLS |= {"Abs": _CALLS["abs"], "ceiling": _CALLS["ceil"], "comb": _CALLS["binomial"]}


def called(text: str) -> str:
    """``exp(9)``, ``abs(x)`` and ``floor(x)`` of a program in the notation of a page."""
    while (head := _CODE.search(text)) and (close := closing(text, head.end() - 1)) > 0:
        template, inside = _CALLS[head["name"] or head["command"]], text[head.end() : close]
        arguments = split_top(inside, COMMA) if "binom" in template else [inside]
        if len(arguments) != template.count("%s"):
            break
        text = text[: head.start()] + template % tuple(arguments) + text[close + 1 :]
    return text


ROWS = re.compile(
    r"\\?\{?\s*\\begin\{([dr]?cases|aligned|align\*?|gathered|split|array)\}(?:\s*\{\s*[lcr]{1,2}\s*\})?(.*?)\\end\{\1\}\s*\.?",
    re.DOTALL,
)
_RELATED = re.compile(r"=|<|>|\\(?:leq|geq|neq|in|equiv)(?![a-zA-Z])")
_IF = re.compile(r"^(?:\\text\{\s*(?:if|for|when|where)\s*\}|(\\text\{)?\s*(?:if|for|when|where)\b)\s*")


def plain_rows(match: re.Match) -> str:
    """A system as a list; the rows of a function in pieces as ``value & condition`` without "if"."""
    rows = [row.strip(" ,.;") for row in match[2].split("\\\\") if row.strip(" ,.;")]
    cells = [re.split(r"&(?!\s*(?:=|<|>|\\[lg]eq|\\n?eq|\\in))", row) for row in rows]
    if all(len(cell) < 2 for cell in cells):
        system = rows and all(map(_RELATED.search, rows)) and not match[0].startswith("\\begin{array}{c")
        return ", ".join(row.replace("&", "") for row in rows) if system else match[0]
    if match[1] == "array" and not match[0].startswith("\\{") or any(len(cell) != 2 for cell in cells):
        return match[0]
    lines = [f"{value.strip(' ,')} & {_IF.sub(lambda m: m[1] or '', rule.strip())}" for value, rule in cells]
    return r"\begin{cases}" + r" \\ ".join(lines) + r"\end{cases}"
