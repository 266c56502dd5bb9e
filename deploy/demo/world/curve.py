"""Draws the curve of a training from its log."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from world.lessons import TASKS


def draw_curve(folder: Path) -> None:
    """Draw losses and held-out results by task from `log.jsonl` into `curve.png`."""
    path = folder / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    if not lines:
        return
    tested = [line for line in lines if "held_out" in line]
    colours = {task: f"C{number}" for number, task in enumerate(TASKS)}
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 8), sharex=True, layout="constrained")
    for key, axes, source in (("by_task", above, lines), ("held_out", below, tested)):
        for task in dict.fromkeys(task for line in source for task in line[key]):
            points = [(line["step"], line[key][task]) for line in source if task in line[key]]
            axes.plot(*zip(*points, strict=True), ".-", color=colours[task], label=task)
        axes.grid(alpha=0.3)
    above.set(ylabel="loss per token", yscale="log")
    below.set(ylabel="held-out answers right throughout", xlabel="step", ylim=(0, 1))
    above.legend(ncols=2, fontsize="small")
    aside = folder / "curve.new.png"
    figure.savefig(aside, dpi=90)
    pyplot.close(figure)
    aside.replace(folder / "curve.png")
