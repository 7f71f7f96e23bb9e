"""Stage 2: leaves out questions that a 0/1 reward on one final answer cannot judge.

The kinds are multiple_choice, multi_part, proof, proof_and_answer, open_ended and guessable, each a switch of the
configuration. Each kind has rules; the first rule that fires decides, and rejected.jsonl names it as the detail. A
rule here returns its name, or None.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from openrlhf_orz.data.curate.choices import ASKS, labelled, multi_part_rule, multiple_choice_rule, plain_latex
from openrlhf_orz.data.curate.config import Exclude
from openrlhf_orz.data.curate.shards import split_rows

# ---- proofs

_PROVE = re.compile(
    r"(?:^|[.?!:;,)\]$}\n]\s*"
    r"|\b(?:and|then|to|hence|thus|also|please|now|or|first|furthermore|moreover|must|should|you|either)\s+"
    r"|\(?[a-eivx\d]{1,3}\)\s*|“|\")(?:prove|disprove|demonstrate|justify)\b(?!n)"
    r"|\b(?:prove|demonstrate)\s+(?:that|the|it|this|your|whether|or disprove|if|there|for|by|each|$)"
    r"|\b(?:give|provide|write|present|construct)\s+(?:a|an|the|your|me)?\s*(?:\w+\s+){0,2}proof\b"
    r"|\bproof\s+(?:that|of)\b|\bwith (?:a )?(?:proof|justification)\b|\bdisprove\b"
    r"|(?:^|[.?!:;]\s*|\b(?:and|then)\s+)argue\s+(?:that|why|by)\b",
    re.I,
)
_SHOW = re.compile(
    r"(?:^|[.?!:;,)\]$}\n]\s*|\b(?:and|then|to|hence|thus|also|please|now|first|must)\s+|\(?[a-eivx\d]{1,3}\)\s*)"
    r"(?:show|verify|establish|deduce|conclude|confirm|check)\b\s*:?\s*"
    r"(?:,?\s*(?:by|using|with|without|for|in)\b[^.?]{0,80}?,?\s*)?"
    r"(?:that\b|the (?:following|identity|inequality|equality|relation|statement|claim|formula)\b|if\b"
    r"|there (?:is|are|exists?)\b|(?:algebraically|geometrically|rigorously|formally)\b|why\b|:"
    r"|[^.?!]{1,80}?(?:=|<|>|\\(?:leq?|geq?|neq?|equiv|parallel|perp|cong|sim|in|mid|mathrel)(?![A-Za-z])|[≤≥≠≡∥⊥≅])"
    r"(?=[^?]*$))",
    re.I,
)
_NOT_IMPERATIVE = re.compile(
    r"\b(?:can|could|may|might|(?<!you )will|would|was|were|is|are|be|been|being|has|have|had|he|she|they|we|who|which"
    r"|that|tried|wants?|able|used|trying|wishes|failed|managed|attempts?|easy|possible|shall|did|does|not|needs?"
    r"|theorem|mathematicians?)\s+(?:also\s+|then\s+|easily\s+|now\s+|first\s+|to\s+)*$",
    re.I,
)
_CN_PROVE = re.compile(r"证明|求证|试证|证：|说明理由|给出理由|证得")
_CN_GIVEN = re.compile(r"(?:已|可以|可|能|被|曾|不难|需要|定理的)证明")
_ANSWER_PROOF = re.compile(
    r"\W*(?:proof|proved|proven|see (?:the )?(?:proof|solution|explanation|below)|q\.?\s*e\.?\s*d\.?"
    r"|\\(?:blacksquare|square|qed)|证明见解析|证明略|见解析|略|见证明"
    r"|(?:the )?(?:statement|claim|inequality|identity|result) (?:is|has been) (?:proved|proven|true)"
    r"|omitted|(?:shown|proved) above)\W*",
    re.I,
)
# A look for these spares most questions the long patterns.
_MIGHT_BE = {
    _PROVE: re.compile("prov|proof|demonstrat|justif|argue"),
    _SHOW: re.compile("show|verif|establish|deduce|conclude|confirm|check"),
}


def _imperative(pattern: re.Pattern, flat: str) -> bool:
    """Whether `pattern` occurs as a task, and not in a story or as "it can be shown that"."""
    if not _MIGHT_BE[pattern].search(flat.lower()):
        return False
    for found in pattern.finditer(flat):
        verb = re.search(r"[A-Za-z]+", found.group())
        before = flat[max(0, found.start() - 40) : found.start() + (len(found.group()) - len(found.group().lstrip()))]
        word = found.group().lstrip(' .?!:;,)]$}\n“"')
        lead = re.match(r"(?:to|or|and|also|then)\b", word, re.I)
        if lead and _NOT_IMPERATIVE.search(before):
            continue
        begins = flat[: found.start() + 1]
        if verb and not lead and _NOT_IMPERATIVE.search(before) and not re.search(r"[.?!:;]\s*$", begins):
            continue
        return True
    return False


def proof_rule(flat: str, answer: str) -> str | None:
    """The rule by which a question (as `plain_latex` gives it) with this answer is left out."""
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
    r"(?:^|[.?!:;]\s+|\n\s*|\b(?:and|then)\s+)(?:please\s+)?"
    r"(?:discuss|describe|explain|comment on|interpret|compare and contrast|sketch|draw|plot"
    r"|graph (?:the|each|this|y|f)|illustrate|design|propose|suggest|invent|outline|summari[sz]e|reflect"
    r"|(?:write|compose) (?:a|an) (?:short )?(?:essay|paragraph|story|poem|program|report|letter|proof|word problem)"
    r"|(?:give|find|provide|construct|write|exhibit|produce) (?:an?|some|one|two|three) (?:\w+ ){0,2}"
    r"(?:examples?|counter-?examples?|explanation|reason|interpretation)"
    r"|construct (?:a|an|the|with|using)\b|make up (?:a|an)\b|come up with)\b"
    r"|\b(?:give|state|provide|with) (?:your |a |the )?(?:reasons?|reasoning|justification|explanation)\b"
    r"(?! (?:for|that) (?:\w+ ){0,3}(?:failed|late))"
    r"|\bexplain (?:why|how|your|the|what|in)\b|\bjustify (?:your|the|each)\b|\bin your own words\b"
    r"|\bwhat do you (?:think|notice|observe|conclude)\b"
    r"|\bwhy (?:is|are|does|do|did|must|can(?:not|'t)?|should|was|were)\b[^.?]{0,120}\?"
    r"|\b(?:how would you|do you agree)\b",
    re.I,
)
_CN_OPEN = re.compile(
    r"谈谈|举例说明|请解释|简述|论述|画出.{0,12}(?:图|图像|示意图)|为什么|你(?:认为|发现|的看法)|尺规作图|作图"
)
_MIGHT_BE_OPEN = re.compile(
    r"discuss|descri|expla|comment|interpret|compare|sketch|draw|plot|graph|illustrat|design|propos|suggest|invent"
    r"|outlin|summar|reflect|essay|paragraph|story|poem|word problem|example|reason|construct|make up|come up|justif"
    r"|own words|do you|why |would you"
)
_WRITING = re.compile(r"explain (?:why|your|how)|justify|reasons?|in your own words|essay|discuss|describe", re.I)
_OPEN_NUMBER = re.compile(r"\W*-?\$?\s*\d[\d,]*(?:\.\d+)?\W*|.*\\frac.*")


def open_ended_rule(flat: str, answer: str) -> str | None:
    """The rule by which a question (as `plain_latex` gives it) with this answer is left out."""
    if _CN_OPEN.search(flat) and not _OPEN_NUMBER.fullmatch(answer):
        return "open task (Chinese)"
    found = _OPEN.search(flat) if _MIGHT_BE_OPEN.search(flat.lower()) else None
    if not found:
        return None
    # With a number as the answer the open words were a figure of speech, or stood beside a question.
    if _OPEN_NUMBER.fullmatch(answer) and (ASKS.search(flat) or not _WRITING.search(found.group())):
        return None
    return "open task"


# ---- guessable

# Answers that a guess meets half the time.
_TWO_WAY_ANSWERS = """
    yes, no, true, false, correct, incorrect, right, wrong, possible, impossible, exists, exist, does not exist,
    doesn't exist, it is possible, it is impossible, it is not possible, not possible, yes it is, no it is not,
    yes it does, no it does not, yes he can, no he cannot, yes they can, yes she can, yes it is possible,
    no it is not possible, it does, it does not, always, never, sometimes, it is, it is not, even, odd, rational,
    irrational, convergent, divergent, converges, diverges, heads, tails, yes there is, no there is not,
    yes there does, there is, there is not, yes there are, no there are not, can, cannot, can not, valid, invalid,
    sure, agree, disagree, prime, composite, not prime, 是, 否, 对, 错, 正确, 错误, 能, 不能, 可以, 不可以, 存在,
    不存在, 会, 不会, 有, 没有, √, ×, 真, 假, oui, non, si, sí, ja, nein, да, нет, не существует, существует
