"""Held-out accuracy while training: it is what the evaluator finds, and training does not notice it."""

import json
import shutil

import pytest
from conftest import STARTER, read_rows, script, write_jsonl

from grpo_math.arithmetic import sum_problems
from grpo_math.statistics import mean_interval

RUN = [
    *("--train_data", "data/train.jsonl", "--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 2),
    *("--num_generations", 4, "--max_completion_length", 12, "--gradient_checkpointing", "false"),
    *("--reward_funcs", "accuracy", "format", "--report_to", "none", "--learning_rate", "3e-4"),
    *("--max_steps", 4, "--save_steps", 2),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held_out")
    problems = sum_problems(300, -9, 9, seed=1)
    rows = [{"question": p.question, "answer": str(p.answer), "task": "arithmetic"} for p in problems]
    write_jsonl(folder / "data/train.jsonl", rows[:260])
    write_jsonl(folder / "data/test.jsonl", rows[260:])
    return folder


def train(folder, *more, status=0):
    done = script(["train_grpo.py", STARTER, *RUN, *more], folder)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def rows_of(folder, run):
    """A run's measurements, and its training steps without what depends on the clock."""
    rows = read_rows(folder / run / "metrics.jsonl")
    clock = ("time", "step_time", "train_")
    steps = [{k: v for k, v in row.items() if not k.startswith(clock)} for row in rows if "reward" in row]
    return [row for row in rows if "eval_accuracy" in row], steps


def test_it_is_what_the_evaluator_finds_and_training_does_not_notice(folder):
    measured = train(folder, "--output_dir", "with", "--eval_size", 30, "--eval_steps", 2)
    train(folder, "--output_dir", "without")
    assert "held out     30 questions of data/test.jsonl" in measured.stdout
    evals, steps = rows_of(folder, "with")
    assert [row["step"] for row in evals] == [0, 2, 4]
    assert steps == rows_of(folder, "without")[1] and len(steps) == 4
    parquets = sorted(path.name for path in (folder / "with/completions").iterdir())
    assert parquets == sorted(path.name for path in (folder / "without/completions").iterdir())
    for name in parquets:
        assert (folder / "with/completions" / name).read_bytes() == (folder / "without/completions" / name).read_bytes()

    record = json.loads((folder / "with/run.json").read_text())
    assert record["eval_data"]["questions"] == 30
    for row, model in zip(evals, (STARTER, "with/checkpoint-2", "with/checkpoint-4"), strict=True):
        name = f"at-{row['step']}"
        command = ["evaluate_gsm8k_no_vllm.py", model, "--data", "data/test.jsonl", "--max_tokens", 12, "--name", name]
        assert script(command, folder).returncode == 0
        # The questions that were held out, in another way: the 30 of smallest id.
        chosen = sorted(read_rows(folder / f"evals/{name}.jsonl"), key=lambda each: each["id"])[:30]
        expected = mean_interval([[float(each["strict"])] for each in chosen])
        assert (row["eval_accuracy"], row["eval_accuracy_low"], row["eval_accuracy_high"]) == pytest.approx(expected)
        assert row["eval_accuracy_lenient"] == pytest.approx(sum(each["lenient"] for each in chosen) / 30)
        assert f"step {row['step']}: {row['eval_accuracy']:.1%} [" in measured.stdout

    shutil.rmtree(folder / "with/checkpoint-final")
    (folder / "with/checkpoint-4/complete").unlink()
    train(folder, "--output_dir", "with", "--eval_size", 30, "--eval_steps", 2)
    again, steps_again = rows_of(folder, "with")
    assert [row["step"] for row in again] == [0, 2, 4]
    assert again[-1]["eval_accuracy"] == evals[-1]["eval_accuracy"]
    assert [row["reward"] for row in steps_again] == [row["reward"] for row in steps]
