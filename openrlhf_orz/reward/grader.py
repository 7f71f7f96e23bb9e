"""The grader: from any response and its reference to a :class:`Grade`."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from openrlhf_orz.reward import extract, guards
from openrlhf_orz.reward.rules import RULES
from openrlhf_orz.reward.verdict import Grade, Verdict
from openrlhf_orz.reward.workers import wire
from openrlhf_orz.reward.workers.node import NodePool
from openrlhf_orz.reward.workers.pool import Pool

MAX_GOLD_CHARS = 8_000  # a longer reference is no answer, and would not fit a message


class Grader:
    """Grades responses in warm, killable worker processes. Thread-safe.

    This process never parses an answer. Workers start at first use and end with this process, also
    when it is killed.

    Args:
        workers: answers parsed at a time; None for the number of usable cores. Up to twice
            as many processes run while some answers are slow, so that they delay no others.
        memory_mib: address-space limit of a worker, MiB.
        cpu_seconds: CPU time an answer may take before it is a ``timeout``.
        wall_seconds: backstop in wall time, counted from hand-over to a worker.
        plain: Math-Verify alone, without the rules.
        require_agreement: several different boxes in one answer block are wrong.
        shared: use the node's one pool, together with all processes that ask for the same
            settings, rather than workers of this process alone.
    """

    def __init__(
        self,
        workers: int | None = None,
        memory_mib: int = 512,
        cpu_seconds: float = 1.5,
        wall_seconds: float = 30.0,
        plain: bool = False,
        require_agreement: bool = False,
        shared: bool = False,
    ):
        self.plain = plain
        self.require_agreement = require_agreement
        self._shared = shared
        self._limits = (workers, memory_mib, cpu_seconds, wall_seconds)
        self._lock = threading.Lock()
        self._process, self._own = os.getpid(), self._make()

    def _make(self) -> Pool | NodePool:
        return NodePool(*self._limits) if self._shared else Pool(*self._limits)

    @property
    def pool(self) -> Pool | NodePool:
        """The workers; a forked child gets its own, as it must not use its parent's sockets."""
        if self._process != os.getpid():
            with self._lock:
                if self._process != os.getpid():
                    self._own, self._process = self._make(), os.getpid()
        return self._own

    @property
    def workers(self) -> int:
        """Answers parsed at a time."""
        return self.pool.workers

    def read_reference(self, value: Any) -> str:
        """A reference, text or a number, as text. Raises TypeError or ValueError for anything else."""
        return extract.reference_text(value)

    def grade(self, response: str, gold: Any, stopped: bool = True) -> Grade:
        """Grade what the model wrote after the prompt against the reference.

        Blocks until there is a verdict. Raises for no response; TypeError for a reference that is not one
        (``read_reference``); RuntimeError when workers cannot start at all (Math-Verify is not installed, say).

        Args:
            response: the response text, without the prompt.
            gold: the reference answer, text or a number.
            stopped: False if the response was cut by length: its reward is then 0, and its
                verdict is the same as if it had not been cut.
        """
        begin = time.monotonic()
        verdict, extracted, rule = self._grade(response, self.read_reference(gold))
        reward = 1.0 if verdict is Verdict.RIGHT and stopped else 0.0
        return Grade(verdict, reward, extracted, rule, (time.monotonic() - begin) * 1e3)

    def _grade(self, response: str, gold: str) -> tuple[Verdict, str | None, str | None]:
        contents = extract.answer_boxes(response)
        if not contents or not contents[-1]:
            return Verdict.NO_ANSWER, None, None
        answer = contents[-1]
        if self.require_agreement and not extract.boxes_agree(contents):
            return Verdict.WRONG, answer, "boxes_disagree"
        return self.compare(answer, gold)

    def compare(self, answer: str, gold: str) -> tuple[Verdict, str, str | None]:
        """The verdict on an extracted answer, the answer, and the name of the rule that decided.

        The rule is None where none decided: the answer is unparsable, or ``plain`` asks Math-Verify alone.
        """
        gold = extract.reference_of(gold)
        if not self.plain and answer == gold.strip():
            return Verdict.RIGHT, answer, "identical"
        if not _is_gradable(gold):
            return Verdict.UNPARSABLE, answer, "reference"
        refused = guards.refusal(gold, answer)
        if refused:
            return Verdict.REFUSED, answer, refused
        verdict, rule = self.pool.ask(wire.JUDGE_PLAIN if self.plain else wire.JUDGE, gold, answer)
        return verdict, answer, RULES[rule] or None

    def reference_verdict(self, gold: str) -> Verdict:
        """The verdict on the reference as its own answer; UNPARSABLE also where it is blank or too long."""
        gold = extract.reference_of(gold)
        if not _is_gradable(gold):
            return Verdict.UNPARSABLE
        return self.pool.ask(wire.CHECK_REFERENCE_PLAIN if self.plain else wire.CHECK_REFERENCE, gold, "")[0]

    def check_reference(self, gold: str) -> bool:
        """Whether the reference parses and is right as its own answer; for use when data are loaded."""
        return self.reference_verdict(gold) is Verdict.RIGHT

    def close(self) -> None:
        """Kill the workers of this process. Not while other threads grade."""
        if self._process == os.getpid():
            self._own.close()

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def _is_gradable(gold: str) -> bool:
    return bool(gold.strip()) and len(gold) <= MAX_GOLD_CHARS
