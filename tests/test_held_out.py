"""Held-out accuracy while training: it is what the evaluator finds, and training does not notice it."""

import json

import pytest
from grpo_math.data.problems import sum_problems
from grpo_math.errors import UsageError
from grpo_math.evaluation.intervals import mean_interval
from grpo_math.launch.arguments import parse_options
from grpo_math.launch.training_data import load_training_data

from conftest import STARTER, read_rows, run_all, write_jsonl

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


def rows_of(folder, run):
    """A run's measurements, and its training steps without what depends on the clock."""
    rows = read_rows(folder / run / "metrics.jsonl")
    clock = ("time", "step_time", "train_")
    steps = [{k: v for k, v in row.items() if not k.startswith(clock)} for row in rows if "reward" in row]
    return [row for row in rows if "eval_accuracy" in row], steps


def test_it_is_what_the_evaluator_finds_and_training_does_not_notice(folder):
    models = {0: STARTER, 2: "with/checkpoint-2", 4: "with/checkpoint-4"}
    evaluate = ["evaluate_gsm8k_no_vllm.py", "--data", "data/test.jsonl", "--max_tokens", 12, "--name"]
    said = run_all(
        [
            ["train_grpo.py", STARTER, *RUN, "--output_dir", "with", "--eval_size", 30, "--eval_steps", 2],
            ["train_grpo.py", STARTER, *RUN, "--output_dir", "without"],
            # Something that only TRL's own generation knows.
            [
                "train_grpo.py",
                STARTER,
                *RUN,
                "--output_dir",
                "trl",
                "--eval_size",
                30,
                "--cache_implementation",
                "dynamic",
            ],
            *([evaluate[0], model, *evaluate[1:], f"at-{step}"] for step, model in models.items()),
        ],
        folder,
    )
    assert "held out     30 questions of data/test.jsonl\n" in said
    evals, steps = rows_of(folder, "with")
    assert [row["step"] for row in evals] == [0, 2, 4]
    by_trl = rows_of(folder, "trl")[0]
    assert by_trl[0]["eval_accuracy_lenient"] == evals[0]["eval_accuracy_lenient"] > 0
    assert [row["step"] for row in by_trl] == [0, 4]
    assert steps == rows_of(folder, "without")[1] and len(steps) == 4
    tables = sorted((folder / "with/completions").iterdir())
    assert len(tables) == 4 == len(list((folder / "without/completions").iterdir()))
    for table in tables:
        assert table.read_bytes() == (folder / "without/completions" / table.name).read_bytes()

    assert json.loads((folder / "with/run.json").read_text())["eval_data"]["questions"] == 30
    for row in evals:
        # The questions that were held out, found in another way: the 30 of smallest id.
        graded = read_rows(folder / f"evals/at-{row['step']}.jsonl")
        chosen = sorted(graded, key=lambda each: each["id"])[:30]
        expected = mean_interval([[float(each["strict"])] for each in chosen])
        assert (row["eval_accuracy"], row["eval_accuracy_low"], row["eval_accuracy_high"]) == pytest.approx(expected)
        assert row["eval_accuracy_lenient"] == pytest.approx(sum(each["lenient"] for each in chosen) / 30)
        assert f"step {row['step']}: {row['eval_accuracy']:.1%} [" in said


def questions(rows):
    return {row["question"] for row in rows}


def load(folder, *flags):
    argv = ["model", "--train_data", str(folder / "data/train.jsonl"), *map(str, flags)]
    return load_training_data(parse_options(argv, ""))


def test_which_questions_are_held_out(folder, tmp_path):
    data = load(folder, "--eval_size", 40)
    assert len(data.rows) == 260 and len(data.held_out) == 40
    assert data.record["eval_data"]["path"].endswith("data/test.jsonl")

    own = load(folder, "--eval_size", 50, "--eval_data", folder / "data/train.jsonl")
    assert len(own.rows) == 210 and len(own.held_out) == 50
    assert not questions(own.rows) & questions(own.held_out)
    assert "50 of the training data are not trained on" in own.lines[0]

    shuffled = list(reversed(read_rows(folder / "data/train.jsonl")))
    write_jsonl(tmp_path / "data/train.jsonl", shuffled)  # and nothing beside it
    again = load(tmp_path, "--eval_size", 50)
    assert questions(again.held_out) == questions(own.held_out)
    assert "eval_data" not in load(tmp_path).record


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eval_size", -1], "--eval_size -1: must not be negative"),
        (["--eval_size", 41], "test.jsonl has 40 questions to hold out"),
        (["--eval_data", "x.jsonl"], "--eval_data: needs --eval_size"),
        (["--eval_data", "nowhere.jsonl", "--eval_size", 1], "nowhere.jsonl: no such file"),
    ],
)
def test_what_cannot_be_held_out(folder, flags, message):
    with pytest.raises(UsageError, match=message):
        load(folder, *flags)
