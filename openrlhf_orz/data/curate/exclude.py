"""Stage 3: leaves out what a 0/1 reward on one final answer cannot judge. Each rule has a name; the first that fires.

multiple_choice, multi_part, proof, proof_and_answer, open_ended, guessable: the kinds, each a switch of the
configuration; the detail in rejected.jsonl names the rule within the kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from openrlhf_orz.data.curate.choices import Items, flatten, labelled, strictly_placed
from openrlhf_orz.data.curate.config import Exclude
from openrlhf_orz.data.curate.shards import rejection

I = re.I  # noqa: E741

# ---- what asks for an answer

_VERBS = (
    r"find|determine|compute|calculate|evaluate|solve|simplify|express|factor|factori[sz]e|expand|estimate|obtain|"
    r"work out|write|give|state|list|name|count|deduce|derive|sketch|draw|plot|construct|prove|show|verify|explain|"
    r"describe|justify|discuss|suppose|how|what|which|who|where|when|why|is|are|does|do|can|will|for what|in how|hence|"
    r"use|identify|graph|convert|round|complete|fill|conclude|investigate|examine|check|decide"
)
_TASK = re.compile(
    rf"^\W*(?:(?:please|hence|then|now|also|next|finally|if [^.?]{{1,80}},|when [^.?]{{1,60}},|using [^.?]{{1,60}},|"
    rf"for (?:what|which|how)\b|at what|in what|by how|to what|from)\s*)*(?:{_VERBS})\b", I
)  # fmt: skip
_CN_TASK = re.compile(r"求|证明|计算|写出|判断|是否|多少|什么|哪|说明|讨论|确定|化简|解方程|解不等式|画出|作出|试")
_ASKS = re.compile(
    r"[?？]|\b(?:find|determine|compute|calculate|evaluate|what (?:is|are|was|value)|how (?:many|much))\b|求|计算", I
)


def _asks(text: str) -> bool:
    """Whether an item of a list is a task of its own."""
    return bool(_TASK.search(text)) or "?" in text or "？" in text or bool(_CN_TASK.search(text[:40]))


# ---- multiple choice

_WHICH = re.compile(
    r"\b(?:which|what)\s+(?:one\s+|ones\s+|two\s+|three\s+)?(?:of|among|from)\s+(?:the\s+|these\s+|those\s+)?"
    r"(?:(?:four|five|three|two|given|above|below|following)\s+)*"
    r"(?:following|above|below|these|those|statements?|options?|choices?|answers?|alternatives?|expressions?|equations?|"
    r"graphs?|figures?)\b"
    r"|\bwhich\s+(?:statement|option|choice|answer|alternative)s?\b(?:\s+\w+){0,3}\s+(?:is|are|must|could|cannot|best|correct|true|false)\b"
    r"|\bwhich (?:following|listed) \w+"
    r"|\b(?:choose|select|pick|mark|circle|tick)\s+(?:only\s+)?(?:the\s+|all\s+|one\s+)?(?:\w+\s+){0,2}(?:answers?|options?|choices?|statements?|alternatives?)\b"
    r"|\benter (?:the letters?|\"[A-Z]\" for|[A-Z] (?:for|if))"
    r"|\b(?:choose|select|pick)\s+(?:one\s+)?from\s*:"
    r"|\b(?:answer choices|the choices are|options are|choices\s*:|options\s*:|possible answers\s*:)"
    r"|\b(?:one|all|none|any|each|both|some) of the (?:following|above)\s+(?:is|are|statements|options|must|could|equals?|can(?:not)?)\b"
    r"|\bnone of (?:the above|these)\b(?!\s+[a-z])|\ball of the above\b"
    r"|\bletters? of the (?:correct|right|true)\b", I
)  # fmt: skip
_WHICH_STEMS = ("which", "of the", "of these", "among", "choose", "select", "pick", "mark", "circle", "tick", "choice", "option",
                "answers:", "answers :", "enter", "letter", "from the", "what of", "from these")  # fmt: skip
_CN_WHICH = re.compile(
    r"下列|下面(?:的)?(?:哪|四个|说法|结论|命题)|以下(?:哪|四个|说法|结论|命题|选项)|选项|选择题|单选|多选"
    r"|(?:正确|错误|成立|符合|不正确)的(?:是|有|选项|个数是)|[(（]\s*[)）]\s*[。.]?\s*(?:$|\n|A)|哪一个选项|的是\s*[(（]"
)
_ONE_LETTER = re.compile(r"\W*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*\(?([A-Ja-j])\)?\s*\}?\W*")


def _choice(flat: str, lists: list[Items], answer: str) -> str | None:
    letter = _ONE_LETTER.fullmatch(answer)
    for items in lists:
        upper = items.style in ("(A)", "A)", "A.", "line") and _case(flat, items)
        if items.style == "line" and len(items.texts) < 3:
            continue
        if not upper and items.style not in ("(A)", "A)", "A."):
            continue
        if any(_asks(text) for text in items.texts[:-1]) or (_TASK.search(items.texts[-1]) and not upper):
            continue  # parts
        if items.style == "(A)" and not any(len(text) > 0 for text in items.texts):
            continue
        count, strict = len(items.texts), strictly_placed(items)
        if not upper and not letter and _CONDITIONS.search(items.before):
            continue
        short = all(len(text) <= 200 for text in items.texts[:-1])
        if (
            not _ASKS.search(items.before)
            and not _WHICH.search(items.before)
            and not letter
            and not (strict and count >= 4)
        ):
            if not re.search(r"[_(（]\s*[_)）]|\bis\b|\bare\b|\bequals?\b|=|:|为|是", items.before[-60:]):
                continue
        if count >= 3 and short and (strict or items.style == "(A)" or letter):
            return f"options {items.style}"
        if (
            count == 2
            and short
            and (letter or (strict and _WHICH.search(flat)) or (strict and upper and _asked_before(items)))
        ):
            return f"two options {items.style}"
    if _might_choose(flat) and _WHICH.search(flat):
        return "which of these"
    if _CN_WHICH.search(flat):
        return "which of these (Chinese)"
    return None


_CONDITIONS = re.compile(
    r"\b(?:such that|conditions?|properties|satisf\w+|where|rules?|facts?|given that|following holds?|if)\b[^.?]{0,60}$",
    I,
)


def _might_choose(flat: str) -> bool:
    lower = flat.lower()
    return any(stem in lower for stem in _WHICH_STEMS)


def _case(flat: str, items: Items) -> bool:
    label = re.match(r"[(\[\s]*([A-Za-z])", flat[len(items.before) :])
    return bool(label) and label.group(1).isupper()


def _asked_before(items: Items) -> bool:
    return bool(re.search(r"[?？]\s*$|\bor\b", items.before)) and all(len(text) <= 60 for text in items.texts)


# ---- several parts

_PARTS = re.compile(r"\bpart\s*\(?(?:a|b|i|ii|1|2)\)?\s*[:.)]|\bparts?\s+\(?a\)?\s*(?:and|,)\s*\(?b\)?", I)
_ANSWER_PARTS = re.compile(
    r"(?:^|[\s;,$])(?:part\s*)?\(?(?:a|i|1)\)\s*.+(?:[\s;,$]|\\quad|\\\\)\s*(?:part\s*)?\(?(?:b|ii|2)\)\s*\S|①.+②", I | re.S
)  # fmt: skip
_SECOND_TASK = re.compile(
    r"[.?!;]\s*(?:also|and|then|next|finally|in addition|furthermore|secondly),?\s*(?:please\s+)?"
    r"(?:find|determine|compute|calculate|evaluate|what (?:is|are)|how (?:many|much))\b", I
)  # fmt: skip
_FIRST_TASK = re.compile(
    r"\b(?:find|determine|compute|calculate|evaluate|what (?:is|are|was)|how (?:many|much|long|far))\b", I
)


def _multi_part(flat: str, lists: list[Items], answer: str) -> str | None:
    for items in lists:
        if items.style == "line":
            continue
        if sum(_asks(text) for text in items.texts) >= 2 and not _is_letter_point(flat, items):
            return f"parts {items.style}"
    if _PARTS.search(flat):
        return "parts by name"
    if _ANSWER_PARTS.search(answer) and len(lists):
        return "an answer in parts"
    questions = [part for part in re.split(r"(?<=[?？])", flat) if part.rstrip().endswith(("?", "？"))]
    questions = [part for part in questions if not re.match(r"\s*(?:that is|in other words|i\.e\.|namely)\b", part, I)]
    if len(questions) >= 2 and sum(bool(_FIRST_TASK.search(part)) for part in questions) >= 2:
        return "several questions"
    second = _SECOND_TASK.search(flat)
    if second and _FIRST_TASK.search(flat[: second.start() + 1]) and re.search(r"[,;，]|\band\b", answer):
        return "a second task"
    return None


def _is_letter_point(flat: str, items: Items) -> bool:
    """Sentence ends like "through A. Find B. Find" are no labels of parts."""
    return items.style == "A." and _case(flat, items) and not strictly_placed(items)


# ---- proofs

_PROVE = re.compile(
    r"(?:^|[.?!:;,)\]$}\n]\s*|\b(?:and|then|to|hence|thus|also|please|now|or|first|furthermore|moreover|must|should|you|"
    r"either)\s+|\(?[a-eivx\d]{1,3}\)\s*|“|\")(?:prove|disprove|demonstrate|justify)\b(?!n)"
    r"|\b(?:prove|demonstrate)\s+(?:that|the|it|this|your|whether|or disprove|if|there|for|by|each|$)"
    r"|\b(?:give|provide|write|present|construct)\s+(?:a|an|the|your|me)?\s*(?:\w+\s+){0,2}proof\b"
    r"|\bproof\s+(?:that|of)\b|\bwith (?:a )?(?:proof|justification)\b|\bdisprove\b", I
)  # fmt: skip
_SHOW = re.compile(
    r"(?:^|[.?!:;,)\]$}\n]\s*|\b(?:and|then|to|hence|thus|also|please|now|first|must)\s+|\(?[a-eivx\d]{1,3}\)\s*)"
    r"(?:show|verify|establish|deduce|conclude|confirm|check)\b\s*:?\s*(?:,?\s*(?:by|using|with|without|for|in)\b[^.?]{0,80}?,?\s*)?"
    r"(?:that\b|the (?:following|identity|inequality|equality|relation|statement|claim|formula)\b|if\b|there (?:is|are|exists?)\b|"
    r"(?:algebraically|geometrically|rigorously|formally)\b|why\b|:)", I
)  # fmt: skip
_NOT_IMPERATIVE = re.compile(
    r"\b(?:can|could|may|might|(?<!you )will|would|was|were|is|are|be|been|being|has|have|had|he|she|they|we|who|which|that|tried|"
    r"wants?|able|used|trying|wishes|failed|managed|attempts?|easy|possible|shall|did|does|not|needs?|theorem|mathematicians?)\s+"
    r"(?:also\s+|then\s+|easily\s+|now\s+|first\s+|to\s+)*$", I
)  # fmt: skip
_CN_PROVE = re.compile(r"证明|求证|试证|证：|说明理由|给出理由|证得")
_CN_GIVEN = re.compile(r"(?:已|可以|可|能|被|曾|不难|需要|定理的)证明")
_ANSWER_PROOF = re.compile(
    r"\W*(?:proof|proved|proven|see (?:the )?(?:proof|solution|explanation|below)|q\.?\s*e\.?\s*d\.?|\\(?:blacksquare|square|qed)|"
    r"证明见解析|证明略|见解析|略|见证明|(?:the )?(?:statement|claim|inequality|identity|result) (?:is|has been) (?:proved|proven|true)|"
    r"omitted|(?:shown|proved) above)\W*", I
)  # fmt: skip


# One look for their stems spares most questions the long patterns.
_STEMS = {
    _PROVE: ("prov", "proof", "demonstrat", "justif"),
    _SHOW: ("show", "verif", "establish", "deduce", "conclude", "confirm", "check"),
}


def _imperative(pattern: re.Pattern, flat: str) -> bool:
    """Whether `pattern` occurs as a task, not in a tale or as "it can be shown that"."""
    lower = flat.lower()
    if not any(stem in lower for stem in _STEMS[pattern]):
        return False
    for found in pattern.finditer(flat):
        verb = re.search(r"[A-Za-z]+", found.group())
        before = flat[max(0, found.start() - 40) : found.start() + (len(found.group()) - len(found.group().lstrip()))]
        word = found.group().lstrip(' .?!:;,)]$}\n“"')
        lead = re.match(r"(?:to|or|and|also|then)\b", word, I)
        if lead and _NOT_IMPERATIVE.search(before):
            continue
        if (
            verb
            and not lead
            and _NOT_IMPERATIVE.search(before)
            and not re.search(r"[.?!:;]\s*$", flat[: found.start() + 1])
        ):
            continue
        return True
    return False


def _proof(flat: str, answer: str) -> str | None:
    if _ANSWER_PROOF.fullmatch(answer):
        return "the answer is a proof"
    if _imperative(_PROVE, flat):
        return "prove"
    if _imperative(_SHOW, flat):
        return "show that"
    if _CN_PROVE.search(_CN_GIVEN.sub("", flat)):
        return "prove (Chinese)"
    return None


# ---- open-ended

_OPEN = re.compile(
    r"(?:^|[.?!:;]\s+|\n\s*|\b(?:and|then)\s+)(?:please\s+)?(?:discuss|describe|explain|comment on|interpret|compare and contrast|sketch|draw|plot|graph (?:the|each|this|y|f)|"
    r"illustrate|design|propose|suggest|invent|outline|summari[sz]e|reflect|"
    r"(?:write|compose) (?:a|an) (?:short )?(?:essay|paragraph|story|poem|program|report|letter|proof|word problem)|"
    r"(?:give|find|provide|construct|write|exhibit|produce) (?:an?|some|one|two|three) (?:\w+ ){0,2}(?:examples?|counter-?examples?|explanation|reason|interpretation)|"
    r"construct (?:a|an|the|with|using)\b|make up (?:a|an)\b|come up with)\b"
    r"|\b(?:give|state|provide|with) (?:your |a |the )?(?:reasons?|reasoning|justification|explanation)\b(?! (?:for|that) (?:\w+ ){0,3}(?:failed|late))"
    r"|\bexplain (?:why|how|your|the|what|in)\b|\bjustify (?:your|the|each)\b|\bin your own words\b|\bwhat do you (?:think|notice|observe|conclude)\b"
    r"|\bwhy (?:is|are|does|do|did|must|can(?:not|'t)?|should|was|were)\b[^.?]{0,120}\?"
    r"|\b(?:how would you|do you agree)\b", I
)  # fmt: skip
_CN_OPEN = re.compile(
    r"谈谈|举例说明|请解释|简述|论述|画出.{0,12}(?:图|图像|示意图)|为什么|你(?:认为|发现|的看法)|尺规作图|作图"
)
_OPEN_STEMS = (
    "discuss", "descri", "expla", "comment", "interpret", "compare", "sketch", "draw", "plot", "graph", "illustrat",
    "design", "propos", "suggest", "invent", "outlin", "summar", "reflect", "essay", "paragraph", "story", "poem", "word problem",
    "example", "reason", "construct", "make up", "come up", "justif", "own words", "do you", "why ", "would you",
)  # fmt: skip
_OPEN_NUMBER = re.compile(r"\W*-?\$?\s*\d[\d,]*(?:\.\d+)?\W*|.*\\frac.*")


def _open_ended(flat: str, answer: str) -> str | None:
    if _CN_OPEN.search(flat) and not _OPEN_NUMBER.fullmatch(answer):
        return "open task (Chinese)"
    lower = flat.lower()
    found = _OPEN.search(flat) if any(stem in lower for stem in _OPEN_STEMS) else None
    if not found:
        return None
    # A number as the answer means that the open words were a figure of speech, or came beside a question.
    asks_to_write = re.search(
        r"explain (?:why|your|how)|justify|reasons?|in your own words|essay|discuss|describe", found.group(), I
    )
    if _OPEN_NUMBER.fullmatch(answer) and not (asks_to_write and not _ASKS.search(flat)):
        return None
    return "open task"


# ---- guessable

_TWO_WAY = {
    "yes", "no", "true", "false", "correct", "incorrect", "right", "wrong", "possible", "impossible", "exists", "exist",
    "does not exist", "doesn't exist", "it is possible", "it is impossible", "it is not possible", "not possible",
    "yes it is", "no it is not", "yes it does", "no it does not", "yes he can", "no he cannot", "yes they can", "yes she can",
    "yes it is possible", "no it is not possible", "it does", "it does not", "always", "never", "sometimes", "it is", "it is not",
    "even", "odd", "rational", "irrational", "convergent", "divergent", "converges", "diverges", "heads", "tails",
    "yes there is", "no there is not", "yes there does", "there is", "there is not", "yes there are", "no there are not",
    "can", "cannot", "can not", "valid", "invalid", "sure", "agree", "disagree", "prime", "composite", "not prime",
    "是", "否", "对", "错", "正确", "错误", "能", "不能", "可以", "不可以", "存在", "不存在", "会", "不会", "有", "没有", "√", "×",
    "真", "假", "oui", "non", "si", "sí", "ja", "nein", "да", "нет", "не существует", "существует",
}  # fmt: skip
_PLAYERS = re.compile(
    r"(?:the )?(?:first|second|1st|2nd|starting|beginning) (?:player|one|person)(?: (?:wins|always wins|has (?:a|the) winning strategy|can win|will win))?"
    r"|(?:player )?(?:one|two|a|b|1|2|\w+)(?: (?:wins|always wins|has (?:a|the) winning strategy|can win|will win))|先手.{0,4}|后手.{0,4}|甲|乙", I
)  # fmt: skip
_WINNER = re.compile(
    r"\bwho\b[^.?]{0,80}\b(?:wins?|winning|winner|victory)\b|\bwhich (?:player|of (?:the|them|two))\b[^.?]{0,80}\b(?:win|wins|winning|strategy)\b"
    r"|\bwinning strategy\b|必胜|获胜策略", I
)  # fmt: skip
_ANSWER_YES_NO = re.compile(
    r"\b(?:answer|respond|reply|write|state|enter|say|type|indicate|output|print)s?\s*(?:with|by|in|either|only|using|simply|whether)?\s*(?:only|either|just|a)?\s*:?"
    r"\s*[\"'“‘*\\(]*(?:text\w*\{)?(?:yes|no|true|false|correct|possible)[\"'”’*)}]*\s*(?:,|/|or|and)\s*(?:\"|'|“|‘|\*|\\text\w*\{)*(?:no|yes|false|true|incorrect|impossible)\b"
    r"|\b(?:yes or no|yes/no|yes-or-no|true or false|true/false|true-or-false|t/f)\b"
    r"|\(\s*(?:yes|true|y|t)\s*[/,|]\s*(?:no|false|n|f)\s*\)|(?:判断题|判断(?:正误|对错)|对还是错|是或否|[(（]\s*(?:对|√)\s*[/或]\s*(?:错|×)\s*[)）])", I
)  # fmt: skip


def _guessable(flat: str, answer: str) -> str | None:
    bare = re.sub(r"\\(?:text|textbf|mathrm|mbox|mathbf)\s*|[${}().!。，,;\"'“”‘’*\\]", " ", answer.lower())
    bare = " ".join(bare.split())
    if bare in _TWO_WAY:
        return f"answer {bare}"
    if re.match(r"(?:yes|no|true|false|possible|impossible)\b(?![\w.]*\d)", bare) and len(bare) < 80:
        return "answer begins with yes or no"
    if _WINNER.search(flat) and (_PLAYERS.fullmatch(bare) or re.fullmatch(r"[a-z]+", bare)):
        return "who wins"
    if _ANSWER_YES_NO.search(flat) and not re.search(r"\d", answer):
        return "yes or no is asked for"
    return None


# ---- all together


def excluded(question: str, answer: str, options: Exclude) -> tuple[str, str] | None:
    """(kind, rule) when a question with this answer is left out; None when it is kept."""
    flat = flatten(question)
    lists = labelled(flat)
    if options.multi_part:
        rule = _multi_part(flat, lists, answer)
        if rule:
            return "multi_part", rule
    if options.multiple_choice:
        rule = _choice(flat, lists, answer)
        if rule:
            return "multiple_choice", rule
    rule = _proof(flat, answer)
    if rule:
        mixed = bool(_ASKS.search(flat)) and rule != "the answer is a proof"
        if options.proof_and_answer if mixed else options.proof:
            return ("proof_and_answer" if mixed else "proof"), rule
    if options.guessable:
        rule = _guessable(flat, answer)
        if rule:
            return "guessable", rule
    if options.open_ended:
        rule = _open_ended(flat, answer)
        if rule:
            return "open_ended", rule
    return None


def exclude(rows: Iterable[dict], options: Exclude) -> tuple[list[dict], list[dict]]:
    """The kept rows and the rejections; generated rows are kept."""
    kept, rejected = [], []
    for row in rows:
        found = None if row["meta"].get("generated") else excluded(row["question"], row["answer"], options)
        if found:
            rejected.append(rejection(row, "exclude", *found))
        else:
            kept.append(row)
    return kept, rejected
