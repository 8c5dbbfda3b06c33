"""The curves of training runs: read from `metrics.jsonl`, drawn over each other, as PNG or SVG."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from grpo_math.errors import UsageError
from grpo_math.files import read_jsonl
from grpo_math.publish.measured import (
    TRAINED,
    Measured,
    Place,
    place_in_run,
    read_measured,
    training_note,
)
from grpo_math.run_folder import read_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HELD_OUT = "Held-out accuracy, 95% interval"
PANELS: dict[str, tuple[str, ...]] = {
    "Reward": ("reward",),
    "Reward by part": ("rewards/*/mean",),
    HELD_OUT: (),
    "Completion length, tokens": ("completions/mean_length_right", "completions/mean_length_wrong"),
    "Share of completions cut": ("completions/clipped_ratio",),
    "Share of groups without variance": (
        "frac_reward_zero_std",
        "questions/expected_without_variance",
    ),
    "Entropy, nats per token": ("entropy",),
    "KL to the reference, nats per token": ("kl",),
    "Throughput, tokens/s (prompts and completions)": ("tokens_per_second",),
}
SMOOTHED_OVER = 9  # steps; the raw points stay visible behind
LINE_STYLES = ("-", "--", ":", "-.")
COLOURS = 10  # of matplotlib's cycle
PANEL = (4.3, 3.3)  # inches, without a legend below it
LEGEND_INSIDE = 6  # names at most; more of them would hide the lines
LEGEND_LINE = 0.1  # inches that a name adds, two of them beside each other
LEGEND_NAME = 30  # characters that leave room for another name beside it

Metrics = dict[str, float | None]  # of a logged step, by name


class Accuracy(NamedTuple):
    """Accuracy after a step, on what data: shares with the bounds of their 95% interval."""

    step: int
    value: float
    low: float
    high: float
    data: str = "held out"


class Line(NamedTuple):
    """A metric of a run, ready to be drawn; `colour` and `style` count from 0."""

    label: str
    colour: int
    style: int
    steps: list[float]
    values: list[float]


@dataclass
class Run:
    """A run's name, its logged training steps, and what is known of its accuracy."""

    name: str
    rows: list[Metrics]
    accuracies: list[Accuracy] = field(default_factory=list)

    def length(self) -> int:
        return int(self.rows[-1]["step"] or 0)


def read_run(folder: Path) -> Run:
    """Read a run from its folder.

    Raises:
        UsageError: there is no `metrics.jsonl`, it cannot be read, or no step has been logged yet.
    """
    path = folder / "metrics.jsonl"
    logged: list[Metrics] = []
    for number, row in read_jsonl(path):
        _check(row, f"{path}, line {number}")
        logged.append(row)
    rows = [row for row in logged if "step" in row and "reward" in row]
    if not rows:
        raise UsageError(f"{path}: no training step has been logged yet")
    add_throughput(rows)
    data = "held out"
    if asked := (read_record(folder) or {}).get("eval_data"):
        data = f"{asked['questions']} of {asked['path']}"
    return Run(folder.resolve().name, rows, list(_held_out(logged, data)))


def _check(row: dict[str, object], where: str) -> None:
    for name, value in row.items():
        if value is not None and not isinstance(value, int | float):
            raise UsageError(f"{where}: {name} is {value!r}, expected a number")


def _held_out(logged: list[Metrics], data: str) -> Iterator[Accuracy]:
    for row in logged:
        value, low = row.get("eval_accuracy"), row.get("eval_accuracy_low")
        high = row.get("eval_accuracy_high")
        if value is not None and low is not None and high is not None:
            yield Accuracy(int(row["step"] or 0), value, low, high, data)


def add_throughput(rows: list[Metrics]) -> None:
    """Add `tokens_per_second` to the rows: new tokens over the time of their steps.

    `num_tokens` counts prompts and completions from the start, `step_time` is the mean number of
    seconds that a step since the last row took to generate, grade and compute gradients; saving,
    evaluating and waiting are not in it.
    """
    step, tokens = 0.0, 0.0
    for row in rows:
        now, counted = row["step"] or 0.0, row.get("num_tokens")
        seconds = (row.get("step_time") or 0) * (now - step)
        if seconds > 0 and counted:
            row["tokens_per_second"] = (counted - tokens) / seconds
        step, tokens = now, counted or tokens


