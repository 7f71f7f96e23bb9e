"""Checks of our flags for the critic and what stands in its place (docs/critic.md). checks.py raises them."""

from collections.abc import Iterator
from types import SimpleNamespace

# these do nothing without a critic; a value other than the default is refused then
ABOUT_THE_CRITIC = ("critic_epochs", "lambda_policy", "lambda_alpha", "baseline")


def critic_problems(args: SimpleNamespace, explicit: set[str]) -> Iterator[str]:
    """A message for each of them that cannot be, or would do nothing."""
    estimator = args.algo.advantage.estimator
    for name in ABOUT_THE_CRITIC:
        if f"orz.{name}" in explicit and estimator != "gae":
            without = f"--algo.advantage.estimator {estimator} has none"
            yield f"--orz.{name} is about the critic, and {without}: leave it out"
    yield from _lambda(args, explicit)
    yield from _baseline(args)


def _lambda(args, explicit) -> Iterator[str]:
    given = args.orz.lambda_policy
    if given not in (None, "length") and not _is_share(given):
        yield f"--orz.lambda_policy {given} is neither a number in [0, 1] nor length"
    if "orz.lambda_alpha" in explicit and given != "length":
        yield "--orz.lambda_alpha does nothing without --orz.lambda_policy length: leave it out"


def _baseline(args) -> Iterator[str]:
    baseline, given = args.orz.baseline, f"--orz.baseline {args.orz.baseline}"
    if baseline == "critic":
        return
    if args.algo.advantage.gamma != 1:
        yield f"{given} compares whole returns, which needs --algo.advantage.gamma 1"
    if baseline == "group" and args.rollout.n_samples_per_prompt == 1:
        yield f"{given} compares the responses to a prompt: give --rollout.n_samples_per_prompt 2 or more"
    if baseline != "auto" and args.orz.lambda_policy is not None:
        yield f"--orz.lambda_policy weighs the critic's values, and {given} uses none: leave it out"


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False
