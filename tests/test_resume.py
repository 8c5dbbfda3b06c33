"""Continued as begun: a run that was stopped or killed ends as if it had not been, or is refused in a line."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from grpo_math.errors import UsageError
from grpo_math.launch.resume import Rhythm, damage, differences, open_run
from grpo_math.run_folder import COMPLETE, FINAL, checkpoint_step, checkpoints, mark_complete, write_record
from grpo_math.training.diagnosis import Diagnosis
from grpo_math.training.sampling import EpochSampler
from safetensors.torch import save_file
from transformers import TrainerControl, TrainerState
from trl.trainer.utils import RepeatSampler

from conftest import ROOT, STARTER, read_rows, write_jsonl

BASE = [
    *("--num_generations", 4, "--max_completion_length", 8, "--gradient_checkpointing", "false"),
    *("--report_to", "none", "--learning_rate", "1e-3", "--warmup_steps", 2, "--num_train_epochs", 3),
    *("--save_total_limit", -1, "--eval_size", 3, "--eval_steps", 2, "--train_data", "train.jsonl"),
]
# Of 21 questions, some are left over in each epoch. What is said behind is for one process.
SHAPES = {
    # 6 steps an epoch, 2 for each generation
    "reused": [
        *("--per_device_train_batch_size", 24, "--gradient_accumulation_steps", 1, "--num_iterations", 2),
        *("--save_steps", 2),
    ],
    # 8 steps an epoch, 4 for each generation
    "sliced": [
        *("--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 2, "--steps_per_generation", 4),
        *("--num_iterations", 2, "--save_steps", 4),
    ],
    # 5 steps an epoch, the last one of two micro-batches; generations and steps end together after 3 and 5
    "misaligned": [
        *("--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 4, "--steps_per_generation", 6),
        *("--save_steps", 3),
    ],
    # 4 steps an epoch, 2 for each generation
    "batched": [
        *("--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 4, "--generation_batch_size", 32),
        *("--save_steps", 0.2),
    ],
}
SHAPES["informative"] = [*SHAPES["sliced"], "--question_sampling", "informative"]
SHAPES["informative"] += ["--reward_funcs", "accuracy_lenient", "stopper.steady"]
LORA = ["--use_peft", "true", "--lora_r", 4, "--lora_target_modules", "all-linear", "--lora_dropout", 0.1]
# Runs train_grpo.py again and again in one process. Of each run: its arguments, and the step in which the
# reward function asks it to stop, as a batch system would. "remove" removes a folder.
DRIVER = """
import json, runpy, shutil, sys
import stopper
for stopper.step, *command in json.load(open("commands.json")):
    if stopper.step == "remove":
        shutil.rmtree(command[0])
        continue
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
        {"question": f"What is {n} plus {n % 3}?", "answer": str(n + n % 3), "task": "arithmetic"} for n in range(57)
    ]
    write_jsonl(folder / "train.jsonl", rows[:24])
    write_jsonl(folder / "many.jsonl", rows)
    (folder / "stopper.py").write_text(STOPPER)
    return folder


def command(run: str, flags: list) -> list[str]:
    words = ["--output_dir", run, "--reward_funcs", "stopper.steady", *BASE, *flags]
    return [str(word) for word in (ROOT / "train_grpo.py", STARTER, *words)]


def train_all(place: Path, runs: list[list]) -> str:
    """The output of runs, each [step to be stopped in or 0, output_dir, flag...], all from one process."""
    lines = [[stop, run] if stop == "remove" else [stop, *command(run, flags)] for stop, run, *flags in runs]
    (place / "commands.json").write_text(json.dumps(lines))
    done = subprocess.run([sys.executable, "-c", DRIVER], cwd=place, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def content(run: Path) -> dict[str, object]:
    """What a run has made: its weights, what was asked and answered, and what was logged, but for times."""
    (weights,) = (run / FINAL).glob("*model.safetensors")
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


@pytest.fixture(scope="module")
def said(place):
    """Runs that were cut, killed after their last step, or prolonged, and the same runs whole."""
    reused, misaligned = SHAPES["reused"], [*SHAPES["misaligned"], *LORA]
    return train_all(
        place,
        [
            [0, "reused", *reused],
            *([stop, "reused-cut", *reused] for stop in (3, 9, 0)),
            [0, "misaligned", *misaligned],
            *([stop, "misaligned-cut", *misaligned] for stop in (2, 7, 0)),
            ["remove", f"misaligned-cut/{FINAL}"],
            [0, "misaligned-cut", *misaligned],
            [0, "longer", *reused, "--max_steps", 3],
            [0, "longer", *reused, "--max_steps", 5],
            [0, "long", *reused, "--max_steps", 5],
        ],
    )


@pytest.mark.parametrize("run", ["reused-cut", "misaligned-cut", "longer"])
def test_a_run_that_was_cut_ends_as_if_it_had_not_been(place, said, run):
    whole = {"longer": "long"}.get(run, run.removesuffix("-cut"))
    assert f"continuing from {run}/checkpoint-" in said
    assert_same(place, whole, run)


def test_checkpoints_are_written_where_completions_are_used_up_and_it_is_said(place, said):
    steps = {run: [checkpoint_step(path) for path in checkpoints(place / run)] for run in ("misaligned", "longer")}
    assert steps["misaligned"] == [3, 8, 10, 13, 15]  # due at 3, 6, 9, 12 and 15
    assert steps["longer"] == [2, 4]  # and neither 3 nor 5, the last ones
    assert "note: no checkpoint after step 6, whose completions are still in use" in said
    assert "note: no checkpoint after step 3, whose completions are still in use" in said
    assert "continuing from misaligned-cut/checkpoint-15, after step 15" in said  # and no 16th was made
    assert "continuing from longer/checkpoint-2, after step 2" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "lora"),
    [("reused", []), ("reused", LORA), ("sliced", []), ("sliced", LORA), ("misaligned", []), ("batched", LORA)],
)
def test_a_run_cut_at_ten_random_steps(place, shape, lora):
    """Of three epochs of 54 questions, 36 to 72 steps."""
    name = f"{shape}-{bool(lora)}"
    flags = [*SHAPES[shape], *lora, "--train_data", "many.jsonl"]
    cuts = sorted(random.Random(name).sample(range(1, 31), 10))
    said = train_all(place, [[0, name, *flags], *([stop, f"{name}-cut", *flags] for stop in [*cuts, 0])])
    assert said.count("continuing from") == 10
    assert_same(place, name, f"{name}-cut")


