"""A search for hyperparameters: which flags are searched, and the training run of each trial."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_math.data.rows import fingerprint
from grpo_math.errors import UsageError
from grpo_math.files import read_jsonl
from grpo_math.launch.arguments import parse_options

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Values:
    """What a flag may be: between two ends, in whole numbers or on a log scale, or a choice."""

    ends: tuple[float, float] = (0.0, 0.0)
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()

    def choose(self, trial: optuna.Trial, name: str) -> str:
        """Choose a value for a trial, as it would be given on the command line."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        low, high = self.ends
        if self.whole:
            return str(trial.suggest_int(name, int(low), int(high), log=self.log))
        return repr(trial.suggest_float(name, low, high, log=self.log))


Space = Mapping[str, Values]  # by the flag's name


class TrialFailed(Exception):
    """A training run that ended without a result."""


def parse_space(items: list[str]) -> Space:
    """Read the flags to search: `NAME=LOW..HIGH`, `NAME=LOW..HIGH:log` or `NAME=A,B,C`.

    Raises:
        UsageError: one of them is none of these, or is there twice.
    """
    space: dict[str, Values] = {}
    for item in items:
        name, _, text = item.partition("=")
        values = _parse_values(text)
        if not name or values is None:
            forms = "NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C"
            raise UsageError(f"--search {item}: give {forms}")
        if name in space:
            raise UsageError(f"--search {item}: {name} is searched twice")
        space[name] = values
    return space


def _parse_values(text: str) -> Values | None:
    log, ends = text.endswith(":log"), text.removesuffix(":log").split("..")
    if len(ends) == 1:
        return Values(choices=tuple(text.split(","))) if text and not log else None
    try:
        low, high = map(float, ends)
    except ValueError:
        return None
    if low >= high or (log and low <= 0):
        return None
    numerals = re.fullmatch(r"[-\d.]+(:log)?", text) is not None  # and not 1e3
    return Values((low, high), log, numerals and low.is_integer() and high.is_integer())


def check_flags(flags: list[str], space: Space) -> list[str]:
    """Give what tells a study from others: the flags of train_grpo.py, and what their recipe holds.

    Raises:
        UsageError: a flag is missing, or says what the search itself says.
    """
    options = parse_options(flags, "")
    if not options.eval_size and "eval_size" not in space:
        reason = "trials are judged by their accuracy on held-out questions"
        raise UsageError(f"--eval_size: is needed, as {reason}")
    given = {flag.split("=")[0].removeprefix("--") for flag in flags if flag.startswith("--")}
    if "output_dir" in given | space.keys():
        raise UsageError("--output_dir: each trial has a folder of its own; give --study_dir")
    if "model_name_or_path" in space and flags and not flags[0].startswith("-"):
        way_out = "leave MODEL out to search over models"
        raise UsageError(f"MODEL {flags[0]} and --search model_name_or_path: {way_out}")
    if options.model is None and "model_name_or_path" not in space:
        raise UsageError("no model: search_hyperparameters.py MODEL, a Hub id or a folder")
    if "model_name_or_path" in given & space.keys():
        raise UsageError("--model_name_or_path: is searched; leave it out, or out of --search")
    return [*flags, *([fingerprint(options.config)] if options.config else [])]


def open_study(folder: Path, command: list[str], seed: int) -> optuna.Study:
    """Begin a study in a folder, or go on with the one that is there.

    Raises:
        UsageError: optuna is not installed, or the folder holds the study of another command.
    """
    try:
        import optuna
    except ImportError:
        install = 'pip install -c constraints.txt -e ".[search]"'
        raise UsageError(f"optuna is not installed: {install}") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'study.db'}",
        study_name="search",
        direction="maximize",
        load_if_exists=True,
    )
    before = study.user_attrs.get("command", command)
    if before != command:
        other = f"holds the study of another command ({' '.join(before)})"
        raise UsageError(f"--study_dir {folder}: {other}")
    study.set_user_attr("command", command)
    # What has been drawn before would be drawn again.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study


def run_trials(
    study: optuna.Study, count: int, command: list[str], space: Space, folder: Path
) -> None:
    """Run trials until `count` of the study have ended well or this call has run so many.

    `command` trains, but for the values searched and the trial's own folder below `folder`.

    Raises:
        UsageError: a trial ended in a way that the next would, too, or none ended well.
    """
    from optuna.trial import TrialState

    for _ in range(len(finished_trials(study)), count):
        trial = study.ask()
        chosen = {name: values.choose(trial, name) for name, values in space.items()}
        try:
            accuracy = _train(trial.number, command, chosen, folder / f"trial-{trial.number}")
        except TrialFailed as error:
            study.tell(trial, state=TrialState.FAIL)
            print(f"trial {trial.number} failed: {error}", flush=True)
        else:
            study.tell(trial, accuracy)
            said = f"{accuracy:.1%} with {json.dumps(chosen)}"
            print(f"trial {trial.number}: {said}", flush=True)
    if not finished_trials(study):
        raise UsageError("no trial has ended well; their messages are above")


def finished_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """List the trials that ended with an accuracy."""
    return [trial for trial in study.trials if trial.value is not None]


def _train(number: int, command: list[str], chosen: Mapping[str, str], folder: Path) -> float:
    """Run a trial; give the last held-out accuracy, from 0 to 1."""
    flags = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    words = [*command, *flags, "--output_dir", str(folder)]
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
    if done.returncode == 2:
        raise TrialFailed(said[-1])
    if done.returncode:
        raise UsageError(f"trial {number} ended with status {done.returncode}: {said[-1]}")
    rows = [row for _, row in read_jsonl(folder / "metrics.jsonl") if "eval_accuracy" in row]
    return rows[-1]["eval_accuracy"]
