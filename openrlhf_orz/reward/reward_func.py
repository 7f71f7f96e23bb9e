"""Reward function for stock OpenRLHF: ``--reward.remote_url path/to/reward_func.py``.

No patch is needed. OpenRLHF loads this file by path in each engine and calls it from threads,
one response at a time; all engines of a node share one grading pool. Stock OpenRLHF does not
say how generation ended. A response cut by length is therefore graded like any other: without a
closed answer block it earns nothing. Stop strings cannot be set here.

The environment variable ``ORZ_VERIFIER`` names a verifier other than ``math``.
"""

from __future__ import annotations

import os
import sys
import threading

if "openrlhf_orz" not in sys.modules:  # loaded by path from a checkout that is not installed
    _root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if _root not in sys.path:
        sys.path.append(_root)

from openrlhf_orz.reward.verdict import Verdict
from openrlhf_orz.reward.verifiers import Verifier, make_verifier

_lock = threading.Lock()
_verifier: Verifier | None = None


def verifier() -> Verifier:
    """The verifier of this process, made at first use."""
    global _verifier
    with _lock:
        if _verifier is None:
            _verifier = make_verifier(os.environ.get("ORZ_VERIFIER", "math"), shared=True)
    return _verifier


def response_of(query: str, prompt: str) -> str:
    """The response in ``query`` = prompt + response; the prompt names the tags, so it must go.

    OpenRLHF decodes the query from tokens: a truncated prompt has lost its beginning, and special
    tokens or spaces may differ. The response then starts after the longest end of the prompt that
    the query contains, or else after the first ``<think>``.
    """
    if query.startswith(prompt):
        return query[len(prompt) :]
    for length in (len(prompt), 400, 100, 30):
        end = prompt[-length:]
        position = query.find(end) if end else -1
        if position >= 0:
            return query[position + len(end) :]
    return query[query.find("<think>") + len("<think>") :] if "<think>" in query else query


def reward_func(queries: list[str], prompts: list[str], labels: list[str], **kwargs) -> dict:
    """Rewards of ``queries`` (prompt and response, as text) against the references ``labels``.

    Returns:
        ``rewards`` and ``scores`` (a float for one query, else a list) and in ``extra_logs`` the
        share of each verdict and the mean milliseconds, as OpenRLHF logs them.
    """
    grades = [
        verifier().grade(response_of(query, prompt), label) for query, prompt, label in zip(queries, prompts, labels)
    ]
    rewards = [grade.reward for grade in grades]
    count = max(1, len(grades))
    logs = {f"verdict_{v.label}": sum(grade.verdict is v for grade in grades) / count for v in Verdict}
    logs["grade_ms"] = sum(grade.ms for grade in grades) / count
    value = rewards[0] if len(rewards) == 1 else rewards
    return {"rewards": value, "scores": value, "extra_logs": logs}
