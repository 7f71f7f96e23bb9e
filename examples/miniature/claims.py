"""What the paper says of each figure, as numbers that runs can agree or disagree with."""

from collections.abc import Callable
from dataclasses import dataclass

from miniature.arms import FIGURES, KL, MOST, SCALES
from miniature.results import Results
from miniature.statistics import FIRST, LAST, Difference, difference, last, mean, rise, roughness

STATISTICS: dict[str, Callable[[list[float]], float]] = {
    f"in the last {LAST} steps": last,
    "over all steps": mean,
    f"from the first {FIRST} to the last {LAST} steps": rise,
    "after the last step": lambda values: values[-1],
    "change from step to step, second half": roughness,
}
WHAT = {
    "reward": "reward",
    "response_length": "response length",
    "held_out": "held-out accuracy",
    "greedy": "greedy held-out accuracy",
    "explained_variance": "explained variance",
    "right": "right in truth",
    "right_length": "lengths right in truth",
    "right_interval": "intervals right in truth",
    "right_tiny": "tiny sums right in truth",
    "rewarded_wrong": "wrong and rewarded",
    "unrewarded_right": "right and not rewarded",
    "seconds_step": "seconds of a step",
}


@dataclass(frozen=True)
class Claim:
    """``key`` by ``statistic`` of the baseline is above (``sign`` 1) or below (-1) the arm's, or alike (0).

    None for ``sign``: the paper uses the setting and compares nothing. None for ``arm``: the baseline against 0.
    """

    figure: str
    text: str
    arm: str | None
    key: str
    statistic: str
    sign: int | None

    def measure(self, results: Results) -> tuple[float, float, Difference] | None:
        """Means of baseline and arm, and their difference over the seeds that both have; None if there is none."""
        ours = results.get(FIGURES[self.figure].base, {})
        theirs = ours if self.arm is None else results.get(self.arm, {})
        seeds = [seed for seed in ours if seed in theirs and ours[seed].values(self.key)]
        seeds = [seed for seed in seeds if theirs[seed].values(self.key)]
        if not seeds:
            return None
        take = STATISTICS[self.statistic]
        a = [take(ours[seed].values(self.key)) for seed in seeds]
        b = [take(theirs[seed].values(self.key)) if self.arm else 0.0 for seed in seeds]
        return mean(a), mean(b), difference(a, b)


END, WHOLE, RISE, EVAL, ROUGH = STATISTICS


def _claims():
    yield Claim("reward-and-length", "the reward rises", None, "reward", RISE, 1)
    yield Claim("reward-and-length", "the responses grow longer", None, "response_length", RISE, 1)
    yield Claim("lambda", "λ = 1 learns faster than 0.95", "lambda-0.95", "reward", WHOLE, 1)
    yield Claim("lambda", "and ends with higher accuracy", "lambda-0.95", "held_out", EVAL, 1)
    yield Claim("lambda", "and at temperature 0, too", "lambda-0.95", "greedy", EVAL, 1)
    yield Claim("lambda", "and with longer responses", "lambda-0.95", "response_length", END, 1)
    for arm, name in (("kl-loss", "KL loss"), ("kl-penalty", "a KL penalty")):
        yield Claim("kl", f"{name} of {KL} ends with lower accuracy", arm, "held_out", EVAL, 1)
        yield Claim("kl", "and at temperature 0, too", arm, "greedy", EVAL, 1)
        yield Claim("kl", "and slows training down", arm, "reward", WHOLE, 1)
        yield Claim("kl", "and holds the length down", arm, "response_length", END, 1)
    temperatures = {"t-0.6": "T = 0.6", "t-1.2": "T = 1.2"}
    for figure, texts in {
        "data-scale": {f"prompts-{n}": f"{n} prompts end with a lower reward than {MOST}" for n in SCALES[1::-1]},
        "update-steps": {f"updates-{n}": f"one update step ends higher than {n}" for n in (4, 8)},
        "temperature": {arm: f"T = 1 ends higher than {name}" for arm, name in temperatures.items()},
    }.items():
        for name, text in texts.items():
            arm = f"over-{name}"
            yield Claim(figure, text, arm, "reward", END, 1)
            yield Claim(figure, "and with higher held-out accuracy", arm, "held_out", EVAL, 1)
            yield Claim(figure, "and at temperature 0, too", arm, "greedy", EVAL, 1)
            yield Claim(figure, "and with longer responses", arm, "response_length", END, 1)
            if name in temperatures:
                yield Claim(figure, "and rises more smoothly", arm, "reward", ROUGH, -1)
    of_critic = {
        "critic-updates": {"critic-1": "12 critic updates against 1"},
        "value-head": {
            arm: f"the released code's initialisation against {name}"
            for arm, name in (("head-kaiming", "Kaiming uniform"), ("head-paper", "U(-√5, √5)"))
        },
    }
    for figure, texts in of_critic.items():
        for arm, text in texts.items():
            yield Claim(figure, text, arm, "explained_variance", WHOLE, None)
            yield Claim(figure, text, arm, "reward", WHOLE, None)
            yield Claim(figure, text, arm, "held_out", EVAL, None)
            yield Claim(figure, text, arm, "greedy", EVAL, None)
    for arm, name in (("old-log-probs", "computing old log-probs"), ("cross-fit", "cross-fit values")):
        yield Claim("skipped-forwards", f"{name} changes nothing", arm, "reward", WHOLE, 0)
        yield Claim("skipped-forwards", f"{name} changes nothing", arm, "response_length", END, 0)
    outcomes = ("right", "right_length", "right_interval", "right_tiny", "rewarded_wrong", "unrewarded_right")
    for key in (*outcomes, "reward", "response_length"):
        yield Claim("judge", "our judge against plain Math-Verify", "forms-plain", key, END, None)


CLAIMS = tuple(_claims())
