"""Words before a value, numbers in words and dates, in the notation of :mod:`~openrlhf_orz.reward.judge.notation`."""

from __future__ import annotations

import re

from openrlhf_orz.reward.judge.brackets import spoken
from openrlhf_orz.reward.judge.quantity import unit_of

LABEL = re.compile(
    r"(?i)^\s*(?:\\(?:therefore|because|to)(?![a-zA-Z])"
    r"|(?:\\text\{)?\s*(?:(?:therefore|thus|hence|so)\b,?\s*)?(?:(?:the\s+)?(?:final\s+|correct\s+)?"
    r"(?:answer\s*(?:is\s*[:=]?|[:=])|(?:ans|result|total of)\b[.:]?)|there\s+(?:is|are)|it\s+is"
    r"|(?:therefore|thus|hence|so|exactly|only|just|is|equals)\b,?|"
    r"(?P<label>(?!option|choice)[A-Za-z][A-Za-z' ]+?)(?:\s*:|\s+(?:is|are|equals)))"
    r"\s*(?:\}\s*[:=]?)?)\s*(?=\S)"
)


def without_label(match: re.Match) -> str:
    """``\\text{Total: } 34`` as ``\\text{Total} = 34``, ``\\text{The answer is } 34`` as 34; "about: 34" stays."""
    words = match["label"] and match["label"].strip()
    if words and (unit_of(words) is None or len(words) < 2):
        return match[0]
    if words and "=" in match.string[match.end() :]:
        words = ""
    goes_on = "\\text{" in match[0] and "}" not in match[0]
    return (rf"\text{{{words}}} = " if words else "") + (r"\text{" if goes_on else "")


_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_COUNTS = {word: n for n, word in enumerate(_SMALL.split())}
_COUNTS |= {word: 10 * n for n, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6}
_PARTS = dict(zip("half halve third quarter fourth fifth sixth eighth tenth".split(), (2, 2, 3, 4, 4, 5, 6, 8, 10)))
_COUNTED = "|".join(sorted([*_COUNTS, *_SCALES], key=len, reverse=True))
_NUMBER_WORDS = re.compile(
    rf"(?i)^(?P<text>\\text\{{)?\s*(?P<minus>(?:negative|minus)\s+)?"
    rf"(?P<words>(?:{_COUNTED}|an?(?=[ ](?:{'|'.join(_SCALES)})))(?:(?:[ -]|\s+and\s+)(?:{_COUNTED}))*)"
    rf"(?:[ -](?P<part>{'|'.join(_PARTS)})s?)?(?P<noun>(?:\s+[a-zA-Z]+)?)\s*(?(text)\}})$"
)


def number_words(text: str) -> str:
    """``\\text{twenty-one}`` as ``21``, ``two thirds`` as a fraction, ``\\text{twelve apples}`` as a quantity."""
    match = _NUMBER_WORDS.match(text)
    if not match or match["noun"] and unit_of(match["noun"]) is None:
        return text
    total = group = 0
    for word in re.findall(_COUNTED, match["words"].lower()):
        scale = _SCALES.get(word, 1)
        group = max(group, 1) * scale if scale > 1 else group + _COUNTS[word]
        if scale > 100:
            total, group = total + group, 0
    number = f"{'-' if match['minus'] else ''}{total + group}"
    if match["part"]:
        number = f"\\frac{{{number}}}{{{_PARTS[match['part'].lower()]}}}"
    return number + (f"\\text{{{match['noun']}}}" if match["noun"] else "")


_DATE_WORDS = {  # all beginnings of three letters or more
    name[:size]: (kind, n)
    for kind, names in {
        "weekday": "monday tuesday wednesday thursday friday saturday sunday",
        "month": "january february march april may june july august september october november december",
    }.items()
    for n, name in enumerate(names.split(), 1)
    for size in range(3, len(name) + 1)
}
_DIGITS = re.compile(r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)$|(?P<a>\d\d?)/(?P<b>\d\d?)/(?P<c>\d{4})$")
_AROUND_DATE = re.compile(r"(?<=\d)(?:st|nd|rd|th)\b|\b(?:on|the|of|it|is|an?)\b")


def date_of(text: str) -> dict[str, int] | None:
    """What ``\\text{Wednesday, March 4th, 1998}`` or ``1998-03-04`` says of a date, None if it is none."""
    plain = spoken(text).lower()
    digits = _DIGITS.match(plain)
    if digits:
        return {name: int(value) for name, value in digits.groupdict().items() if value}
    said: dict[str, int] = {}
    for token in re.findall(r"\d+|[a-z]+|[^\s,.]", _AROUND_DATE.sub("", plain)):
        number = int(token) if token.isdecimal() else 0
        kind, value = _DATE_WORDS.get(token, ("day" if number < 32 else "year", number))
        if not value or kind in said:
            return None
        said[kind] = value
    return said if said.keys() & {"weekday", "month"} else None
