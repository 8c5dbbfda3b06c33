"""The picture of a search for hyperparameters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial


def draw_study(trials: list[FrozenTrial], logarithmic: Mapping[str, bool]) -> Figure:
    """Draw accuracy over the trials, and over each of the flags searched, on its scale."""
    from matplotlib.figure import Figure

    values = [trial.value for trial in trials]
    numbers = [trial.number for trial in trials]
    best = list(itertools.accumulate(values, max))
    figure = Figure(figsize=(4 * (len(logarithmic) + 1), 3.2), layout="constrained")
    first, *others = figure.subplots(1, len(logarithmic) + 1, sharey=True)
    first.plot(numbers, values, "o")
    first.step(numbers, best, where="post")
    first.xaxis.get_major_locator().set_params(integer=True)
    first.set(xlabel="trial", ylabel="held-out accuracy", title="each trial, and the best so far")
    for axis, (name, is_log) in zip(others, logarithmic.items(), strict=True):
        axis.plot([trial.params[name] for trial in trials], values, "o")
        axis.set_xlabel(name)
        if is_log:
            axis.set_xscale("log")
    return figure
