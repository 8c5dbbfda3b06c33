"""Time to 80% accuracy on the starter task: this project, plain GRPOTrainer with the same settings, and TRL's defaults.

    OMP_NUM_THREADS=2 python benchmarks/bench_learning.py --write

Runs of recipes/starter_arithmetic.yaml, one after the other in processes of their own: this project, plain, this
project, plain ..., each pair with a seed of its own. A run ends when the mean accuracy of the completions of five steps
in a row reaches 80%; time counts from the first step. Until all are finished, those that are stay in --runs_file, and a
second start goes on with the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tables import machine, publish, ratio, spread, table

ROOT = Path(__file__).resolve().parent.parent
GOAL, STEPS = 0.8, 5
KINDS = {
    "ours": "this project",
    "plain": "GRPOTrainer, same settings",
    "defaults": "GRPOTrainer, TRL's defaults (as many completions a step)",
}


def build_args(kind: str, seed: int) -> tuple[Any, list[str]]:
    """TRL's arguments of a run, and the names of its rewards."""
    from grpo_math.launch.arguments import parse_options, parse_trl_arguments
    from grpo_math.launch.settle import Facts, settle_arguments

    options = parse_options(["--config", str(ROOT / "recipes/starter_arithmetic.yaml")], "")
    if kind == "defaults":  # all but what the task asks for, and the size of a step
        kept = ["max_steps", "num_generations", "max_completion_length"]
        kept += ["per_device_train_batch_size", "gradient_accumulation_steps"]
        options.recipe = {key: options.recipe[key] for key in kept}
        options.rest = ["--loss_type", "dapo", "--scale_rewards", "group"]
        options.rest += ["--lr_scheduler_type", "linear", "--warmup_steps", "0"]
    machine_settings = {
        "bf16": False,
        "attn_implementation": "sdpa",
        "dataloader_pin_memory": False,
    }
    arguments = parse_trl_arguments(options, machine_settings)
    arguments.output_dir, arguments.report_to = tempfile.mkdtemp(), ["none"]
    arguments.save_strategy, arguments.log_completions, arguments.seed = "no", False, seed
    args, _ = settle_arguments(options, arguments, Facts())
    args.disable_tqdm = True
    return args, options.reward_funcs


def run_once(kind: str, seed: int, limit: float, clock: Callable[[], float]) -> dict[str, Any]:
    """Train until the goal or the limit (seconds): seconds and steps that it took, and where they went."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer

    from grpo_math.data.problems import sum_problems
    from grpo_math.data.prompts import build_prompt
    from grpo_math.data.styles import get_style
    from grpo_math.rewards.build import build_rewards
    from grpo_math.training.trainer import MathGRPOTrainer

    args, reward_names = build_args(kind, seed)
    style = get_style("answer_tag")
    rows = []
    for each in sum_problems(4500, -99, 99, seed=1):
        prompt = build_prompt(style, each.question, chat=True)
        row = {
            "prompt": prompt,
            "question": each.question,
            "answer": str(each.answer),
            "task": "arithmetic",
        }
        rows.append(row)
    accuracy, generation, result = [], [0.0], {"seconds": None, "steps": None}

    class Goal(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = clock()

        def on_log(self, args, state, control, logs=None, **_: Any) -> None:
            if "reward" not in (logs or {}):
                return
            accuracy.append(
                next(value for key, value in logs.items() if key.startswith("rewards/accuracy"))
            )
            result.update(
                elapsed=clock() - self.started, accuracy=statistics.mean(accuracy[-STEPS:])
            )
            if len(accuracy) >= STEPS and result["accuracy"] >= GOAL:
                result.update(seconds=result["elapsed"], steps=state.global_step)
            control.should_training_stop = (
                result["seconds"] is not None or result["elapsed"] > limit
            )

    def timed(trainer: Any, *more: Any, **named: Any) -> Any:
        started = clock()
        answer = super(measured, trainer)._generate_single_turn(*more, **named)
        generation[0] += clock() - started
        return answer

    trainer_class = MathGRPOTrainer if kind == "ours" else GRPOTrainer
    measured = type("Measured", (trainer_class,), {"_generate_single_turn": timed})
    trainer = measured(
        str(ROOT / "starter_model"),
        build_rewards(reward_names, style),
        args,
        Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(ROOT / "starter_model"),
        callbacks=[Goal()],
    )
    trainer.train()
    count = len(accuracy)
    return result | {
        "count": count,
        "step": result["elapsed"] / count,
        "generation": generation[0] / count,
    }


def runs(path: Path, pairs: int, limit: float, cpu_time: bool) -> list[dict[str, Any]]:
    """All runs, those in `path` first and the missing ones after them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    wanted = [(kind, seed) for seed in range(pairs) for kind in ("ours", "plain")]
    wanted.append(("defaults", 0))
    for kind, seed in wanted:
        if any((run["kind"], run["seed"]) == (kind, seed) for run in done):
            continue
        command = [sys.executable, __file__, "--one", kind, str(seed), "--limit", str(limit)]
        command += ["--cpu_time"] * cpu_time
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        done.append({"kind": kind, "seed": seed, **json.loads(output.splitlines()[-1])})
        with path.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        print(done[-1], file=sys.stderr, flush=True)
    return done


def line(kind: str, done: list[dict[str, Any]]) -> list[object]:
    those = [run for run in done if run["kind"] == kind]
    step, generation = ([run[key] for run in those] for key in ("step", "generation"))
    train = [run["step"] - run["generation"] for run in those]
    shown = [KINDS[kind], *map(spread, (step, generation, train))]
    if any(run["seconds"] is None for run in those):
        ends = ", ".join(f"{run['accuracy']:.0%} after {run['elapsed']:.0f} s" for run in those)
        return [*shown, "-", f"not reached: {ends}", "-"]
    seconds, steps = [run["seconds"] for run in those], [run["steps"] for run in those]
    plain = [run for run in done if run["kind"] == "plain" and run["seconds"]]
    pairs = [
        (other["seconds"], run["seconds"])
        for run in those
        for other in plain
        if run["seed"] == other["seed"]
    ]
    faster = ratio(*map(list, zip(*pairs, strict=True))) if pairs else "-"
    return [*shown, spread(steps, ".0f"), spread(seconds, ".0f"), faster]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pairs", type=int, default=5, help="of runs, with other seeds (default: 5)"
    )
    parser.add_argument(
        "--limit", type=float, default=900, help="seconds after which a run gives up (default: 900)"
    )
    parser.add_argument("--runs_file", type=Path, default=Path("outputs/bench_learning.jsonl"))
    parser.add_argument(
        "--cpu_time",
        action="store_true",
        help="for a machine that others use: CPU time, not wall time",
    )
    parser.add_argument("--one", nargs=2, metavar=("KIND", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--write", action="store_true", help="put the table into benchmarks/README.md"
    )
    args = parser.parse_args()
    if args.one:
        clock = time.process_time if args.cpu_time else time.perf_counter
        print(json.dumps(run_once(args.one[0], int(args.one[1]), args.limit, clock)))
        return
    done = runs(args.runs_file, args.pairs, args.limit, args.cpu_time)
    header = ["", "a step, s", "of which generation", "and all else"]
    header += ["steps to 80%", "seconds to 80%", "times as fast"]
    text = f"{machine('transformers', 'trl')}\n\nMedians (and range) of {args.pairs} pairs of runs with the same seed.\n\n"
    publish("learning", text + table(header, [line(kind, done) for kind in KINDS]), args.write)
    args.runs_file.unlink()


if __name__ == "__main__":
    main()
