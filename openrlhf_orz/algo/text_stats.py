"""Statistics of one response: reflection in its text, repetition in its tokens. Both take linear time."""

from collections.abc import Sequence

import numpy as np

REFLECTION_PATTERNS = ("wait,", "recheck", "retry", "alternatively,", "however,")  # the paper's five
GRAM = 4  # tokens


def reflects(response: str) -> bool:
    """Whether any of the paper's reflection patterns occurs in ``response``, in any case (Fig. 7)."""
    lowered = response.lower()
    return any(pattern in lowered for pattern in REFLECTION_PATTERNS)


def repetition(token_ids: Sequence[int] | np.ndarray) -> float:
    """The share of a response's 4-grams of tokens that repeat an earlier one: 1 - distinct / all ("seq-rep-4").

    0 for fewer than four tokens. The 4-grams are hashed to 64 bits and counted in a set.

    Args:
        token_ids: (A,) integers, without padding.
    """
    ids = np.asarray(token_ids, dtype=np.uint64)
    grams = len(ids) - GRAM + 1
    if grams < 1:
        return 0.0
    hashes = np.zeros(grams, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for place in range(GRAM):  # an odd multiplier: a bijection of 64-bit numbers, which wrap
            hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + ids[place : place + grams] + np.uint64(1)
            hashes ^= hashes >> np.uint64(29)
    return 1.0 - len(set(hashes.tolist())) / grams
