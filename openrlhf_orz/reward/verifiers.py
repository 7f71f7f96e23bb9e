"""Other verifiers, by name: ``make_verifier("letter")``. All grade as the :class:`Grader` does.

``math``            Math-Verify with the mends; options are the Grader's
``letter``          multiple choice: the letter, bare, bracketed, in text, or before its content
``exact``           the reference's own characters, surrounding white space aside
``reasoning_gym``   a reasoning-gym scorer, in the Grader's workers; the reference is the data set
                    entry as JSON, and only the full score is right
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Protocol

from openrlhf_orz.reward import extract, guards
from openrlhf_orz.reward.grader import Grader
from openrlhf_orz.reward.verdict import Grade, Verdict
from openrlhf_orz.reward.workers import wire


class Verifier(Protocol):
    """What the trainer, the commands and the servers need of a verifier."""

    def grade(self, response: str, gold: str, stopped: bool = True) -> Grade: ...

    def check_reference(self, gold: str) -> bool: ...

    def close(self) -> None: ...


class _Comparison:
    """A verifier of extracted answers that needs no workers."""

    def __init__(self, same: Callable[[str, str], bool], readable: Callable[[str], bool], rule: str):
        self._same, self._readable, self._rule = same, readable, rule

    def grade(self, response: str, gold: str, stopped: bool = True) -> Grade:
        begin = time.monotonic()
        answer = extract.extract_answer(response)
        if answer is None:
            verdict, rule = Verdict.NO_ANSWER, None
        elif len(answer) > max(guards.MAX_CHARS, 2 * len(gold)):
            verdict, rule = Verdict.REFUSED, "length"
        else:
            verdict, rule = (Verdict.RIGHT if self._same(gold, answer) else Verdict.WRONG), self._rule
        reward = 1.0 if verdict is Verdict.RIGHT and stopped else 0.0
        return Grade(verdict, reward, answer, rule, (time.monotonic() - begin) * 1e3)

    def check_reference(self, gold: str) -> bool:
        return self._readable(gold)

    def close(self) -> None:
        pass


_LETTER = re.compile(
    r"(?:\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{)*\s*\(?\s*([A-Za-z])(?![A-Za-z])\s*\}*\s*(?:[).:]|$|\\|\})"
)


def letter_of(text: str) -> str | None:
    """The choice letter that ``text`` is or begins with (``(B)``, ``B.``, ``\\text{B) 12}``), upper case."""
    match = _LETTER.match(text.strip())
    return match.group(1).upper() if match else None


class ReasoningGym(Grader):
    """Scores answers with the scorer of the reference's ``metadata.source_dataset``.

    The scorer runs in the Grader's workers, under the same limits: scorers evaluate what the
    model wrote. The worker's Python needs the package ``reasoning-gym``.
    """

    def compare(self, answer: str, gold: str) -> tuple[Verdict, str, str | None]:
        if len(answer) > guards.MAX_CHARS:
            return Verdict.REFUSED, answer, "length"
        if not self.check_reference(gold):
            return Verdict.UNPARSABLE, answer, "reference"
        verdict, _ = self.pool.ask(wire.REASONING_GYM, gold, answer)
        return verdict, answer, "reasoning_gym"

    def check_reference(self, gold: str) -> bool:
        """Whether the reference is a reasoning-gym entry that names its data set."""
        try:
            entry = json.loads(gold)
            return isinstance(entry["metadata"]["source_dataset"], str) and len(gold) < wire.MAX_BYTES // 4
        except (ValueError, TypeError, KeyError):
            return False


VERIFIERS: dict[str, Callable[..., Verifier]] = {
    "math": Grader,
    "letter": lambda **_: _Comparison(
        lambda gold, answer: letter_of(gold) is not None and letter_of(gold) == letter_of(answer),
        lambda gold: letter_of(gold) is not None,
        "letter",
    ),
    "exact": lambda **_: _Comparison(
        lambda gold, answer: gold.strip() == answer.strip(), lambda gold: bool(gold.strip()), "exact"
    ),
    "reasoning_gym": ReasoningGym,
}


def make_verifier(name: str, **options) -> Verifier:
    """The verifier of that name; ``options`` are those of :class:`Grader`, where they apply.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in VERIFIERS:
        raise ValueError(f"no verifier is called {name!r}; there are {', '.join(sorted(VERIFIERS))}")
    return VERIFIERS[name](**options)
