"""The numbers of an evaluation, pure: avg@n with its interval, pass@k, maj@n, lengths and rates.

Notation: Q questions, n samples of each; a score is 1 for a right answer that ended by itself, else 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95


def avg_at_n(scores: Sequence[Sequence[float]]) -> float:
    """The paper's primary measure: the mean over questions of the mean of their samples' scores."""
    return float(np.mean([np.mean(row) for row in scores]))


def bootstrap_interval(scores: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of avg@n when the Q questions are drawn anew with replacement.

    Samples of one question are not independent of each other, so questions are what is drawn.
    """
    means = np.array([np.mean(row) for row in scores])
    rng = np.random.default_rng(seed)
    draws = np.concatenate(
        # in parts: 10,000 x 500 indices at a time would be 40 MB
        [means[rng.integers(0, len(means), (1000, len(means)))].mean(-1) for _ in range(RESAMPLES // 1000)]
    )
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased probability that k of n samples, ``right`` of them right, hold a right one (arXiv 2107.03374, Eq. 1).

    Raises ValueError for k above n.
    """
    if k > n:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {n}")
    return 1.0 - comb(n - right, k) / comb(n, k)


def powers(n: int) -> list[int]:
    """The k for which pass@k is reported: 1, 2, 4 and so on, and n."""
    return sorted({*(2**i for i in range(n.bit_length()) if 2**i <= n), n})


def majority(answers: Sequence[str | None], scores: Sequence[float], same: Callable[[str, str], bool]) -> float:
    """maj@n of one question: the score of the answer that most samples agree on.

    Answers that ``same`` calls equal are one; None (no answer, or cut by length) does not vote. Answers that
    share the largest vote share its weight: the expected score of choosing one of them at random.
    """
    groups: list[tuple[str, list[float]]] = []
    known: dict[str, list[float]] = {}
    for answer, score in zip(answers, scores):
        if answer is None:
            continue
        members = known.get(answer)
        if members is None:
            members = next((found for first, found in groups if same(first, answer)), None)
            if members is None:
                members = []
                groups.append((answer, members))
            known[answer] = members
        members.append(score)
    if not groups:
        return 0.0
    largest = max(len(members) for _, members in groups)
    winners = [members for _, members in groups if len(members) == largest]
    # one answer may have been graded in several notations: most of its grades decide
    return float(np.mean([float(np.mean(members) >= 0.5) for members in winners]))


def summarise(rows: Sequence[dict], same: Callable[[str, str], bool] | None = None, seed: int = 0) -> dict:
    """The numbers of one benchmark from its responses.

    Args:
        rows: one a response, with ``id`` (of the question), ``reward``, ``tokens``, ``stop_reason``, ``format`` and
            ``extracted``. Every question must have as many; ValueError otherwise.
        same: whether two answers are equal, for maj@n; None to leave that out.
    """
    questions: dict = {}
    for row in rows:
        questions.setdefault(row["id"], []).append(row)
    counts = {len(group) for group in questions.values()}
    if len(counts) != 1:
        raise ValueError(f"questions have {sorted(counts)} samples each: they must have as many (or none at all)")
    (n,) = counts
    scores = [[float(row["reward"] > 0) for row in group] for group in questions.values()]
    right = [int(sum(row)) for row in scores]
    low, high = bootstrap_interval(scores, seed)
    lengths = np.array([row["tokens"] for row in rows], dtype=float)
    hits = np.array([row["reward"] > 0 for row in rows])

    def mean(values):
        return float(np.mean(values)) if len(values) else None

    result = {
        "questions": len(questions),
        "n": n,
        "avg_at_n": avg_at_n(scores),
        "low": low,
        "high": high,
        **{f"pass_at_{k}": float(np.mean([pass_at_k(n, c, k) for c in right])) for k in powers(n)},
        "response_length": mean(lengths),
        "response_length_right": mean(lengths[hits]),
        "response_length_wrong": mean(lengths[~hits]),
        "truncated": mean([row["stop_reason"] == "length" for row in rows]),
        "format": mean([row["format"] for row in rows]),
    }
    if same is not None:
        result["maj_at_n"] = float(
            np.mean(
                [
                    majority(
                        [None if row["stop_reason"] == "length" else row["extracted"] for row in group],
                        [float(row["reward"] > 0) for row in group],
                        same,
                    )
                    for group in questions.values()
                ]
            )
        )
    return result
