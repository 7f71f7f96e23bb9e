"""The grader: from a response and a reference to a :class:`Grade`, whatever the response."""

from __future__ import annotations

import os
import threading
import time

from openrlhf_orz.reward import extract, guards
from openrlhf_orz.reward.mends import MENDS
from openrlhf_orz.reward.verdict import Grade, Verdict
from openrlhf_orz.reward.workers import wire
from openrlhf_orz.reward.workers.node import NodePool
from openrlhf_orz.reward.workers.pool import Pool

MAX_GOLD_CHARS = 8_000  # a longer reference is no answer, and would not fit a message
_RULE_NAMES = {**dict(enumerate(MENDS, 1)), 63: "identical"}


class Grader:
    """Grades responses in warm, killable worker processes. Thread-safe.

    Nothing of an answer is parsed in this process. Workers start at first use and end with
    this process, also when it is killed.

    Args:
        workers: answers parsed at a time; None for the number of usable cores. Up to twice
            as many processes run while some answers are slow, so that they delay no others.
        memory_mib: address-space limit of a worker, MiB.
        cpu_seconds: CPU time an answer may take before it is a ``timeout``.
        wall_seconds: backstop in wall time, counted from hand-over to a worker.
        plain: bare Math-Verify, without the mends.
        require_agreement: several different boxes in one answer block are wrong.
        shared: use the node's one pool, together with all processes that ask for the same
            settings, rather than workers of this process's own.
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
        self._make = lambda: (NodePool if shared else Pool)(workers, memory_mib, cpu_seconds, wall_seconds)
        self._lock = threading.Lock()
        self._process, self._own = os.getpid(), self._make()

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

    def grade(self, response: str, gold: str, stopped: bool = True) -> Grade:
        """Grade what the model wrote after the prompt against the reference.

        Blocks until there is a verdict. Raises for no input; RuntimeError when workers cannot
        start at all (Math-Verify is not installed, say).

        Args:
            response: the response text, without the prompt.
            gold: the reference answer.
            stopped: False if the response was cut by length; its reward is then 0, its verdict
                is reported all the same.
        """
        begin = time.monotonic()
        verdict, extracted, rule = self._grade(response, gold)
        reward = 1.0 if verdict is Verdict.RIGHT and stopped else 0.0
        return Grade(verdict, reward, extracted, rule, (time.monotonic() - begin) * 1e3)

    def _grade(self, response: str, gold: str) -> tuple[Verdict, str | None, str | None]:
        contents = extract.candidates(response)
        if not contents or not contents[-1]:
            return Verdict.NO_ANSWER, None, None
        answer = contents[-1]
        if self.require_agreement and not extract.agree(contents):
            return Verdict.WRONG, answer, "boxes_disagree"
        return self.compare(answer, gold)

    def compare(self, answer: str, gold: str) -> tuple[Verdict, str, str | None]:
        """The verdict on an extracted answer, the answer, and the guard or mend that decided."""
        if not self.plain and answer == gold.strip():
            return Verdict.RIGHT, answer, "identical"
        if not gold.strip() or len(gold) > MAX_GOLD_CHARS:
            return Verdict.UNPARSABLE, answer, "reference"
        refused = guards.refusal(gold, answer)
        if refused:
            return Verdict.REFUSED, answer, refused
        verdict, rule = self.pool.ask(wire.JUDGE_PLAIN if self.plain else wire.JUDGE, gold, answer)
        return verdict, answer, _RULE_NAMES.get(rule)

    def check_reference(self, gold: str) -> bool:
        """Whether the reference parses and is right as its own answer; for use when data are loaded."""
        if not gold.strip() or len(gold) > MAX_GOLD_CHARS:
            return False
        task = wire.CHECK_REFERENCE_PLAIN if self.plain else wire.CHECK_REFERENCE
        return self.pool.ask(task, gold, "")[0] is Verdict.RIGHT

    def close(self) -> None:
        """Kill the workers of this process. Not while other threads grade."""
        if self._process == os.getpid():
            self._own.close()

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *exc) -> None:
        self.close()
