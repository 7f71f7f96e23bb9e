"""Verifiers by name: ``make_verifier("letter")``. All have the interface of :class:`Verifier`.

``math``            the :class:`Grader`: Math-Verify and the rules
``letter``          multiple choice: the one letter that the answer is, or that stands before its content
``exact``           the reference's characters, without surrounding white space
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
from openrlhf_orz.reward.judge.notation import tidy_latex
from openrlhf_orz.reward.judge.shapes import option_of
from openrlhf_orz.reward.verdict import Grade, Verdict
from openrlhf_orz.reward.workers import wire


class Verifier(Protocol):
    """What a trainer or a command may call on any verifier."""

    def grade(self, response: str, gold: str, stopped: bool = True) -> Grade:
        """The grade of a response without its prompt; reward 0 if it was cut (``stopped`` False)."""

    def check_reference(self, gold: str) -> bool:
        """Whether the verifier can read the reference."""

    def close(self) -> None:
        """End its workers, if it has any."""


class _Comparison:
    """A verifier that compares extracted answers in this process, without workers.

    Args:
        key: what must be equal in the reference and the answer; None where a text has none.
        rule: the name of the rule in the grades.
    """

    def __init__(self, key: Callable[[str], str | None], rule: str):
        self._key, self._rule = key, rule

    def grade(self, response: str, gold: str, stopped: bool = True) -> Grade:
        begin = time.monotonic()
        answer = extract.extract_answer(response)
        verdict, rule = (Verdict.NO_ANSWER, None) if answer is None else self._compare(answer, gold)
        reward = 1.0 if verdict is Verdict.RIGHT and stopped else 0.0
        return Grade(verdict, reward, answer, rule, (time.monotonic() - begin) * 1e3)

    def _compare(self, answer: str, gold: str) -> tuple[Verdict, str]:
        if len(answer) > max(guards.MAX_ANSWER_CHARS, 2 * len(gold)):
            return Verdict.REFUSED, "length"
        wanted = self._key(gold)
        right = wanted is not None and wanted == self._key(answer)
        return (Verdict.RIGHT if right else Verdict.WRONG), self._rule

    def check_reference(self, gold: str) -> bool:
        return self._key(gold) is not None

    def close(self) -> None:
        pass


_ANY = re.compile("")


def letter_of(text: str) -> str | None:
    """The one choice letter that ``text`` is (``(B)``, ``$B$``, ``\\text{Option B}``), or that stands
    before its content (``B. 12``, ``B = 12``), upper case. None where it names several.
    """
    option = option_of(tidy_latex(text), ".:,=", _ANY)
    return option.letter if option else None


class ReasoningGym(Grader):
    """Scores answers with the scorer of the reference's ``metadata.source_dataset``.

    The scorer runs in the Grader's workers, under the same limits: scorers evaluate what the
    model wrote. The worker's Python needs the package ``reasoning-gym``.
    """

    def compare(self, answer: str, gold: str) -> tuple[Verdict, str, str | None]:
        if len(answer) > guards.MAX_ANSWER_CHARS:
            return Verdict.REFUSED, answer, "length"
        if not self.check_reference(gold):
            return Verdict.UNPARSABLE, answer, "reference"
        verdict, _ = self.pool.ask(wire.REASONING_GYM, gold, answer)
        return verdict, answer, "reasoning_gym"

    def reference_verdict(self, gold: str) -> Verdict:
        """RIGHT if the reference is a reasoning-gym entry that names its data set, else UNPARSABLE."""
        try:
            named = isinstance(json.loads(gold)["metadata"]["source_dataset"], str)
        except (ValueError, TypeError, KeyError, RecursionError):
            named = False
        return Verdict.RIGHT if named and len(gold) < wire.MAX_MESSAGE_BYTES // 4 else Verdict.UNPARSABLE


VERIFIERS: dict[str, Callable[..., Verifier]] = {
    "math": Grader,
    "letter": lambda **_: _Comparison(letter_of, "letter"),
    "exact": lambda **_: _Comparison(lambda text: text.strip() or None, "exact"),
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
