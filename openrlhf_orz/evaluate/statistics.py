"""The numbers of an evaluation: avg@n with its interval, pass@k, maj@n, lengths and rates; pure functions.

Notation: Q questions, n samples of each; a score is 1 for a right answer that was not cut by length, else 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb

import numpy as np

Same = Callable[[str, str], bool]  # whether two answers are equal; the first is the reference

RESAMPLES = 10_000
CONFIDENCE = 0.95


def avg_at_n(scores: Sequence[Sequence[float]]) -> float:
    """The paper's primary measure: the mean over questions of the mean of their samples' scores."""
    return float(np.mean([np.mean(row) for row in scores]))


def bootstrap_interval(scores: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of avg@n over resamples of the Q questions, drawn with replacement.

    Questions are drawn and not samples, because samples of one question are not independent.
    """
    means = np.array([np.mean(row) for row in scores])
    rng = np.random.default_rng(seed)
    draws = np.concatenate(
        # in parts of 1000 draws: 10,000 x 500 indices at once would be 40 MB
        [means[rng.integers(0, len(means), (1000, len(means)))].mean(-1) for _ in range(RESAMPLES // 1000)]
    )
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased estimate that k samples include a right one, ``right`` of n being right (arXiv 2107.03374, Eq. 1).

    Raises ValueError for k above n.
    """
    if k > n:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {n}")
    return 1.0 - comb(n - right, k) / comb(n, k)


def powers(n: int) -> list[int]:
    """The k for which pass@k is reported: the powers of 2 up to n, and n."""
    return sorted({*(2**i for i in range(n.bit_length()) if 2**i <= n), n})


def majority(answers: Sequence[str | None], scores: Sequence[float], same: Same) -> float:
    """maj@n of one question: the score of the answer that most samples give.

    Answers that ``same`` calls equal count as one. None (no answer, or cut by length) does not vote. Of answers with
    equally many votes one is chosen at random, so their mean score is returned.
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
    # an answer may have been graded in several notations, with different grades: the majority of them decides
    return float(np.mean([float(np.mean(members) >= 0.5) for members in winners]))


def summarise(rows: Sequence[dict], same: Callable[[dict], Same] | None = None, seed: int = 0) -> dict:
    """The numbers of one benchmark from its responses.

    Args:
        rows: one per response, with ``id`` (of the question), ``reward``, ``tokens``, ``stop_reason``, ``format`` and
            ``extracted``.
        same: from a row of a question, what says whether two answers to it are equal, for maj@n; without it there is
            no maj@n.

    Raises ValueError if the questions have different numbers of responses.
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

    def mean(values: np.ndarray | list[bool]) -> float | None:
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
        votes = [majority(_votes(group), score, same(group[0])) for group, score in zip(questions.values(), scores)]
        result["maj_at_n"] = float(np.mean(votes))
    return result


def _votes(group: Sequence[dict]) -> list[str | None]:
    """The answers of one question's rows; a response that was cut has none."""
    return [None if row["stop_reason"] == "length" else row["extracted"] for row in group]


def evaluation_logs(
    sets: Sequence[str], rows: Sequence[dict], n: int, same: Callable[[dict], Same] | None = None
) -> dict[str, float]:
    """``eval_SET_...`` for each data set of an evaluation during training; docs/metrics.md defines the keys.

    Args:
        sets: the data set of each question.
        rows: as in ``summarise``, n for each question; ``id`` is the question's index in ``sets``.
        same: as in ``summarise``.
    """
    logs: dict[str, float] = {}
    for name in dict.fromkeys(sets):
        result = summarise([row for row in rows if sets[row["id"]] == name], same if n > 1 else None)
        logs[f"eval_{name}_pass1"] = result["avg_at_n"]
        logs |= {f"eval_{name}_pass{k}": result[f"pass_at_{k}"] for k in powers(n) if k > 1}
        logs |= {f"eval_{name}_low": result["low"], f"eval_{name}_high": result["high"]}
        if "maj_at_n" in result:
            logs[f"eval_{name}_maj{n}"] = result["maj_at_n"]
        logs[f"eval_{name}_response_length_mean"] = result["response_length"]
        logs[f"eval_{name}_truncated_rate"] = result["truncated"]
        logs[f"eval_{name}_format_rate"] = result["format"]
    if rows:
        logs["eval_response_length_mean"] = sum(row["tokens"] for row in rows) / len(rows)
        logs["eval_truncated_rate"] = sum(row["stop_reason"] == "length" for row in rows) / len(rows)
    logs["eval_num_samples"] = float(len(rows))
    return logs