@pytest.mark.slow
def test_two_processes_continue_in_the_same_order(place):
    launch = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "accelerate_configs/cpu.yaml"]
    launch += ["--num_processes", 2, "--num_machines", 1, "--machine_rank", 0, "--main_process_port", 0]
    flags = ["--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 1, "--num_iterations", 2]
    flags += ["--save_steps", 2, "--max_steps", 14]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def train() -> str:
        words = [sys.executable, *launch, *command("two", flags)]
        done = subprocess.run([str(w) for w in words], cwd=place, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    train()
    shutil.copytree(place / "two", place / "two-whole")
    for name in (FINAL, "checkpoint-14"):
        shutil.rmtree(place / "two" / name)
    assert "continuing from two/checkpoint-12, after step 12" in train()
    whole, cut = content(place / "two-whole"), content(place / "two")
    asked = [name for name in whole if name.endswith(".parquet")]
    assert len(asked) == 14 and all(whole[name] == cut[name] for name in asked)


@pytest.mark.parametrize("seed", range(30))
def test_the_rhythm_is_that_of_the_training_loop(seed):
    """Beside a loop over micro-batches: when completions are used up, how many steps there are."""
    draw = random.Random(seed)
    step, slices, again, group, device = (draw.randint(1, 6) for _ in range(5))
    questions = draw.randint(slices * device, 40 + slices * device)
    arguments = Namespace(
        gradient_accumulation_steps=step,
        per_device_train_batch_size=group * device,
        num_generations=group,
        num_iterations=again,
        **draw.choice(
            [
                {"steps_per_generation": slices, "generation_batch_size": None},
                {"steps_per_generation": None, "generation_batch_size": slices * group * device},
            ]
        ),
    )
    rhythm = Rhythm.of(arguments, questions)
    batches = questions // (slices * device) * slices * again  # of an epoch
    made, exact = 0, {0}
    for _ in range(3):
        for batch in range(1, batches + 1):
            if batch % step == 0 or batch == batches:
                made += 1
                if batch % (slices * again) == 0:
                    exact.add(made)
    assert rhythm.steps(-1, 3) == made
    assert {step for step in range(made + 1) if rhythm.is_exact(step)} == exact


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_sampler_draws_what_trl_draws_in_that_epoch(shuffle):
    def trl():
        return RepeatSampler(range(11), 2, batch_size=3, repeat_count=2, shuffle=shuffle, seed=7)

    one_after_the_other = trl()
    orders = [list(one_after_the_other) for _ in range(4)]
    assert len(orders[0]) == len(EpochSampler(trl(), lambda: 0))
    for epoch in (2, 0, 3, 1):
        assert list(EpochSampler(trl(), lambda epoch=epoch: epoch)) == orders[epoch]
    assert (orders[0] != orders[1]) == shuffle


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint with a file of each kind that transformers, PEFT, DeepSpeed and FSDP write."""
    from torch.distributed import checkpoint as sharded

    folder = tmp_path_factory.mktemp("written") / "checkpoint-2"
    state = {"weight": torch.arange(3000.0), "step": torch.tensor(2)}
    for name in (
        *("optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "rng_state_1.pth", "training_args.bin"),
        *("global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt", "global_step2/mp_rank_00_model_states.pt"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / name)
    for name in ("model.safetensors", "adapter_model.safetensors"):
        save_file(state, folder / name)
    for name in ("trainer_state.json", "adapter_config.json", "config.json", "model.safetensors.index.json"):
        (folder / name).write_text('{"weight_map": {"some": "thing"}}')
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        sharded.save(state, checkpoint_id=str(folder / name), no_dist=True)
    (folder / "latest").write_text("global_step2")
    mark_complete(folder, {"prompt": "hash"})
    assert damage(folder) is None
    return folder


def kinds_of_damage(folder: Path) -> list[tuple[str, str]]:
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE]
    return [(COMPLETE, "halved"), *((str(name), harm) for name in files for harm in ("halved", "emptied", "removed"))]


def harmed(folder: Path, name: str, harm: str) -> None:
    path = folder / name
    data = path.read_bytes()
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if harm == "halved" else b"")


@pytest.mark.parametrize("older", [False, True])
def test_every_damaged_file_is_named(written, tmp_path, older):
    """A checkpoint of an older version has no list of its files: what has a format is looked into."""
    missed = []
    for number, (name, harm) in enumerate(kinds_of_damage(written)):
        folder = tmp_path / str(number)
        shutil.copytree(written, folder)
        if older:
            (folder / COMPLETE).write_text("")
        harmed(folder, name, harm)
        if not (damage(folder) or "").startswith(name.rpartition("/")[0]):
            missed.append((name, harm))
    unseen = [pair for pair in missed if not (older and (pair[1] == "removed" or pair[0] in ("latest", COMPLETE)))]
    assert not unseen


RECORD = {
    "prompt": "hash",
    "arguments": {"learning_rate": 1e-6, "max_steps": 4, "num_train_epochs": 3.0, "lr_scheduler_type": "constant"},
}
TWO = Rhythm(step=1, generation=2, epoch=10)


def open_in(run: Path, record: dict, insist: bool = False) -> tuple:
    lines: list[str] = []
    record = record | {"arguments": record["arguments"] | {"output_dir": str(run)}}
    return open_run(record, TWO, insist, lines.append), "\n".join(lines)


@pytest.fixture
def run(written, tmp_path):
    folder = tmp_path / "run"
    for step in (2, 4):
        shutil.copytree(written, folder / f"checkpoint-{step}")
    write_record(folder, RECORD | {"arguments": RECORD["arguments"] | {"output_dir": str(folder)}})
    return folder


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_taken_when_it_is_moved_away(run):
    harmed(run / "checkpoint-4", "optimizer.bin", "halved")
    with pytest.raises(UsageError, match=r"checkpoint-4: is damaged \(optimizer.bin: has \d+ bytes of the \d+ that"):
        open_in(run, RECORD)
    (run / "checkpoint-4").rename(run / "away")
    start, said = open_in(run, RECORD)
    assert start.checkpoint == run / "checkpoint-2" and "continuing from" in said and not start.finished


def test_a_checkpoint_whose_completions_were_in_use_is_passed_over(run, written):
    shutil.copytree(written, run / "checkpoint-3")
    shutil.rmtree(run / "checkpoint-4")
    start, said = open_in(run, RECORD)
    assert start.checkpoint == run / "checkpoint-2"
    assert "checkpoint-3: was written while its completions were in use; passed over" in said


def test_a_run_is_not_made_shorter(run, written):
    for steps in (2, 3):
        shorter = RECORD | {"arguments": RECORD["arguments"] | {"max_steps": steps}}
        with pytest.raises(UsageError, match=f"holds a run of 4 steps, and {steps} are asked for"):
            open_in(run, shorter)
    shutil.copytree(written, run / FINAL)
    for step in (2, 4):
        shutil.rmtree(run / f"checkpoint-{step}")
    with pytest.raises(UsageError, match="holds a run of 4 steps, and 3 are asked for"):
        open_in(run, shorter)
    assert open_in(run, RECORD)[0].finished
    longer = RECORD | {"arguments": RECORD["arguments"] | {"max_steps": 6}}
    start, said = open_in(run, longer)
    assert start.checkpoint is None and "holds no checkpoint to continue from; the run begins anew" in said


@pytest.mark.parametrize(("warmup", "found"), [(0, []), (10, []), (0.1, ["max_steps: 4 -> 6"])])
def test_a_run_whose_learning_rate_depends_on_its_length_keeps_it(warmup, found):
    arguments = RECORD["arguments"] | {"warmup_steps": warmup, "lr_scheduler_type": "constant_with_warmup"}
    old, new = ({"arguments": arguments | {"max_steps": steps}} for steps in (4, 6))
    assert differences(old, new) == found


def test_a_continued_run_gives_up_when_the_whole_one_would():
    """Notes are said once, and steps in which nothing was learned count over a stop."""
    row = {"frac_reward_zero_std": 1.0, "rewards/accuracy/mean": 0.0, "grad_norm": 0.0}

    def feed(diagnosis, state, steps):
        for step in steps:
            state.global_step = step
            state.log_history.append(row | {"step": step})
            diagnosis.on_log(Namespace(fp16=False), state, TrainerControl(), dict(row))
            if diagnosis.verdict:
                return step
        return None

    lines: list[str] = []
    state = TrainerState()
    assert feed(Diagnosis(20, lines.append), state, range(1, 13)) is None
    assert lines
    notes = len(lines)
    again = Diagnosis(20, lines.append)
    again.on_train_begin(Namespace(fp16=False), state, TrainerControl())
    assert feed(again, state, range(13, 40)) == 21
    assert len(lines) == notes
