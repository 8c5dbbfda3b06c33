"""Continued as begun: a run that was stopped or killed ends as if it had not been, or the folder is refused in a line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
from grpo_math.run_folder import FINAL

from conftest import ROOT, STARTER, read_rows, write_jsonl

BASE = [
    *("--num_generations", 4, "--max_completion_length", 8, "--gradient_checkpointing", "false"),
    *("--report_to", "none", "--learning_rate", "1e-3", "--warmup_steps", 2, "--num_train_epochs", 3),
    *("--save_total_limit", -1, "--eval_size", 3, "--eval_steps", 2, "--train_data", "train.jsonl"),
]
# Each of 3 epochs, with questions left over. In "misaligned", generations and steps end together after 3 steps of 5.
SHAPES = {
    "reused": ["--per_device_train_batch_size", 16, "--gradient_accumulation_steps", 1, "--num_iterations", 2]
    + ["--save_steps", 2],
    "sliced": [
        *("--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 2, "--steps_per_generation", 4),
        *("--num_iterations", 2, "--save_steps", 4),
    ],
    "misaligned": [
        *("--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 4, "--steps_per_generation", 6),
        *("--save_steps", 3),
    ],
    "batched": [
        *("--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 4, "--generation_batch_size", 32),
        *("--save_steps", 2),
    ],
}
LORA = ["--use_peft", "true", "--lora_r", 4, "--lora_target_modules", "all-linear", "--lora_dropout", 0.1]
# Runs train_grpo.py again and again in one process. Of each run: its arguments, and the step in which the
# reward function asks it to stop, as a batch system would.
DRIVER = """
import json, runpy, sys
import stopper
for stopper.step, *command in json.load(open("commands.json")):
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        assert end.code == 75 and stopper.step, end.code
"""
STOPPER = """
import os, signal
step = 0
def steady(completions, trainer_state, **_):
    if trainer_state.global_step + 1 >= step > 0:
        os.kill(os.getpid(), signal.SIGUSR1)
    return [len(set(each[0]["content"])) % 5 / 4 for each in completions]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    rows = [
        {"question": f"What is {n} plus {n % 3}?", "answer": str(n + n % 3), "task": "arithmetic"} for n in range(24)
    ]
    write_jsonl(folder / "train.jsonl", rows)
    (folder / "stopper.py").write_text(STOPPER)
    return folder


def train_all(place: Path, runs: list[list]) -> str:
    """The output of runs, each [step to be stopped in or 0, output_dir, flag...], all from one process."""
    commands = [
        [step, str(ROOT / "train_grpo.py"), str(STARTER), "--output_dir", run, "--reward_funcs", "stopper.steady"]
        + [str(word) for word in [*BASE, *flags]]
        for step, run, *flags in runs
    ]
    (place / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run([sys.executable, "-c", DRIVER], cwd=place, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def content(run: Path) -> dict[str, object]:
    """What a run has made: weights, optimizer, what was asked and answered, and what was logged, but for times."""
    (weights,) = [*(run / FINAL).glob("*model.safetensors")]
    found: dict[str, object] = {"weights": weights.read_bytes()}
    for path in (run / "completions").glob("*.parquet"):
        found[path.name] = pyarrow.parquet.read_table(path).to_pydict()
    for row in read_rows(run / "metrics.jsonl"):
        kind = "eval" if "eval_accuracy" in row else "train"
        if "train_runtime" not in row:
            found[f"{kind} {row['step']}"] = {k: v for k, v in row.items() if "time" not in k and "per_second" not in k}
    return found


def assert_same(place: Path, one: str, other: str) -> None:
    whole, cut = content(place / one), content(place / other)
    different = sorted(name for name in whole.keys() | cut.keys() if whole.get(name) != cut.get(name))
    assert not different


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(place, shape):
    flags = [*SHAPES[shape], *(LORA if shape == "sliced" else [])]
    runs = [[stop, f"{shape}-cut", *flags] for stop in (3, 7, 11, 0)]
    said = train_all(place, [[0, f"{shape}-whole", *flags], *runs])
    assert said.count("continuing from") >= 2, said
    assert_same(place, f"{shape}-whole", f"{shape}-cut")
