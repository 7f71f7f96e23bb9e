"""Words before a value, and numbers in words, in the notation of :mod:`~openrlhf_orz.reward.judge.notation`."""

from __future__ import annotations

import re

from openrlhf_orz.reward.judge.quantity import unit_of

LABEL = re.compile(
    r"^\s*(?:\\(?:therefore|because|to|implies|(?:long)?rightarrow|(?:Long)?Rightarrow)(?![a-zA-Z])"
    r"|(?:\\text\{)?\s*(?:(?:therefore|thus|hence|so)\b,?\s*)?(?:(?:the\s+)?(?:final\s+|correct\s+)?"
    r"(?:answer\s*(?:is\s*[:=]?|[:=])|(?:ans|result|total of)\b[.:]?)|there\s+(?:is|are)"
    r"|(?:therefore|thus|hence|so|exactly|only|just|is|equals)\b,?|"
    r"(?P<label>(?!option|choice)[A-Za-z][A-Za-z' ]+?)(?:\s*:|\s+(?:is|are|equals)))"
    r"\s*(?:\}\s*[:=]?)?)\s*(?=\S)",
    re.IGNORECASE,
)


def without_label(match: re.Match) -> str:
    """``\\text{Total: } 34`` as ``\\text{Total} = 34``, ``\\text{The answer is } 34`` as 34; "about: 34" stays."""
    words = match["label"] and match["label"].strip()
    if words and (unit_of(words) is None or len(words) < 2):
        return match[0]
    goes_on = "\\text{" in match[0] and "}" not in match[0]
    return (rf"\text{{{words}}} = " if words else "") + (r"\text{" if goes_on else "")


_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_COUNTS = {word: n for n, word in enumerate(_SMALL.split())}
_COUNTS |= {word: 10 * n for n, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
_SCALES = {"thousand": 1000, "million": 10**6}
_PARTS = dict(zip("half halve third quarter fourth fifth sixth eighth tenth".split(), (2, 2, 3, 4, 4, 5, 6, 8, 10)))
_COUNTED = "|".join(sorted([*_COUNTS, "hundred", *_SCALES], key=len, reverse=True))
_NUMBER_WORDS = re.compile(
    rf"^(?P<text>\\text\{{)?\s*(?P<minus>(?:negative|minus)\s+)?"
    rf"(?P<words>(?:{_COUNTED})(?:(?:[ -]|\s+and\s+)(?:{_COUNTED}))*)"
    rf"(?:[ -](?P<part>{'|'.join(_PARTS)})s?)?(?P<noun>(?:\s+[a-zA-Z]+)?)\s*(?(text)\}})$",
    re.IGNORECASE,
)


def number_words(text: str) -> str:
    """``\\text{twenty-one}`` as ``21``, ``two thirds`` as a fraction, ``\\text{twelve apples}`` as a quantity."""
    match = _NUMBER_WORDS.match(text)
    if not match or match["noun"] and unit_of(match["noun"]) is None:
        return text
    total = group = 0
    for word in re.findall(_COUNTED, match["words"].lower()):
        if word in _SCALES:
            total, group = total + max(group, 1) * _SCALES[word], 0
        else:
            group = max(group, 1) * 100 if word == "hundred" else group + _COUNTS[word]
    number = f"{'-' if match['minus'] else ''}{total + group}"
    if match["part"]:
        number = f"\\frac{{{number}}}{{{_PARTS[match['part'].lower()]}}}"
    return number + (f"\\text{{{match['noun']}}}" if match["noun"] else "")
