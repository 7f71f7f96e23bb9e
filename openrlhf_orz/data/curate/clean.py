"""Stage 1: cleans questions and answers, and rejects answers that the training grader cannot use.

It can use an answer if it can parse it and finds it right against itself. Reasons of rejection: question_too_long,
question_empty, unshowable_characters, image (a picture was part of the question), figure_missing, answer_empty,
answer_too_long, answer_unparsable, answer_fails_itself, unknown_verifier.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from openrlhf_orz.data.curate.config import Clean
from openrlhf_orz.data.curate.normalise import clean_answer, clean_question, figure_missing, unshowable
from openrlhf_orz.data.curate.shards import split_rows
from openrlhf_orz.reward.extract import reference_of
from openrlhf_orz.reward.grader import Grader
from openrlhf_orz.reward.verdict import Verdict
from openrlhf_orz.reward.verifiers import VERIFIERS, ReasoningGym, make_verifier

# Numbers that the grader reads for certain: integers, decimals, fractions of integers. A test compares them with it.
_PLAIN = re.compile(r"-?(?:\d{1,15}(?:\.\d{1,15})?|\\[dt]?frac\{\d{1,9}\}\{0*[1-9]\d{0,8}\}|\d{1,9}/0*[1-9]\d{0,8})")
# What programs and data sets write for a missing value.
_MISSING = """
    none, null, nan, n/a, na, notfound, not found, not_found, not available, unavailable, unknown, unanswered, missing,
    tbd, no answer, no answer found, answer not found, not provided, not given, not specified, see solution
"""
_NO_ANSWER = frozenset(word.strip() for word in _MISSING.split(","))
_ASKED_AT_ONCE = 8


def plainly_fine(answer: str) -> bool:
    """Whether an answer is a number that is known to be right against itself, without the grader."""
    return _PLAIN.fullmatch(answer) is not None


class References:
    """Asks the training grader which answers it can use, once for each distinct answer; `close` ends its workers."""

    def __init__(self, workers: int | None = None, plain: bool = False):
        self._grader = Grader(workers=workers, plain=plain, shared=True)
        self._gym = ReasoningGym(workers=1)
        self._known: dict[str, str | None] = {}

    def check(self, answers: Iterable[str], verifier: str = "math") -> dict[str, str | None]:
        """Why each answer cannot be used (answer_unparsable, answer_fails_itself or unknown_verifier), or None."""
        if verifier == "reasoning_gym":
            return {answer: self._check_entry(answer) for answer in answers}
        if verifier not in VERIFIERS:
            return dict.fromkeys(answers, "unknown_verifier")
        if verifier != "math":
            named = make_verifier(verifier)
            return {answer: None if named.check_reference(answer) else "answer_unparsable" for answer in answers}
        wanted = dict.fromkeys(answers)
        unknown = [a for a in wanted if a not in self._known and not plainly_fine(a)]
        if len(self._known) > 500_000:
            self._known.clear()
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as threads:
            self._known.update(zip(unknown, threads.map(self._ask, unknown)))
        return {answer: self._known.get(answer) for answer in wanted}

    def _ask(self, answer: str) -> str | None:
        verdict = self._grader.reference_verdict(answer)
        if verdict is Verdict.RIGHT:
            return None
        return "answer_fails_itself" if verdict is Verdict.WRONG else "answer_unparsable"

    def _check_entry(self, answer: str) -> str | None:
        """The same for a reasoning-gym entry: its own answer must get the full score of its scorer."""
        if not self._gym.check_reference(answer):
            return "answer_unparsable"
        own = str(json.loads(answer).get("answer"))
        return None if self._gym.compare(own, answer)[0] is Verdict.RIGHT else "answer_fails_itself"

    def same(self, one: str, other: str) -> bool:
        """Whether the grader takes either answer for the other."""
        return any(self._grader.compare(a, b)[0] is Verdict.RIGHT for a, b in ((one, other), (other, one)))

    def close(self) -> None:
        self._grader.close()
        self._gym.close()


def clean_text(row: dict, options: Clean) -> tuple[str, str] | None:
    """Clean question and answer of a row in place; returns (reason, detail) if the row is rejected."""
    question, answer = row["question"], row["answer"]
    is_entry = row["meta"].get("verifier") == "reasoning_gym"
    if not is_entry:
        answer = reference_of(answer)
    if len(question) > options.max_question_chars:
        return "question_too_long", f"{len(question)} characters > {options.max_question_chars}"
    if len(answer) > options.max_answer_chars and not is_entry:
        return "answer_too_long", f"{len(answer)} characters > {options.max_answer_chars}"
    generated, lost = bool(row["meta"].get("generated")), False
    if not generated:
        question, lost = clean_question(question)
    if not is_entry:
        answer = clean_answer(answer)
    row["question"], row["answer"] = question, answer
    for what, text in (("question", question), ("answer", answer)):
        where = unshowable(text)
        if where:
            return "unshowable_characters", f"{what}: {where}"
    if not any(sign.isalnum() for sign in question):
        return "question_empty", "nothing is left of it"
    if not answer or re.sub(r"\\text\s*|[{}.\[\]<>()]", "", answer).strip().lower() in _NO_ANSWER:
        return "answer_empty", f"{answer!r}"
    if lost:
        return "image", "a picture was part of the question"
    if options.figures and not generated and figure_missing(question):
        return "figure_missing", "it points to a figure that is not there"
    return None


def clean(
    rows: Iterable[dict], options: Clean, check: Callable[..., dict[str, str | None]] | None
) -> tuple[list[dict], list[dict]]:
    """The kept rows, cleaned, and the rejections. `check` is `References.check`, or None for no check of answers."""
    passed, rejected = split_rows(rows, "clean", lambda row: clean_text(row, options))
    if check is None:
        return passed, rejected
    reasons: dict[str, dict[str, str | None]] = {}
    for verifier in {row["meta"].get("verifier", "math") for row in passed}:
        answers = [row["answer"] for row in passed if row["meta"].get("verifier", "math") == verifier]
        reasons[verifier] = check(answers, verifier)

    def judge(row: dict) -> tuple[str, str] | None:
        reason = reasons[row["meta"].get("verifier", "math")][row["answer"]]
        return (reason, f"answer {row['answer'][:80]!r}") if reason else None

    kept, refused = split_rows(passed, "clean", judge)
    return kept, rejected + refused