def name_apart(runs: list[Run], folders: list[Path]) -> None:
    """Call runs whose folders have one name by the paths that were given."""
    names = [run.name for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        if names.count(run.name) > 1:
            run.name = str(folder)


def add_evaluation(run: Run, folder: Path, path: Path) -> tuple[Measured, Place]:
    """Read an evaluation and, if its model is one of the run's, add it to the run's accuracies.

    Raises:
        UsageError: the file cannot be read, or holds no finished evaluation.
    """
    measured = read_measured(path)
    if measured is None:
        raise UsageError(f"--evals {path}: this evaluation is not finished; run it again")
    record = read_record(folder) or {}
    place = place_in_run(measured, folder, record, run.length())
    if place.step is not None:
        data = measured.data + training_note(measured, record)
        strict = measured.strict
        bounds = strict["accuracy"], strict["low"], strict["high"]
        run.accuracies.append(Accuracy(place.step, *bounds, data))
        run.accuracies.sort()
    return measured, place


def matching(rows: Iterable[Metrics], patterns: tuple[str, ...]) -> list[str]:
    """List the metrics that a panel shows, in its patterns' order, each with a value somewhere."""
    names: dict[str, None] = {}  # in the order in which they were logged
    for row in rows:
        names |= dict.fromkeys(name for name in row if row[name] is not None)
    return [name for pattern in patterns for name in names if Path(name).match(pattern)]


def smooth(values: list[float]) -> list[float]:
    """Give the mean of each value and its neighbours; what is not finite counts in none."""
    half = SMOOTHED_OVER // 2
    means = []
    for place, value in enumerate(values):
        near = filter(math.isfinite, values[max(0, place - half) : place + half + 1])
        means.append(fmean(near) if math.isfinite(value) else math.nan)
    return means


def draw(runs: list[Run], columns: int = 3) -> Figure:
    """Draw a panel for each quantity that any of the runs has; panels stand in so many columns.

    Colours tell runs apart, or the lines of a single run.
    """
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False  # a `$` in a name is a `$`
    panels = {title: list(_lines(title, runs)) for title in PANELS}
    held_out = list(filter(None, (run.accuracies for run in runs)))
    shown = [title for title in PANELS if panels[title] or (title == HELD_OUT and held_out)]
    rows = math.ceil(len(shown) / columns)
    longest = max(map(len, panels.values()))
    width, height = PANEL[0] * columns, PANEL[1] * rows
    if longest > LEGEND_INSIDE:
        height += LEGEND_LINE * longest
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, title in zip(axes.flat, shown, strict=False):
        if title == HELD_OUT:
            title = _draw_accuracies(axis, runs)
        else:
            _draw_lines(axis, panels[title])
        _finish(axis, title)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    figure.suptitle(", ".join(run.name for run in runs))
    return figure


def _lines(title: str, runs: list[Run]) -> Iterator[Line]:
    """Give a panel's lines; a metric has one style in all runs, whichever a run logged first."""
    keys = matching((row for run in runs for row in run.rows), PANELS[title])
    for number, run in enumerate(runs):
        for place, key in enumerate(keys):
            steps, values = _points(run, key)
            if not steps:
                continue
            if len(runs) == 1:
                yield Line(_part(key), place, place // COLOURS, steps, values)
            else:
                yield Line(f"{run.name} {_part(key)}".strip(), number, place, steps, values)


def _points(run: Run, key: str) -> tuple[list[float], list[float]]:
    """Give the steps at which a metric was logged, and its values."""
    steps, values = [], []
    for row in run.rows:
        value = row.get(key)
        if value is not None:
            steps.append(row["step"] or 0.0)
            values.append(value)
    return steps, values


def _part(key: str) -> str:
    """Give what tells a metric from its panel's others: a reward's name, or right and wrong."""
    if key.startswith("rewards/"):
        return key.split("/")[1]
    if key.startswith("completions/mean_length_"):
        return key.rpartition("_")[2]
    return ""


def _draw_lines(axis: Axes, lines: list[Line]) -> None:
    for label, number, place, steps, values in lines:
        colour, style = f"C{number % COLOURS}", LINE_STYLES[place % len(LINE_STYLES)]
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axis.plot(steps, smooth(values), color=colour, linestyle=style, label=label)


def _draw_accuracies(axis: Axes, runs: list[Run]) -> str:
    """Draw a line for each run and data that it was asked; give what it is then about."""
    import numpy

    title = HELD_OUT
    for run in runs:
        by_data = defaultdict(list)
        for *point, data in run.accuracies:
            by_data[data].append(point)
        for data, points in by_data.items():
            steps, values, low, high = numpy.transpose(points)
            spread = [list(values - low), list(high - values)]
            bars = axis.errorbar(steps, values, spread, fmt="o:", markersize=4, capsize=3)
            label = data if len(runs) == 1 else f"{run.name} {data}"
            bars.set_label(label)
            if TRAINED in data:
                title = "Accuracy, 95% interval"
    return title


def _finish(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize="medium")
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    if title.startswith("Share") or "ccuracy" in title:
        axis.set_ylim(-0.02, 1.02)
    names = axis.get_legend_handles_labels()[1]
    if len(names) > LEGEND_INSIDE:
        columns = 2 if max(map(len, names)) <= LEGEND_NAME else 1
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
        axis.legend(fontsize="x-small", ncols=columns, **below)
    elif names:
        axis.legend(fontsize="small")


def render(figure: Figure, form: str) -> bytes:
    """Give the figure as the bytes of a "png" or an "svg" file, the same for the same figure."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "grpo_math"
    buffer = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else None
    figure.savefig(buffer, format=form, dpi=100, metadata=metadata)
    return buffer.getvalue()