"""
_TWO_WAY = frozenset(answer.strip() for answer in _TWO_WAY_ANSWERS.split(","))
_WINS = r" (?:wins|always wins|has (?:a|the) winning strategy|can win|will win)"
_PLAYERS = re.compile(
    rf"(?:the )?(?:first|second|1st|2nd|starting|beginning) (?:player|one|person)(?:{_WINS})?"
    rf"|(?:player )?(?:one|two|a|b|1|2|\w+)(?:{_WINS})|先手.{{0,4}}|后手.{{0,4}}|甲|乙",
    re.I,
)
_WINNER = re.compile(
    r"\bwho\b[^.?]{0,80}\b(?:wins?|winning|winner|victory)\b"
    r"|\bwhich (?:player|of (?:the|them|two))\b[^.?]{0,80}\b(?:win|wins|winning|strategy)\b"
    r"|\bwinning strategy\b|必胜|获胜策略",
    re.I,
)
_ANSWER_YES_NO = re.compile(
    r"\b(?:answer|respond|reply|write|state|enter|say|type|indicate|output|print)s?\s*"
    r"(?:with|by|in|either|only|using|simply|whether)?\s*(?:only|either|just|a)?\s*:?"
    r"\s*[\"'“‘*\\(]*(?:text\w*\{)?(?:yes|no|true|false|correct|possible)[\"'”’*)}]*\s*"
    r"(?:,|/|or|and)\s*(?:\"|'|“|‘|\*|\\text\w*\{)*(?:no|yes|false|true|incorrect|impossible)\b"
    r"|\b(?:yes or no|yes/no|yes-or-no|true or false|true/false|true-or-false|t/f)\b"
    r"|\(\s*(?:yes|true|y|t)\s*[/,|]\s*(?:no|false|n|f)\s*\)"
    r"|(?:判断题|判断(?:正误|对错)|对还是错|是或否|[(（]\s*(?:对|√)\s*[/或]\s*(?:错|×)\s*[)）])",
    re.I,
)


def guessable_rule(flat: str, answer: str) -> str | None:
    """The rule by which a question (as `plain_latex` gives it) with this answer is left out."""
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


# ---- the stage


def excluded(question: str, answer: str, options: Exclude) -> tuple[str, str] | None:
    """(kind, rule) if a question with this answer is left out, None if it is kept."""
    flat = plain_latex(question)
    lists = labelled(flat)
    if options.multi_part and (rule := multi_part_rule(flat, lists, answer)):
        return "multi_part", rule
    if options.multiple_choice and (rule := multiple_choice_rule(flat, lists, answer)):
        return "multiple_choice", rule
    if rule := proof_rule(flat, answer):
        mixed = bool(ASKS.search(flat)) and rule != "the answer is a proof"
        if options.proof_and_answer if mixed else options.proof:
            return ("proof_and_answer" if mixed else "proof"), rule
    if options.guessable and (rule := guessable_rule(flat, answer)):
        return "guessable", rule
    if options.open_ended and (rule := open_ended_rule(flat, answer)):
        return "open_ended", rule
    return None


def exclude(rows: Iterable[dict], options: Exclude) -> tuple[list[dict], list[dict]]:
    """The kept rows and the rejections; generated rows are kept."""

    def judge(row: dict) -> tuple[str, str] | None:
        return None if row["meta"].get("generated") else excluded(row["question"], row["answer"], options)

    return split_rows(rows, "exclude", judge)
