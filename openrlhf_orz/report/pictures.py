"""All pictures that are files: the paper's curves of runs, bars, and timelines. Needs matplotlib.

Equal numbers give equal bytes, so that a picture in the repository changes only with what it shows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from openrlhf_orz.report.run_data import Run, columns

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "text.parse_math": False,  # names of runs and sources are text, also with two dollar signs
    "svg.hashsalt": "openrlhf_orz",
    "svg.fonttype": "none",  # text stays text, in any script that the reader's fonts have
}
COLOURS = ("#0b62d6", "#c2410c", "#15803d", "#7c3aed", "#be185d", "#0e7490", "#854d0e", "#4b5563")
LETTER = 0.009  # of a timeline's width
Line = tuple[str, list, list]  # label, steps, values


@contextmanager
def panels(path: Path, count: int = 1, size: tuple[float, float] = (3.6, 2.7)) -> Iterator[list]:
    """``count`` matplotlib axes side by side, each of ``size`` inches; written to ``path`` (.png, .svg) at the end."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(size[0] * count, size[1]), layout="constrained")
        yield list(figure.subplots(1, count, squeeze=False)[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        # the date would make each file another one; PNG has none
        figure.savefig(path, dpi=200, metadata={"Date": None} if path.suffix == ".svg" else None)


def write_bars(path: Path, title: str, values: list[tuple[str, int]]) -> None:
    """Horizontal bars for (label, count) pairs, the first on top, each with its count behind it."""
    with panels(path, size=(6.3, 0.6 + 0.22 * len(values))) as (ax,):
        drawn = ax.barh(range(len(values)), [count for _, count in values], color=COLOURS[0])
        ax.bar_label(drawn, padding=3)
        ax.set_yticks(range(len(values)), [label[:32] for label, _ in values])
        ax.set(title=title, xticks=[])
        ax.invert_yaxis()
        ax.grid(False)


def write_timeline(path: Path, title: str, bars: list[tuple[str, str, float, float]]) -> None:
    """A row for each lane, with a bar for each (lane, name, start, seconds), named where there is room."""
    lanes = list(dict.fromkeys(lane for lane, *_ in bars))
    end = max(start + seconds for *_, start, seconds in bars)
    with panels(path, size=(7.2, 0.9 + 0.42 * len(lanes))) as (ax,):
        for lane, name, start, seconds in bars:
            row = lanes.index(lane)
            ax.barh(row, seconds, left=start, height=0.7, color=COLOURS[row], edgecolor="white")
            if seconds > LETTER * len(name) * end:
                ax.text(start + seconds / 2, row, name, ha="center", va="center", color="white", fontsize=8)
        ax.set_yticks(range(len(lanes)), lanes)
        ax.set(title=title, xlabel="seconds", xlim=(0, end))
        ax.invert_yaxis()


def smooth(values: list[float | None], span: int) -> list[float | None]:
    """An exponential mean over about ``span`` values, unbiased at the start; None stays None. As in the page."""
    keep = 1 - 2 / (span + 1) if span > 1 else 0.0
    total = weight = 0.0
    result: list[float | None] = []
    for value in values:
        if value is None:
            result.append(None)
            continue
        total, weight = keep * total + value, keep * weight + 1
        result.append(total / weight)
    return result


def of_keys(keys: dict[str, str], kind: str = "metrics") -> Callable[[list[Run]], Iterator[Line]]:
    """Lines of the given keys of each run; with several runs the run's name is in the label."""

    def lines(runs: list[Run]) -> Iterator[Line]:
        for run in runs:
            table = columns(getattr(run, kind))
            for key, label in keys.items():
                if key in table:
                    several = f"{run.name}: {label}" if len(keys) > 1 else run.name
                    yield (several if len(runs) > 1 else label), table["step"], table[key]

    return lines


def of_benchmarks(suffix: str) -> Callable[[list[Run]], Iterator[Line]]:
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


def write_pictures(
    runs: list[Run], folder: str | Path, span: int = 1, kind: str = "png", only: str | None = None
) -> list[Path]:
    """Write the pictures for which there are numbers, and return their paths.

    Args:
        span: smoothing, in steps; the values themselves are drawn faintly beneath.
        kind: png or svg.
        only: the name of the one picture that is wanted.

    Raises ModuleNotFoundError without matplotlib.
    """
    written = []
    for name, contents in PICTURES.items():
        found = [(title, list(lines(runs)), limits) for title, lines, limits in contents]
        found = [panel for panel in found if panel[1]]
        if not found or only not in (None, name):
            continue
        path = Path(folder) / f"{name}.{kind}"
        with panels(path, len(found)) as axes:
            for ax, (title, lines, limits) in zip(axes, found):
                draw_lines(ax, lines, span)
                ax.set(title=title, xlabel="step")
                ax.set_ylim(*limits)
        written.append(path)
    return written


def draw_lines(ax, lines: list[Line], span: int) -> None:
    """Curves in one panel, smoothed over ``span`` steps, with a legend if there are several."""
    for place, (label, steps, values) in enumerate(lines):
        colour = COLOURS[place % len(COLOURS)]
        drawn = [(x, y) for x, y in zip(steps, values) if y is not None]
        if span > 1:
            ax.plot(*zip(*drawn), color=colour, linewidth=0.8, alpha=0.25)
        means = [(x, y) for x, y in zip(steps, smooth(values, span)) if y is not None]
        marker = "o" if len(drawn) == 1 else None
        ax.plot(*zip(*means), color=colour, linewidth=1.6, label=label, marker=marker)
    if len(lines) > 1:
        ax.legend(frameon=False, fontsize=7)
