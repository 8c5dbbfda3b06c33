"""Training on the questions that a model solves sometimes."""

import json

import pytest
from grpo_math.data.difficulty import choose_by_difficulty, pass_rates
from grpo_math.data.problems import sum_problems
from grpo_math.data.rows import load_rows
from grpo_math.errors import UsageError
from grpo_math.launch.arguments import parse_options
from grpo_math.launch.training_data import load_training_data

from conftest import STARTER, read_rows, run_all, write_jsonl

ROWS = [{"question": f"What is {i} plus 1?", "answer": i + 1} for i in range(6)]
RIGHT = [0, 1, 2, 3, 4]  # of four samples, to the first five questions


@pytest.fixture
def folder(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    rows = load_rows(tmp_path / "train.jsonl")
    verdicts = [
        {"id": row["id"], "sample": sample, "strict": sample < right, "lenient": True}
        for row, right in zip(rows, RIGHT, strict=False)
        for sample in range(4)
    ]
    write_jsonl(tmp_path / "sampled.jsonl", verdicts)
    write_jsonl(tmp_path / "greedy.jsonl", [row for row in verdicts if row["sample"] == 0])
    write_jsonl(tmp_path / "other.jsonl", [row | {"id": "0" * 12} for row in verdicts])
    return tmp_path


@pytest.mark.parametrize(
    ("bounds", "kept", "counts"),
    [
        ((0.1, 0.9), [1, 2, 3], (1, 1, 1)),
        ((0.25, 0.75), [1, 2, 3], (1, 1, 1)),
        ((0.3, 0.7), [2], (2, 2, 1)),
        ((0, 1), [0, 1, 2, 3, 4], (0, 0, 1)),
        ((0, 0), [0], (0, 4, 1)),
    ],
)
def test_what_is_kept(folder, bounds, kept, counts):
    rows = load_rows(folder / "train.jsonl")
    chosen = choose_by_difficulty(rows, str(folder / "sampled.jsonl"), *bounds)
    assert chosen.rows == [rows[i] for i in kept]
    assert (chosen.too_hard, chosen.too_easy, chosen.unknown) == counts


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--difficulty", "greedy.jsonl"], "greedy.jsonl: has one answer to each question; evaluate with --n 8"),
        (["--difficulty", "other.jsonl"], "none of the 6 training questions is in it"),
        (["--difficulty", "train.jsonl"], "train.jsonl, line 1: no 'id' and verdict 'strict'"),
        (["--difficulty", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (
            ["--difficulty", "sampled.jsonl", "--min_pass", "0.6", "--max_pass", "0.7"],
            "3 too hard, 0 kept, 2 too easy, 1",
        ),
        (["--difficulty", "sampled.jsonl", "--min_pass", "0.9", "--max_pass", "0.1"], "must be in order"),
        (["--difficulty", "sampled.jsonl", "--max_pass", "1.5"], "between 0 and 1"),
        (["--min_pass", "0.5"], "need --difficulty"),
    ],
)
def test_what_is_refused(folder, monkeypatch, flags, message):
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=message):
        load_training_data(parse_options(["model", "--train_data", "train.jsonl", *flags], ""))


def test_evaluate_and_train_on_what_is_neither_too_hard_nor_too_easy(tmp_path):
    problems = sum_problems(40, -9, 9, seed=2)
    rows = [{"question": p.question, "answer": str(p.answer), "task": "arithmetic"} for p in problems]
    write_jsonl(tmp_path / "train.jsonl", rows)
    evaluate = ["evaluate_gsm8k_no_vllm.py", STARTER, "--data", "train.jsonl", "--n", 8, "--temperature", 1]
    train = ["train_grpo.py", STARTER, "--train_data", "train.jsonl", "--difficulty", "evals/hard.jsonl"]
    said = run_all(
        [
            [*evaluate, "--max_tokens", 12, "--name", "hard"],
            [*train, "--output_dir", "run", "--max_steps", 2, "--max_completion_length", 12, "--report_to", "none"],
        ],
        tmp_path,
    )
    rates = pass_rates(str(tmp_path / "evals/hard.jsonl")).values()
    kept = sum(0.1 <= rate <= 0.9 for rate in rates)
    hard = sum(rate < 0.1 for rate in rates)
    assert 4 <= kept < 40 and hard
    line = f"{hard} too hard, {kept} kept, {40 - kept - hard} too easy, 0 not in evals/hard.jsonl"
    assert f"difficulty   {line}\n" in said and f"over {kept} questions" in said
    record = json.loads((tmp_path / "run/run.json").read_text())["difficulty"]
    assert (record["rows"], record["min_pass"], record["max_pass"]) == (kept, 0.1, 0.9)
    assert [row["step"] for row in read_rows(tmp_path / "run/metrics.jsonl") if "reward" in row] == [1, 2]
