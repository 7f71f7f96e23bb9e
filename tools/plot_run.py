"""Draw reward and response length of a run, as in Fig. 2: python tools/plot_run.py RUN_DIR OUT.svg (needs matplotlib)"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def main(run_dir: str, out: str) -> None:
    metrics = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    steps = [m["step"] for m in metrics]
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    for ax, key, title in zip(axes, ("reward", "response_length"), ("Reward", "Response length (tokens)")):
        ax.plot(steps, [m[key] for m in metrics], color="#2563eb", linewidth=1.6)
        ax.set(title=title, xlabel="step", xlim=(1, steps[-1]))
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(0, 1)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
