"""Stage 2: questions as clean text, and answers that the training grader can read and finds right against themselves.

Reasons: question_too_long, question_empty, unshowable_characters, image (a picture was part of the question),
figure_missing, answer_empty, answer_too_long, answer_unparsable, answer_fails_itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from openrlhf_orz.data.curate import normalise
from openrlhf_orz.data.curate.config import Clean
from openrlhf_orz.data.curate.shards import rejection
from openrlhf_orz.reward.grader import Grader
from openrlhf_orz.reward.verdict import Verdict
from openrlhf_orz.reward.verifiers import ReasoningGym

# Numbers that the grader is known to read: integers, decimals, fractions of integers. A test holds this.
_PLAIN = re.compile(r"-?(?:\d{1,15}(?:\.\d{1,15})?|\\[dt]?frac\{\d{1,9}\}\{0*[1-9]\d{0,8}\}|\d{1,9}/0*[1-9]\d{0,8})")
_NO_ANSWER = {"None", "none", "null", "nan", "NaN", "N/A", "n/a"}  # what programs write for a missing value
_ASKED_AT_ONCE = 8


def plainly_fine(answer: str) -> bool:
    """Whether an answer is a number that needs no grader to be known as right against itself."""
    return _PLAIN.fullmatch(answer) is not None


class References:
    """Which answers the training grader can read, asked once for each distinct one; `close` ends its workers."""

    def __init__(self, workers: int | None = None, plain: bool = False):
        self._grader = Grader(workers=workers, plain=plain, shared=True)
        self._gym = ReasoningGym(workers=1)
        self._known: dict[str, str | None] = {}

    def check(self, answers: Iterable[str], verifier: str = "math") -> dict[str, str | None]:
        """For each answer None, or why it cannot be used: answer_unparsable or answer_fails_itself."""
        if verifier == "reasoning_gym":
            return {answer: self._check_entry(answer) for answer in answers}
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
        """A reasoning-gym entry's own answer must have its scorer's full score."""
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
    """Clean the question and answer of a row in place; (reason, detail) when it must go."""
    question, answer = row["question"], row["answer"]
    own_verifier = row["meta"].get("verifier") == "reasoning_gym"
    if len(question) > options.max_question_chars:
        return "question_too_long", f"{len(question)} characters > {options.max_question_chars}"
    if len(answer) > options.max_answer_chars and not own_verifier:
        return "answer_too_long", f"{len(answer)} characters > {options.max_answer_chars}"
    if not row["meta"].get("generated"):
        question, lost = normalise.question(question)
    else:
        lost = False
    if not own_verifier:
        answer = normalise.answer(answer)
    row["question"], row["answer"] = question, answer
    for what, text in (("question", question), ("answer", answer)):
        where = normalise.unshowable(text)
        if where:
            return "unshowable_characters", f"{what}: {where}"
    if not any(sign.isalnum() for sign in question):
        return "question_empty", "nothing is left of it"
    if not answer or answer in _NO_ANSWER:
        return "answer_empty", f"{answer!r}"
    if lost:
        return "image", "a picture was part of the question"
    if options.figures and not row["meta"].get("generated") and normalise.figure_missing(question):
        return "figure_missing", "it points to a figure that is not there"
    return None


def clean(
    rows: Iterable[dict], options: Clean, check: Callable[..., dict[str, str | None]] | None
) -> tuple[list[dict], list[dict]]:
    """The kept rows, cleaned, and the rejections; `check` is `References.check`, None to leave answers unchecked."""
    passed, rejected = [], []
    for row in rows:
        refused = clean_text(row, options)
        if refused:
            rejected.append(rejection(row, "clean", *refused))
        else:
            passed.append(row)
    if check is None:
        return passed, rejected
    kept = []
    verdicts: dict[str, dict[str, str | None]] = {}
    for verifier in ("math", "reasoning_gym"):
        answers = [row["answer"] for row in passed if row["meta"].get("verifier", "math") == verifier]
        verdicts[verifier] = check(answers, verifier) if answers else {}
    for row in passed:
        reason = verdicts[row["meta"].get("verifier", "math")][row["answer"]]
        if reason:
            rejected.append(rejection(row, "clean", reason, f"answer {row['answer'][:80]!r}"))
        else:
            kept.append(row)
    return kept, rejected
