"""What stands around a question and is none of it: instructions, bold type, JSON, quotation marks, escapes."""

from __future__ import annotations

import re

_ESCAPED = re.compile(r"\\[\\\"'n]|\\u[0-9a-fA-F]{4}")
_JSON_OBJECT = re.compile(r'\s*\{\s*"[a-z_]+"\s*:\s*"((?:[^"\\]|\\.)*)"\s*\}\s*', re.S)
_COMMANDS = re.compile(r"\\[A-Za-z]+")
_BOX = re.compile(r"\$?\\boxed\s*\{[^{}]{0,20}\}\$?|\\\(\\boxed\s*\{[^{}]{0,20}\}\\\)|\$Answer\b", re.I)
_MIGHT_INSTRUCT = re.compile(
    r"\bbox(?:ed)?\b|step[- ]by[- ]step|step after (?:another|step)|\b(?:last|final|own) line\b|\bline of its own\b"
    r"|\bof the form answer\b|\bwithout quotes\b|\bthink (?:it|this|carefully)\b"
    r"|\byour (?:reasoning|thoughts|response)\b"
    r"|\b(?:solve|answer|work out) (?:the following|this) (?:\w+ )?(?:problem|question|exercise|task)\b"
    r"|\banswer tags?\b|<answer>|\bjson\b|\bfollowing format\b|\bonly the (?:final )?answer\b",
    re.I,
)
_NO_INSTRUCTION = re.compile(r"\d|[$=^+]|\\[a-zA-Z]")
_SENTENCE = re.compile(
    r"(?<=[.?!])[\"')*]*\s+|(?<=[.?!]\$)\s+|\n+"
    r"|\s+(?=(?:let['’]?s|please|you must|always)\s+(?:think|reason|put|box)\b)",
    re.I,
)
_QUOTED = re.compile(r"^[ \t]*> ?", re.M)  # lines of a quotation
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|[\\\"'/nt])")
# Openings and endings that say nothing of the question itself.
_PHRASES = re.compile(
    r"^(?:please\s+|kindly\s+|can you\s+|could you\s+)*"
    r"(?:solve|answer|consider|work out)\s+(?:the\s+following|this)\s+"
    r"(?:\w+\s+){0,2}(?:problem|question|exercise)\s*[:.]"
    r"|(?:please\s+)?(?:reason|think)\s+step[- ]by[- ]step\b[^.?$\\\d]{0,60}(?:\.|$)|let'?s think step by step\.?"
    r"|(?<![^.?!]\s)(?:please\s+)?(?:put|give|write|enter|provide|express|state|leave|present)\s+"
    r"(?:me\s+)?(?:your|the)\s+(?:final\s+)?answer\b[^.?:$\\\d]{0,80}(?:\.|$)"
    r"|^(?:please|kindly)\s+",
    re.I,
)


def unframed(text: str) -> str:
    """The question without what an instruction, bold type, capitals or a JSON object add to it."""
    if (found := _JSON_OBJECT.fullmatch(text)) is not None:
        text = _ESCAPE.sub(_unescaped, found.group(1))
    text = text.replace("**", "")
    letters = _COMMANDS.sub("", text)
    if len(letters) >= 20 and sum(map(str.isupper, letters)) > 0.8 * sum(map(str.isalpha, letters)):
        text = text.lower()
    if not _MIGHT_INSTRUCT.search(text):
        return _PHRASES.sub(" ", text)
    sentences = [part for part in _SENTENCE.split(text) if part.strip()]
    while len(sentences) > 1 and _instructs(sentences[-1]):
        sentences.pop()
    while len(sentences) > 1 and _instructs(sentences[0]):
        del sentences[0]
    return _PHRASES.sub(" ", " ".join(sentences))


def _instructs(sentence: str) -> bool:
    """Whether a sentence says how to answer, and has no mathematics of the question."""
    return bool(_MIGHT_INSTRUCT.search(sentence)) and not _NO_INSTRUCTION.search(_BOX.sub("", sentence))


def readings(text: str) -> list[str]:
    """The text, and as it reads without the marks of a quotation and without escapes, where it has such."""
    found = [text]
    if _QUOTED.search(text):
        found.append(_QUOTED.sub("", text))
    for _ in range(3):  # JSON in JSON
        if not _ESCAPED.search(found[-1]):
            break
        found.append(_ESCAPE.sub(_unescaped, found[-1]))
    return found


def _unescaped(found: re.Match[str]) -> str:
    sign = found.group(1)
    return chr(int(sign[1:], 16)) if sign[0] == "u" else {"n": "\n", "t": "\t"}.get(sign, sign)
