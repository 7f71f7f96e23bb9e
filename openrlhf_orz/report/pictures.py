"""The paper's pictures as PNGs, by matplotlib, for one run or several laid over each other."""

from collections.abc import Iterator
from pathlib import Path

from openrlhf_orz.report.run_data import Run, columns

COLOURS = ("#0b62d6", "#c2410c", "#15803d", "#7c3aed", "#be185d", "#0e7490", "#854d0e", "#4b5563")
Line = tuple[str, list, list]  # label, steps, values


def smooth(values: list, span: int) -> list:
    """An exponential mean over about ``span`` values, unbiased at the start; None stays None. As in the page."""
    keep = 1 - 2 / (span + 1) if span > 1 else 0.0
    total = weight = 0.0
    result = []
    for value in values:
        if value is None:
            result.append(None)
            continue
        total, weight = keep * total + value, keep * weight + 1
        result.append(total / weight)
    return result


def of_keys(keys: dict[str, str], kind: str = "metrics"):
    """Lines of the given keys of each run; with several runs the run's name is in the label."""

    def lines(runs: list[Run]) -> Iterator[Line]:
        for run in runs:
            table = columns(getattr(run, kind))
            for key, label in keys.items():
                if key in table:
                    several = f"{run.name}: {label}" if len(keys) > 1 else run.name
                    yield (several if len(runs) > 1 else label), table["step"], table[key]

    return lines


def of_benchmarks(suffix: str):
    """Lines of each benchmark's ``eval_NAME_suffix``."""

    def lines(runs: list[Run]) -> Iterator[Line]:
        for run in runs:
            table = columns(run.evals)
            for key, values in table.items():
                if key.startswith("eval_") and key.endswith(suffix) and len(key) > 5 + len(suffix):
                    bench = key[5 : -len(suffix)]
                    yield (f"{run.name}: {bench}" if len(runs) > 1 else bench), table["step"], values

    return lines


# file: panels of title, lines, limits of y
PICTURES = {
    "reward_and_length": (  # Fig. 2, and 8, 10, 13 to 15 of several runs
        ("Reward", of_keys({"reward": "reward"}), (0, 1)),
        ("Response length (tokens)", of_keys({"response_length": "response length"}), (0, None)),
    ),
    "format": (("Responses in the format", of_keys({"format": "format"}), (0, 1)),),  # Fig. 4
    "benchmarks": (  # Fig. 5, and 9
        ("Accuracy", of_benchmarks("_pass1"), (0, None)),
        ("Response length (tokens)", of_benchmarks("_response_length_mean"), (0, None)),
    ),
    "length": (("Response length (tokens)", of_keys({"response_length": "mean"}), (0, None)),),  # Fig. 6
    "reflection": (  # Fig. 7
        ("Reward", of_keys({"reward": "reward"}), (0, 1)),
        (
            "Length (tokens)",
            of_keys({"response_length": "all responses", "reflection_length_right": "right and reflecting"}),
            (0, None),
        ),
        ("Share of reflection responses", of_keys({"reflection": "reflection"}), (0, None)),
    ),
}


def write_pictures(runs: list[Run], folder: str | Path, span: int = 1) -> list[Path]:
    """Write the pictures for which there are numbers, and return their paths.

    Args:
        span: smoothing, in steps; what was measured is drawn faintly beneath.

    Raises ModuleNotFoundError without matplotlib.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    style = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
    }
    for name, panels in PICTURES.items():
        found = [(title, list(lines(runs)), limits) for title, lines, limits in panels]
        found = [panel for panel in found if panel[1]]
        if not found:
            continue
        with plt.rc_context(style):
            figure, axes = plt.subplots(
                1, len(found), figsize=(3.6 * len(found), 2.7), layout="constrained", squeeze=False
            )
            for ax, (title, lines, (low, high)) in zip(axes[0], found):
                for place, (label, steps, values) in enumerate(lines):
                    colour = COLOURS[place % len(COLOURS)]
                    drawn = [(x, y) for x, y in zip(steps, values) if y is not None]
                    alone = "o" if len(drawn) == 1 else None
                    if span > 1:
                        ax.plot(*zip(*drawn), color=colour, linewidth=0.8, alpha=0.25)
                    means = [(x, y) for x, y in zip(steps, smooth(values, span)) if y is not None]
                    ax.plot(*zip(*means), color=colour, linewidth=1.6, label=label, marker=alone)
                ax.set(title=title, xlabel="step")
                ax.set_ylim(bottom=low, top=high)
                if len(lines) > 1:
                    ax.legend(frameon=False, fontsize=7)
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=200)
            plt.close(figure)
        written.append(path)
    return written
