"""Search for hyperparameters with Optuna: each trial trains, and is judged by held-out accuracy.

    pip install -c constraints.txt -e ".[search]"
    python search_hyperparameters.py starter_model --config recipes/starter_arithmetic.yaml \\
        --max_steps 40 --eval_size 200 --trials 12 \\
        --search learning_rate=1e-5..1e-3:log num_generations=8,16

`--search NAME=LOW..HIGH` (`:log` for a logarithmic scale) or `NAME=A,B,C` takes any flag of
train_grpo.py; all other flags and MODEL are its own. Without MODEL, model_name_or_path can be
searched, too. The folder holds `study.db`, `study.png`, and each trial's run; the same command goes
on. The accuracy of the best of many trials is flattered by the choice: evaluate it on other
questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from grpo_math.errors import run


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """Read the search's own flags; give those of train_grpo.py as they are."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s MODEL --search NAME=VALUES ... [flags]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    forms = "LOW..HIGH[:log] or A,B,C"
    add("--search", nargs="+", metavar="NAME=VALUES", required=True, help=forms)
    add("--trials", type=int, default=10, help="finished ones in the end (default: 10)")
    folder = Path("outputs/search")
    add("--study_dir", type=Path, default=folder, help=f"(default: {folder})")
    add("--sampler_seed", type=int, default=0, help="of the choice of values (default: 0)")
    return parser.parse_known_args()


def main() -> None:
    args, flags = parse_args()
    from grpo_math.launch import search

    space = search.parse_space(args.search)
    identity = search.check_flags(flags, space)
    study = search.open_study(args.study_dir, [*args.search, *identity], args.sampler_seed)
    train = [sys.executable, str(Path(__file__).with_name("train_grpo.py")), *flags]
    search.run_trials(study, args.trials, train, space, args.study_dir)

    from grpo_math.files import write_bytes_atomic
    from grpo_math.publish.curves import render
    from grpo_math.publish.study import draw_study

    scales = {name: values.log for name, values in space.items()}
    picture = draw_study(search.finished_trials(study), scales)
    write_bytes_atomic(args.study_dir / "study.png", render(picture, "png"))
    best, value = study.best_trial, study.best_value
    where = args.study_dir / f"trial-{best.number}"
    print(f"best: {value:.1%} with {json.dumps(best.params)}, in {where}")


if __name__ == "__main__":
    run(main)
