"""The figures: the mean over seeds of each arm, smoothed, and a band that holds the curves of all seeds."""

from pathlib import Path

from miniature.arms import ARMS, FIGURES, Figure
from miniature.results import Results
from miniature.statistics import mean
from openrlhf_orz.report.pictures import panels, smooth

# Okabe and Ito's, told apart by the colour-blind; and by their dashes without any colour
LINES = (
    ("#0072B2", "-"),
    ("#D55E00", "--"),
    ("#009E73", "-."),
    ("#CC79A7", ":"),
    ("#000000", (0, (5, 1, 1, 1, 1, 1))),
    ("#E69F00", (0, (3, 1, 1, 1))),
    ("#56B4E9", (0, (8, 2))),
)
SPAN = 3  # steps that the curves are smoothed over
TITLES = {
    "reward": ("Reward", (0, 1)),
    "response_length": ("Response length (tokens)", (0, None)),
    "right": ("Right in truth", (0, 1)),
    "held_out": ("Accuracy on held-out questions", (0, 1)),
    "explained_variance": ("Explained variance of the critic", (-0.5, 1)),
}


def band(curves: list[list[float]], span: int = SPAN) -> tuple[list[float], list[float], list[float]]:
    """Mean, lowest and highest of the smoothed curves at each step that all of them have."""
    columns = list(zip(*(smooth(curve, span) for curve in curves)))
    return [mean(column) for column in columns], [min(column) for column in columns], [max(c) for c in columns]


def draw_panel(ax, figure: Figure, results: Results, key: str) -> None:
    """One key's curves of the figure's arms."""
    title, limits = TITLES[key]
    for (colour, dashes), name in zip(LINES, (figure.base, *figure.arms)):
        runs = [dict(zip(*run.curve(key))) for run in results.get(name, {}).values()]
        steps = sorted(set.intersection(*map(set, runs))) if runs else []
        if not steps:
            continue
        middle, low, high = band([[run[step] for step in steps] for run in runs], 1 if key == "held_out" else SPAN)
        label = figure.baseline if name == figure.base else ARMS[name].label
        ax.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        ax.plot(steps, middle, linestyle=dashes, color=colour, linewidth=1.6, label=label)
    ax.set(title=title, xlabel="step")
    ax.set_ylim(*limits)


def write_figures(names: list[str], results: Results, folder: Path) -> list[Path]:
    """Write NAME.svg of each figure of which there are runs, and return the paths. Needs matplotlib."""
    written = []
    for name in names:
        figure = FIGURES[name]
        if not any(arm in results for arm in (figure.base, *figure.arms)):
            continue
        path = folder / f"{name}.svg"
        with panels(path, len(figure.panels), size=(3.4, 2.7)) as axes:
            for ax, key in zip(axes, figure.panels):
                draw_panel(ax, figure, results, key)
            if figure.arms:
                axes[0].legend(frameon=False, fontsize=7, loc="lower right")
        written.append(path)
    return written
