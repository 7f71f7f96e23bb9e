"""Numbers over seeds: what a run comes to, paired differences, and the rule by which they agree with a claim."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

FIRST, LAST = 3, 6  # steps at the beginning and at the end of a run
# 97.5 % quantiles of Student's t by degrees of freedom; beyond the table the normal's, which is narrower by little
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

AGREES, DISAGREES = "agrees", "does not agree"
NOTHING, VISIBLE, TOO_FEW = "no difference visible", "a difference is visible", "one seed: no verdict"


def mean(values: Sequence[float]) -> float:
    """Raises ValueError for no values."""
    if not values:
        raise ValueError("the mean of nothing")
    return sum(values) / len(values)


def last(values: Sequence[float]) -> float:
    """The mean of the last LAST steps."""
    return mean(values[-LAST:])


def rise(values: Sequence[float]) -> float:
    """The last LAST steps' mean less that of the first FIRST."""
    return last(values) - mean(values[:FIRST])


def roughness(values: Sequence[float]) -> float:
    """Standard deviation of the change from step to step over the second half: how much a curve fluctuates."""
    half = values[len(values) // 2 :]
    steps = [after - before for before, after in zip(half, half[1:])]
    centre = mean(steps)
    return math.sqrt(mean([(step - centre) ** 2 for step in steps]))


@dataclass(frozen=True)
class Difference:
    """Mean, standard error and half the width of the 95 % interval (Student's t) of paired differences, one a seed."""

    mean: float
    error: float
    half: float
    seeds: int


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Of ``ours`` less ``theirs``, seed by seed. Error and width are infinite for one seed."""
    pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
    centre, n = mean(pairs), len(pairs)
    if n == 1:
        return Difference(centre, math.inf, math.inf, 1)
    error = math.sqrt(sum((pair - centre) ** 2 for pair in pairs) / (n - 1) / n)
    return Difference(centre, error, T.get(n - 1, 1.96) * error, n)


def verdict(found: Difference, sign: int | None) -> str:
    """Whether the difference is as claimed: above 0 (``sign`` 1), below (-1), or none (0); None: nothing is claimed.

    A difference is visible if 0 is outside its 95 % interval.
    """
    if found.seeds < 2:
        return TOO_FEW
    visible = abs(found.mean) > found.half
    if sign is None:
        return VISIBLE if visible else NOTHING
    if sign == 0:
        return DISAGREES if visible else AGREES
    if not visible:
        return NOTHING
    return AGREES if found.mean * sign > 0 else DISAGREES
