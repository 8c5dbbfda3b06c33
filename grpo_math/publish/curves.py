"""The curves of training runs: read from `metrics.jsonl` alone, drawn over each other, as PNG or SVG."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from grpo_math.errors import UsageError
from grpo_math.files import read_jsonl
from grpo_math.run_folder import FINAL, read_record

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
    "Share of groups without variance": ("frac_reward_zero_std",),
    "Entropy, nats per token": ("entropy",),
    "KL to the reference, nats per token": ("kl",),
    "Throughput, tokens/s (prompts and completions)": ("tokens_per_second",),
}
SMOOTHED_OVER = 9  # steps; the raw points stay visible behind
LINE_STYLES = ("-", "--", ":", "-.")


class Accuracy(NamedTuple):
    """Accuracy on held-out questions after a step: shares with the bounds of their 95% interval."""

    step: int
    value: float
    low: float
    high: float


@dataclass
class Run:
    """A run's name, its logged training steps, and what is known of its accuracy on held-out questions."""

    name: str
    rows: list[dict[str, Any]]
    accuracies: list[Accuracy] = field(default_factory=list)


def read_run(folder: Path) -> Run:
    """A run from its folder.

    Raises:
        UsageError: there is no `metrics.jsonl`, it cannot be read, or no step has been logged yet.
    """
    path = folder / "metrics.jsonl"
    logged = [row for _, row in read_jsonl(path) if isinstance(row.get("step"), int)]
    rows = [row for row in logged if "reward" in row]
    if not rows:
        raise UsageError(f"{path}: no training step has been logged yet")
    add_throughput(rows)
    keys = [f"eval_accuracy{bound}" for bound in ("", "_low", "_high")]
    held_out = [
        Accuracy(row["step"], *(row[key] for key in keys))
        for row in logged
        if all(key in row for key in keys)
    ]
    return Run(folder.resolve().name, rows, held_out)


def add_throughput(rows: list[dict[str, Any]]) -> None:
    """Add `tokens_per_second` to the rows: new tokens over the time of the steps since the row before.

    `num_tokens` counts prompts and completions from the start, `step_time` is the mean number of seconds that a step
    since the last row took to generate, grade and compute gradients; saving, evaluating and waiting are not in it.
    """
    step, tokens = 0, 0.0
    for row in rows:
        seconds = (row.get("step_time") or 0) * (row["step"] - step)
        if seconds > 0 and row.get("num_tokens"):
            row["tokens_per_second"] = (row["num_tokens"] - tokens) / seconds
        step, tokens = row["step"], row.get("num_tokens") or tokens


def name_apart(runs: list[Run], folders: list[Path]) -> None:
    """Runs whose folders have one name are called by the paths that were given."""
    names = [run.name for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        if names.count(run.name) > 1:
            run.name = str(folder)


def add_evaluation(run: Run, folder: Path, path: Path) -> dict[str, Any]:
    """Read `evals/NAME.json` and, if its model is the run's or the one it began with, add it to the run's accuracies.

    Raises:
        UsageError: the file cannot be read, or holds no finished evaluation.
    """
    try:
        info = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        strict, model = info["results"]["strict"], str(info["settings"]["model"])
        bounds = [float(strict[key]) for key in ("accuracy", "low", "high")]
    except OSError as error:
        raise UsageError(f"--evals {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--evals {path}: is not the NAME.json of a finished evaluation"
        ) from error
    step = _step_of(model, run, folder)
    if step is not None:
        run.accuracies = sorted([*run.accuracies, Accuracy(step, *bounds)])
    return info


def _step_of(model: str, run: Run, folder: Path) -> int | None:
    path = Path(model)
    if path.parent.name == folder.resolve().name:
        if path.name == FINAL:
            return run.rows[-1]["step"]
        number = path.name.removeprefix("checkpoint-")
        return int(number) if number.isdecimal() else None
    return 0 if model == (read_record(folder) or {}).get("model") else None


def matching(rows: Iterable[dict[str, Any]], patterns: tuple[str, ...]) -> list[str]:
    """The metrics in the rows that a panel shows, in the order of its patterns, each with a value somewhere."""
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if value is not None)
    return [key for pattern in patterns for key in keys if Path(key).match(pattern)]


def smooth(values: list[float]) -> list[float]:
    """The mean of each value and its neighbours, over `SMOOTHED_OVER` steps at most."""
    half = SMOOTHED_OVER // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def draw(runs: list[Run]) -> Figure:
    """One panel for each quantity that any of the runs has; colours tell runs apart, or the lines of a single run."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False  # a `$` in a name is a `$`
    shown = [
        title
        for title, patterns in PANELS.items()
        if any(
            run.accuracies if title == HELD_OUT else matching(run.rows, patterns) for run in runs
        )
    ]
    height = math.ceil(len(shown) / 3)
    figure = Figure(figsize=(13, 3.3 * height), layout="constrained")
    axes = figure.subplots(height, 3, squeeze=False)
    for axis, title in zip(axes.flat, shown, strict=False):
        _draw_panel(axis, title, runs)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    figure.suptitle(", ".join(run.name for run in runs))
    return figure


def _draw_panel(axis: Axes, title: str, runs: list[Run]) -> None:
    keys = matching([row for run in runs for row in run.rows], PANELS[title])
    for number, run in enumerate(runs):
        if title == HELD_OUT:
            _draw_accuracies(axis, run, f"C{number}", run.name if len(runs) > 1 else None)
        for place, key in enumerate(keys):  # one metric has one style in all runs
            points = [(row["step"], row[key]) for row in run.rows if row.get(key) is not None]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            colour = f"C{number if len(runs) > 1 else place}"
            style = LINE_STYLES[place % len(LINE_STYLES)] if len(runs) > 1 else "-"
            label = " ".join(filter(None, (run.name if len(runs) > 1 else "", _part(key)))) or None
            axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axis.plot(steps, smooth(list(values)), color=colour, linestyle=style, label=label)
    axis.set_title(title, fontsize="medium")
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    if title.startswith("Share") or title == HELD_OUT:
        axis.set_ylim(-0.02, 1.02)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize="small")


def _part(key: str) -> str:
    """What tells a metric from the others of its panel: the name of a reward, or right and wrong."""
    if key.startswith("rewards/"):
        return key.split("/")[1]
    return key.rpartition("_")[2] if key.startswith("completions/mean_length_") else ""


def _draw_accuracies(axis: Axes, run: Run, colour: str, label: str | None) -> None:
    if not run.accuracies:
        return
    steps, values, low, high = zip(*run.accuracies, strict=True)
    spread = [
        [value - bound for value, bound in zip(values, low, strict=True)],
        [bound - value for value, bound in zip(values, high, strict=True)],
    ]
    axis.errorbar(
        steps, values, yerr=spread, color=colour, fmt="o:", markersize=4, capsize=3, label=label
    )


def render(figure: Figure, form: str) -> bytes:
    """The figure as the bytes of a "png" or an "svg" file, the same for the same figure."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "grpo_math"
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=100, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()
