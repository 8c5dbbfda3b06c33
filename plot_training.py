"""Draw the curves of a training run and write a report of it, or draw several over each other.

    python plot_training.py outputs/RUN
    python plot_training.py outputs/RUN --evals evals/before.json evals/after.json
    python plot_training.py outputs/A outputs/B --output ab.png

The curves come from metrics.jsonl alone. Of one run there is a report.html as well, in its folder:
curves, settings, accuracies, and saved completions to search, filter and read. It is one file that
needs no server and no network. --evals adds accuracies of the run's checkpoints and of the model
that it began with; evaluations of other models stand in the report, but not in the curves.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grpo_math.errors import UsageError, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--output", type=Path, help="PNG file (default: training.png in the first run's folder)"
    )
    parser.add_argument(
        "--evals",
        nargs="+",
        type=Path,
        default=[],
        metavar="JSON",
        help="evaluations of the run's models, first first",
    )
    parser.add_argument(
        "--completions",
        type=int,
        default=10_000,
        metavar="N",
        help="in a report, evenly over the steps (10000)",
    )
    args = parser.parse_args()
    if args.completions < 0:
        raise UsageError(f"--completions {args.completions}: must be 0 or more")
    if args.evals and len(args.runs) > 1:
        raise UsageError("--evals: takes one RUN, whose models were evaluated")
    return args


def main() -> None:
    args = parse_args()

    from grpo_math.files import write_bytes_atomic
    from grpo_math.publish.curves import add_evaluation, draw, name_apart, read_run, render
    from grpo_math.publish.run_report import write_report

    runs = [read_run(folder) for folder in args.runs]
    evaluations = [add_evaluation(runs[0], args.runs[0], path) for path in args.evals]
    for measured, place in evaluations:
        if place.step is None:
            told = f"{measured.model} is {place.words} by its files, and not on the curve"
            print(f"note: {measured.path}: {told}", file=sys.stderr)
    name_apart(runs, args.runs)
    output = args.output or args.runs[0] / "training.png"
    write_bytes_atomic(output, render(draw(runs), "png"))
    print(output)
    if len(runs) == 1:
        print(write_report(args.runs[0], runs[0], evaluations, args.completions))


if __name__ == "__main__":
    run(main)
