"""What keeps a run from learning is named, once, and a hopeless run ends."""

import math
from types import SimpleNamespace

import pytest
from grpo_math.training.diagnosis import WINDOW, Diagnosis

from conftest import STARTER, script, write_jsonl

FINE = {
    "grad_norm": 1.0,
    "frac_reward_zero_std": 0.3,
    "rewards/accuracy/mean": 0.4,
    "rewards/format/mean": 0.6,
    "completions/clipped_ratio": 0.1,
    "completions/mean_length": 100.0,
    "sampling/masked_fraction": 0.01,
}


def watch(changes, give_up_after=50, before=(), fp16=False):
    """What is said, and the verdict, after fine steps `before` and WINDOW steps with the `changes`."""
    said = []
    diagnosis = Diagnosis(give_up_after, said.append)
    control = SimpleNamespace(should_training_stop=False)
    for step, row in enumerate([*before, *[FINE | changes] * WINDOW], 1):
        diagnosis.on_log(SimpleNamespace(fp16=fp16), SimpleNamespace(global_step=step), control, logs=row)
        if control.should_training_stop:
            break
    return said, diagnosis.verdict


@pytest.mark.parametrize(
    ("changes", "before", "flag"),
    [
        ({"completions/clipped_ratio": 0.57}, (), "raise --max_completion_length"),
        ({"rewards/format/mean": 0.0}, (), "choose another --prompt"),
        ({"rewards/accuracy/mean": 0.0}, (), "easier questions"),
        ({"frac_reward_zero_std": 0.95}, (), "raise --num_generations"),
        ({"frac_reward_zero_std": 0.95, "rewards/accuracy/mean": 0.97}, (), "take harder questions"),
        ({"completions/mean_length": 250.0}, [FINE] * WINDOW, "lower --learning_rate"),
        ({"sampling/masked_fraction": 0.3}, (), "token_truncate"),
    ],
)
def test_each_cause_is_named_once(changes, before, flag):
    said, verdict = watch(changes, before=before)
    assert len(said) == 1 and flag in said[0] and verdict is None


@pytest.mark.parametrize(
    ("changes", "before"),
    [
        ({}, ()),
        ({"completions/mean_length": 250.0, "rewards/accuracy/mean": 0.6}, [FINE] * WINDOW),  # longer and better
        ({"rewards/format/mean": None, "rewards/accuracy/mean": None}, ()),  # rewards of the user's own
    ],
)
def test_a_run_that_learns_is_left_alone(changes, before):
    said, verdict = watch(changes, before=before)
    assert said == [] and verdict is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_ends_the_run_at_once(value):
    _, verdict = watch({"grad_norm": value})
    assert verdict.startswith("step 1: the gradient is not a number")
    assert watch({"grad_norm": value}, fp16=True)[1] is None  # its scaler skips such steps


@pytest.mark.parametrize(("limit", "ends"), [(0, False), (5, True), (WINDOW + 1, False)])
def test_a_run_without_variance_ends_at_the_limit(limit, ends):
    _, verdict = watch({"frac_reward_zero_std": 1.0}, give_up_after=limit, before=[FINE])
    assert (verdict is not None) == ends
    if ends:
        assert "nothing was learned in 5 steps" in verdict


def test_a_hopeless_run_gives_up(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"question": f"{n} + {n}", "answer": "999999"} for n in range(40)])
    done = script(
        [
            *("train_grpo.py", STARTER, "--train_data", "train.jsonl", "--reward_funcs", "accuracy"),
            *("--per_device_train_batch_size", 8, "--num_generations", 4, "--max_completion_length", 8),
            *("--gradient_checkpointing", "false", "--max_steps", 40, "--give_up_after", 3, "--output_dir", "run"),
        ],
        tmp_path,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: nothing was learned in 3 steps: in no group")
    assert not (tmp_path / "run/checkpoint-final").exists()
