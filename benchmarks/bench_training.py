"""The training phase of a step (log-probabilities, loss, backward): this project's trainer and plain GRPOTrainer.

    OMP_NUM_THREADS=1 python benchmarks/bench_training.py --write

256 completions of the starter model in micro-batches of 64, at several shares of groups whose completions are all
rewarded alike, and with several distributions of length. Both trainers get the same completions, new ones in each
round, one trainer after the other within a round. Generation, rewards and the optimizer are not in the times.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tables import machine, publish, ratio, spread, table

STARTER = Path(__file__).resolve().parent.parent / "starter_model"
GROUP, ROWS, MICRO, SHORTEST, CAP = 16, 256, 64, 8, 96
ON_POLICY = [
    ("even", 0.0),
    ("even", 0.25),
    ("even", 0.5),
    ("even", 0.75),
    ("long-tailed", 0.0),
    ("long-tailed", 0.5),
]
OFF_POLICY = [
    ("even", 0.5)
]  # in which log-probabilities are computed without a gradient first, and used twice


def lengths(kind: str, count: int, seed: int) -> list[int]:
    """`even`: between SHORTEST and CAP; `long-tailed`: log-normal with a median of 24, cut at CAP."""
    import torch

    noise = torch.Generator().manual_seed(seed)
    if kind == "even":
        return torch.randint(SHORTEST, CAP + 1, (count,), generator=noise).tolist()
    normal = torch.randn(count, generator=noise)
    return [min(CAP, max(SHORTEST, round(math.exp(math.log(24) + 0.6 * float(x))))) for x in normal]


def build(kind: type, folder: str, iterations: int):
    """A trainer on the starter model whose completions are given: `trainer.case` says how long they are, and how many
    groups are rewarded alike."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig

    from grpo_math.data.problems import sum_problems
    from grpo_math.data.prompts import build_prompt
    from grpo_math.data.styles import get_style

    def given(trainer, prompt_ids, *_, **__):
        noise = torch.Generator().manual_seed(trainer.round)
        sizes = lengths(trainer.case[0], len(prompt_ids), trainer.round)
        ids = [torch.randint(20, 500, (size,), generator=noise).tolist() for size in sizes]
        return [[*each[:-1], trainer.eos_token_ids[0]] for each in ids], None

    def reward(completion_ids, **_):
        alike = round(trainer.case[1] * ROWS / GROUP)
        return [
            1.0 if row // GROUP < alike else float(row % 2) for row in range(len(completion_ids))
        ]

    args = GRPOConfig(
        **{
            "output_dir": folder,
            "report_to": "none",
            "bf16": False,
            "use_cpu": True,
            "num_generations": GROUP,
        },
        **{"per_device_train_batch_size": MICRO, "gradient_accumulation_steps": ROWS // MICRO},
        **{
            "max_completion_length": CAP,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
        },
        **{"loss_type": "dr_grpo", "scale_rewards": "none", "num_iterations": iterations},
    )
    style = get_style("answer_tag")
    rows = [
        {"prompt": build_prompt(style, problem.question, chat=True)}
        for problem in sum_problems(64, -99, 99, 0)
    ]
    model = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32)
    given_kind = type("Given", (kind,), {"_generate_single_turn": given})
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    trainer = given_kind(model, reward, args, Dataset.from_list(rows), processing_class=tokenizer)
    trainer.create_optimizer_and_scheduler(1)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = ROWS // MICRO
    trainer.round = 0
    return trainer, next(iter(trainer.get_train_dataloader()))


def training_phase(trainer, batch, iterations: int, clock: Callable[[], float]) -> float:
    """Seconds of one generation's training without generation and rewards."""
    outside = [0.0]
    timed = {name: getattr(trainer, name) for name in ("_generate", "_calculate_rewards")}
    for name, function in timed.items():

        def left_out(*args, function=function, **kwargs):
            started = clock()
            result = function(*args, **kwargs)
            outside[0] += clock() - started
            return result

        setattr(trainer, name, left_out)
    trainer._step, trainer.round = 0, trainer.round + 1
    started = clock()
    for micro in range(iterations * ROWS // MICRO):
        trainer.accelerator.gradient_state._set_sync_gradients((micro + 1) % (ROWS // MICRO) == 0)
        trainer.training_step(trainer.model, batch, None)
    seconds = clock() - started - outside[0]
    trainer.model.zero_grad()
    for name in timed:
        delattr(trainer, name)
    return seconds


def measure(
    iterations: int, cases: list[tuple[str, float]], rounds: int, clock: Callable[[], float]
) -> list[list[object]]:
    """A line of the table for each case."""
    from trl import GRPOTrainer

    from grpo_math.training.trainer import MathGRPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainers = [build(kind, folder, iterations) for kind in (GRPOTrainer, MathGRPOTrainer)]
        lines = []
        for case in cases:
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds + 1):
                for each, (trainer, batch) in zip(times, trainers, strict=True):
                    trainer.case = case
                    each.append(training_phase(trainer, batch, iterations, clock))
            plain, ours = (each[1:] for each in times)  # the first warms up
            how = (
                "on-policy"
                if iterations == 1
                else f"num_iterations {iterations}, with old log-probabilities"
            )
            lines.append(
                [how, case[0], f"{case[1]:.0%}", spread(plain), spread(ours), ratio(plain, ours)]
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="of which medians are taken (default: 7)"
    )
    parser.add_argument(
        "--cpu_time",
        action="store_true",
        help="for a machine that others use: CPU time, not wall time",
    )
    parser.add_argument(
        "--write", action="store_true", help="put the table into benchmarks/README.md"
    )
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    header = [
        "",
        "lengths",
        "groups rewarded alike",
        "GRPOTrainer, s",
        "this project, s",
        "times as fast",
    ]
    lines = measure(1, ON_POLICY, args.rounds, clock) + measure(2, OFF_POLICY, args.rounds, clock)
    text = f"{machine('transformers', 'trl')}\n\n{ROWS} completions of {SHORTEST} to {CAP} tokens, micro-batches of "
    text += f"{MICRO}, groups of {GROUP}, starter model (0.7M parameters), float32; {'CPU' if args.cpu_time else 'wall'} "
    text += (
        f"time, medians (and range) of {args.rounds} interleaved rounds.\n\n{table(header, lines)}"
    )
    publish("training", text, args.write)


if __name__ == "__main__":
    main()
