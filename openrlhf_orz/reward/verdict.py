"""Verdict and grade: the results that workers, trainer and commands exchange."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Verdict(IntEnum):
    """The outcome of grading one answer. Only ``RIGHT`` can earn a reward.

    The numbers travel over the workers' sockets and must stay below 64.
    """

    RIGHT = 0
    WRONG = 1
    NO_ANSWER = 2  # no closed answer block, or no box in it, or an empty box
    UNPARSABLE = 3  # the answer (or the reference) is not a mathematical object
    REFUSED = 4  # the guard named in ``Grade.rule`` fired before any parsing
    TIMEOUT = 5  # the CPU-time budget (or the wall backstop) ran out
    CRASHED = 6  # the worker died on this answer, twice

    @property
    def label(self) -> str:
        """The verdict's lower-case name, as metrics and files spell it."""
        return self.name.lower()


@dataclass(frozen=True)
class Grade:
    """One graded response.

    ``reward`` is 1.0 or 0.0. ``extracted`` is the graded span, None if there was none.
    ``rule`` is the name in ``rules.RULES`` of what decided, None where no rule did.
    ``ms`` is the wall time of the call in milliseconds, queueing included.
    """

    verdict: Verdict
    reward: float
    extracted: str | None
    rule: str | None
    ms: float
