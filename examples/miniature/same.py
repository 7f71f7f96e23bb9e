"""Of two runs of one seed that should be alike: up to where they are, and how far apart they come."""

from dataclasses import dataclass

from miniature.arms import AGAIN
from miniature.results import Curves, Results


@dataclass(frozen=True)
class Sameness:
    """One pair of runs; steps count from 1."""

    arm: str
    seed: int
    same_rollouts: bool  # of step 1: every prompt and response
    same_steps: int  # the curves are identical up to and including this step
    largest_reward: float  # absolute difference at one step
    largest_length: float  # tokens


def largest(a: list[float], b: list[float]) -> float:
    """The largest absolute difference of two curves at one step."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def compare(arm: str, seed: int, ours: Curves, theirs: Curves) -> Sameness:
    pairs = list(zip(zip(*map(ours.values, KEYS)), zip(*map(theirs.values, KEYS)), strict=True))
    differing = [step for step, (a, b) in enumerate(pairs) if a != b]
    return Sameness(
        arm,
        seed,
        ours.rollout == theirs.rollout,
        differing[0] if differing else len(pairs),
        *(largest(ours.values(key), theirs.values(key)) for key in KEYS),
    )


KEYS = ("reward", "response_length")


def all_pairs(results: Results, arms: tuple[str, ...]) -> list[Sameness]:
    """Each of the arms with the baseline of the same seed."""
    base = results.get(AGAIN, {})
    return [
        compare(arm, seed, base[seed], run)
        for arm in arms
        for seed, run in results.get(arm, {}).items()
        if seed in base
    ]


def between_seeds(results: Results) -> tuple[float, float] | None:
    """The largest differences of reward and length at one step between any two seeds of the baseline: the noise."""
    runs = list(results.get(AGAIN, {}).values())
    pairs = [(a, b) for i, a in enumerate(runs) for b in runs[:i]]
    if not pairs:
        return None
    reward, length = (max(largest(a.values(key), b.values(key)) for a, b in pairs) for key in KEYS)
    return reward, length
