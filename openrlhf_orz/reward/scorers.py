"""Scorers of reasoning-gym; runs in a worker, under its limits."""

from __future__ import annotations

import json

from openrlhf_orz.reward.verdict import Verdict


def prepare() -> None:
    """Import the package, outside an answer's budget. ImportError when it is not installed."""
    import reasoning_gym  # noqa: F401  the import itself is what takes long


def score(entry: str, answer: str) -> tuple[Verdict, int]:
    """Whether ``answer`` has the full score for the data set entry ``entry`` (JSON)."""
    import reasoning_gym

    item = json.loads(entry)
    scorer = reasoning_gym.get_score_answer_fn(item["metadata"]["source_dataset"])
    value = scorer(answer, item)
    return (Verdict.RIGHT if isinstance(value, (int, float)) and value >= 1.0 else Verdict.WRONG), 0
