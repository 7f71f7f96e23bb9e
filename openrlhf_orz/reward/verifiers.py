"""Verifiers by name: ``make_verifier("letter")``. All have the interface of :class:`Verifier`.

``math``            the :class:`Grader`: rules on what Math-Verify parses
``letter``          multiple choice: the one letter that the answer is, or that stands before its content
``exact``           the reference's characters, without surrounding white space
``reasoning_gym``   a reasoning-gym scorer that only compares, in the Grader's workers; the reference is the
                    data set entry, and only the full score is right

Training, evaluation, curation and the commands take their verifiers from here: a row names one, or none and has the
default. A row's verifier travels to the engines within its label (:func:`pack_label`).
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from openrlhf_orz.reward import extract, guards
from openrlhf_orz.reward.grader import Grader
from openrlhf_orz.reward.judge.notation import tidy_latex
from openrlhf_orz.reward.judge.shapes import option_of
from openrlhf_orz.reward.verdict import Grade, Verdict
from openrlhf_orz.reward.workers import wire
from openrlhf_orz.reward.workers.gym import SCORERS


class Verifier(Protocol):
    """What a trainer or a command may call on any verifier."""

    def read_reference(self, value: Any) -> str:
        """A reference as data sets have it, as text. TypeError says what the verifier takes."""

    def grade(self, response: str, gold: Any, stopped: bool = True) -> Grade:
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

    def read_reference(self, value: Any) -> str:
        return extract.reference_text(value)

    def grade(self, response: str, gold: Any, stopped: bool = True) -> Grade:
        begin = time.monotonic()
        gold, answer = self.read_reference(gold), extract.extract_answer(response)
        verdict, rule = (Verdict.NO_ANSWER, None) if answer is None else self._compare(answer, gold)
        reward = 1.0 if verdict is Verdict.RIGHT and stopped else 0.0
        return Grade(verdict, reward, answer, rule, (time.monotonic() - begin) * 1e3)

    def _compare(self, answer: str, gold: str) -> tuple[Verdict, str]:
        refused = guards.refusal(gold, answer)
        if refused:
            return Verdict.REFUSED, refused
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
    option = option_of(tidy_latex(extract.reference_of(text)), ".:,=", _ANY)
    return option.letter if option else None


class ReasoningGym(Grader):
    """Scores answers with the scorer of the reference's ``metadata.source_dataset``.

    The reference is an entry of a reasoning-gym data set, as an object or as its JSON. Only scorers in ``SCORERS``
    are used: the others run answers or references as code. They run in the Grader's workers, under the same limits.
    The worker's Python needs the package ``reasoning-gym``.
    """

    def read_reference(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, dict):
            return json.dumps(value)
        raise TypeError(f"a reasoning-gym entry is expected, as an object or as JSON text, not {value!r:.80}")

    def compare(self, answer: str, gold: str) -> tuple[Verdict, str, str | None]:
        if len(answer) > max(guards.MAX_ANSWER_CHARS, len(gold)):
            return Verdict.REFUSED, answer, "length"
        readable = self.reference_verdict(gold)
        if readable is not Verdict.RIGHT:
            return readable, answer, "reference"
        verdict, _ = self.pool.ask(wire.REASONING_GYM, gold, answer)
        return verdict, answer, "reasoning_gym"

    def reference_verdict(self, gold: str) -> Verdict:
        """RIGHT for an entry of a data set in ``SCORERS``, REFUSED for one of another, UNPARSABLE for no entry.

        An entry without an answer ("no solution" of some tasks) is none: no box could say it.
        """
        try:
            item = json.loads(gold)
            name = item["metadata"]["source_dataset"]
            if name in SCORERS and not str(item["answer"]).strip():
                name = None
        except (ValueError, TypeError, KeyError, RecursionError):
            name = None
        if not isinstance(name, str) or len(gold) >= wire.MAX_MESSAGE_BYTES // 4:
            return Verdict.UNPARSABLE
        return Verdict.RIGHT if name in SCORERS else Verdict.REFUSED


VERIFIERS: dict[str, Callable[..., Verifier]] = {
    "math": Grader,
    "letter": lambda **_: _Comparison(letter_of, "letter"),
    "exact": lambda **_: _Comparison(lambda text: text.strip() or None, "exact"),
    "reasoning_gym": ReasoningGym,
}


def reference_problem(verifier: Verifier, gold: str) -> str | None:
    """Why the verifier cannot use a reference that it has read; None if it can."""
    if verifier.check_reference(gold):
        return None
    if isinstance(verifier, ReasoningGym) and verifier.reference_verdict(gold) is Verdict.REFUSED:
        name = json.loads(gold)["metadata"]["source_dataset"]
        return unsafe_scorer(name)
    return f"reference {gold[:80]!r}"


def unsafe_scorer(task: str) -> str:
    """What to tell about a reasoning-gym task that is not in ``SCORERS``."""
    return (
        f"reasoning-gym's scorer of {task!r} may run an answer as code: only those listed in SCORERS"
        " (reward/workers/gym.py), which compare, are used. Use the verifier math or exact with the task's answer,"
        " or another task"
    )


def make_verifier(name: str, **options) -> Verifier:
    """The verifier of that name; ``options`` are those of :class:`Grader`, where they apply.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in VERIFIERS:
        raise ValueError(f"no verifier is called {name!r}; there are {', '.join(sorted(VERIFIERS))}")
    return VERIFIERS[name](**options)


class VerifierSet:
    """The verifiers that rows name, each made at first use. Thread-safe.

    Args:
        default: the verifier of rows that name none.
        options: as for :func:`make_verifier`.

    Raises ValueError for unknown names, here for ``default`` and in ``named``.
    """

    def __init__(self, default: str = "math", **options: Any):
        self._default, self._options = default, options
        self._lock, self._made = threading.Lock(), dict[str, Verifier]()
        if default not in VERIFIERS:
            make_verifier(default)

    def named(self, name: str | None = None) -> Verifier:
        """The verifier of that name; of none, the default."""
        name = name or self._default
        with self._lock:
            if name not in self._made:
                self._made[name] = make_verifier(name, **self._options)
            return self._made[name]

    def close(self) -> None:
        for verifier in self._made.values():
            verifier.close()

    def __enter__(self) -> VerifierSet:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


# A label crosses OpenRLHF as text. What is more than text begins with this mark.
_PACKED = "orz-label:"


def pack_label(label: Any, verifier: str | None = None) -> str:
    """A label (any JSON value) and its row's verifier as one text; a label alone that is text stays as it is."""
    if isinstance(label, str) and verifier is None and not label.startswith(_PACKED):
        return label
    return _PACKED + json.dumps({"label": label} | ({"verifier": verifier} if verifier else {}))


def unpack_label(text: Any) -> tuple[Any, str | None]:
    """(label, verifier) of what ``pack_label`` returned; anything else is the label itself."""
    if not isinstance(text, str) or not text.startswith(_PACKED):
        return text, None
    packed = json.loads(text.removeprefix(_PACKED))
    return packed["label"], packed.get("verifier")
