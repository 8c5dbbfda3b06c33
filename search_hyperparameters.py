"""Search for hyperparameters with Optuna: each trial is a training run, judged by its accuracy on held-out questions.

    pip install -c constraints.txt -e ".[search]"
    python search_hyperparameters.py starter_model --config recipes/starter_arithmetic.yaml --max_steps 40 \\
        --trials 12 --search learning_rate=1e-5..1e-3:log num_generations=8,16 --eval_size 200

`--search NAME=LOW..HIGH` (`:log` for a logarithmic scale) or `NAME=A,B,C` takes any flag of train_grpo.py; all other
flags are its own. The folder holds `study.db`, `study.png`, and each trial's run; the same command goes on.
The held-out accuracy of the best of many trials is flattered by the choice: evaluate it on other questions.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_math.errors import UsageError, run
from grpo_math.files import read_jsonl, write_bytes_atomic

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Values:
    """What a flag may be: between two ends, on a logarithmic scale or as whole numbers, or one of the choices."""

    ends: tuple[float, float] = (0.0, 0.0)
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()


Space = dict[str, Values]  # by the flag's name


class TrialFailed(Exception):
    """A training run that ended without a result."""


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="as for train_grpo.py")
    parser.add_argument(
        "--search", nargs="+", metavar="NAME=VALUES", required=True, help="LOW..HIGH[:log] or A,B,C"
    )
    parser.add_argument(
        "--trials", type=int, default=10, help="finished ones in the end (default: 10)"
    )
    parser.add_argument(
        "--study_dir", type=Path, default=Path("outputs/search"), help="(default: outputs/search)"
    )
    parser.add_argument(
        "--sampler_seed", type=int, default=0, help="of the choice of values (default: 0)"
    )
    return parser.parse_known_args()


def parse_space(items: list[str]) -> Space:
    """The flags to search, from `NAME=LOW..HIGH`, `NAME=LOW..HIGH:log` and `NAME=A,B,C`.

    Raises:
        UsageError: one of them is none of these.
    """
    space = {}
    for item in items:
        name, _, values = item.partition("=")
        log = values.endswith(":log")
        try:
            ends = (
                [float(end) for end in values.removesuffix(":log").split("..")]
                if ".." in values
                else []
            )
        except ValueError:
            ends = [0.0]
        is_range = len(ends) == 2 and ends[0] < ends[1] and (ends[0] > 0 or not log)
        if not name or not values or (not is_range and (ends or log)):
            raise UsageError(
                f"--search {item}: give NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C"
            )
        whole = (
            all(end.is_integer() for end in ends)
            and re.fullmatch(r"[-\d.]+(:log)?", values) is not None
        )
        space[name] = (
            Values((ends[0], ends[1]), log, whole)
            if ends
            else Values(choices=tuple(values.split(",")))
        )
    return space


def choose(trial: optuna.Trial, name: str, values: Values) -> str:
    """A value of one flag for a trial, as it would be given on the command line."""
    if values.choices:
        return trial.suggest_categorical(name, values.choices)
    low, high = values.ends
    if values.whole:
        return str(trial.suggest_int(name, int(low), int(high), log=values.log))
    return repr(trial.suggest_float(name, low, high, log=values.log))


def train(trial: optuna.Trial, model: str, space: Space, rest: list[str], folder: Path) -> float:
    """Run a trial; returns the last held-out accuracy, from 0 to 1.

    Raises:
        TrialFailed: training did not end well; its own last line says why.
    """
    chosen = {name: choose(trial, name, values) for name, values in space.items()}
    run_dir = folder / f"trial-{trial.number}"
    command = [sys.executable, str(Path(__file__).with_name("train_grpo.py")), model, *rest]
    command += [word for name, value in chosen.items() for word in (f"--{name}", value)]
    done = subprocess.run(
        [*command, "--output_dir", str(run_dir)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode == 2:
        raise TrialFailed(said[-1] if said else "no message")
    if done.returncode:
        raise UsageError(
            f"trial {trial.number} ended with status {done.returncode}: {(said or ['no message'])[-1]}"
        )
    rows = [row for _, row in read_jsonl(run_dir / "metrics.jsonl") if "eval_accuracy" in row]
    print(
        f"trial {trial.number}: {rows[-1]['eval_accuracy']:.1%} with {json.dumps(chosen)}",
        flush=True,
    )
    return rows[-1]["eval_accuracy"]


def plot(study: optuna.Study, space: Space, path: Path) -> None:
    """Accuracy over the trials, and over each of the values searched."""
    from matplotlib.figure import Figure

    from grpo_math.publish.curves import render

    finished = [trial for trial in study.trials if trial.value is not None]
    values = [trial.value for trial in finished]
    figure = Figure(figsize=(4 * (len(space) + 1), 3.2), layout="constrained")
    axes = figure.subplots(1, len(space) + 1, sharey=True)
    axes[0].plot([trial.number for trial in finished], values, "o")
    axes[0].step(
        [t.number for t in finished],
        [max(values[: i + 1]) for i in range(len(values))],
        where="post",
    )
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].set(xlabel="trial", ylabel="held-out accuracy", title="each trial, and the best so far")
    for axis, (name, given) in zip(axes[1:], space.items(), strict=True):
        axis.plot([trial.params[name] for trial in finished], values, "o")
        axis.set_xlabel(name)
        if given.log:
            axis.set_xscale("log")
    write_bytes_atomic(path, render(figure, "png"))


def main() -> None:
    args, rest = parse_args()
    space = parse_space(args.search)
    if "--eval_size" not in rest:
        raise UsageError(
            "--eval_size: is needed, as trials are judged by their accuracy on held-out questions"
        )
    if "--output_dir" in rest:
        raise UsageError("--output_dir: each trial has a folder of its own; give --study_dir")
    try:
        import optuna
    except ImportError:
        raise UsageError(
            'optuna is not installed: pip install -c constraints.txt -e ".[search]"'
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    args.study_dir.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{args.study_dir / 'study.db'}",
        study_name="search",
        direction="maximize",
        load_if_exists=True,
    )
    command = [args.model, *args.search, *rest]
    if study.user_attrs.get("command", command) != command:
        before = " ".join(study.user_attrs["command"])
        raise UsageError(
            f"--study_dir {args.study_dir}: holds the study of another command ({before})"
        )
    study.set_user_attr("command", command)
    # What has been drawn before would be drawn again.
    study.sampler = optuna.samplers.TPESampler(seed=args.sampler_seed + len(study.trials))
    for _ in range(sum(trial.value is not None for trial in study.trials), args.trials):
        trial = study.ask()
        try:
            study.tell(trial, train(trial, args.model, space, rest, args.study_dir))
        except TrialFailed as error:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            print(f"trial {trial.number} failed: {error}", flush=True)
    if all(trial.value is None for trial in study.trials):
        raise UsageError("no trial has ended well; their messages are above")
    plot(study, space, args.study_dir / "study.png")
    best = study.best_trial
    print(
        f"best: {best.value:.1%} with {json.dumps(best.params)}, in {args.study_dir}/trial-{best.number}"
    )


if __name__ == "__main__":
    run(main)
