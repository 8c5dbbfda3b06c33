"""Every task in every prompt style: prepare -> train (two real steps) -> evaluate -> compare, with nothing replaced."""

from __future__ import annotations

import json
import shutil

import pytest
from grpo_math.data.styles import STYLES
from grpo_math.data.tasks import TASKS

from conftest import STARTER, read_rows, run_all, write_jsonl

pytestmark = pytest.mark.slow
GSM8K = [{"question": f"Tom has {n} apples and buys {n}. How many?", "answer": f"#### {2 * n}"} for n in range(2, 8)]
MATH = [
    {"problem": f"What is half of ${n}$?", "solution": rf"It is $\\boxed{{\frac{{{n}}}{{2}}}}$.", "level": "Level 1"}
    for n in range(3, 15, 2)
] + [{"problem": "Solve $x^2 = 2$ for $x > 0$.", "solution": r"So $x=\boxed{\sqrt{2}}$.", "level": "Level 2"}]
OWN = [{"question": f"How many legs have {n} spiders?", "answer": 8 * n} for n in range(1, 7)]
REWARDS = ["accuracy", "format", "format_strict", "length", "cosine", "repetition", "closeness", "integer"]
SMALL = [
    *("--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2", "--num_generations", "2"),
    *("--max_completion_length", "16", "--gradient_checkpointing", "false", "--report_to", "none"),
    *("--max_steps", "2", "--learning_rate", "1e-3", "--train_data", "train.jsonl"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of every task, each from its own prepare script, in one file; and a model without a chat template."""
    cwd = tmp_path_factory.mktemp("all")
    write_jsonl(cwd / "gsm8k/train.jsonl", GSM8K)
    write_jsonl(cwd / "math/train.jsonl", MATH)
    kinds = [["prepare_arithmetic.py", "--kind", kind, "--num_problems", "8"] for kind in ("mixed", "expression")]
    run_all(
        [
            ["prepare_gsm8k.py", "--source", "gsm8k/train.jsonl"],
            ["prepare_math.py", "--source", "math", "--splits", "train"],
            *kinds,
        ],
        cwd,
    )
    names = ("gsm8k", "math", "mixed", "expression")
    rows = [row for name in names for row in read_rows(cwd / f"data/{name}/train.jsonl")] + OWN
    assert {row.get("task", "custom") for row in rows} == TASKS.keys()
    write_jsonl(cwd / "train.jsonl", rows)
    shutil.copytree(STARTER, cwd / "base", ignore=shutil.ignore_patterns("*.py", "chat_template*"))
    return cwd


def test_every_task_in_every_style(folder):
    runs = [(str(STARTER), style) for style in STYLES] + [("base", "answer_tag"), ("base", "xml_one_shot")]
    commands = []
    for number, (model, style) in enumerate(runs):
        run = f"outputs/{number}"
        rewards = REWARDS + (["xml_count"] if STYLES[style].tags else [])
        evaluate = ["evaluate_gsm8k_no_vllm.py", "--data", "train.jsonl", "--max_tokens", "16", "--name"]
        script_name, *more = evaluate
        commands += [
            [script_name, model, "--prompt", style, *more, f"{number}-before"],
            ["train_grpo.py", model, "--prompt", style, "--output_dir", run, *SMALL, "--reward_funcs", *rewards],
            [script_name, run, *more, f"{number}-after"],
            ["compare_evaluations.py", f"evals/{number}-before.jsonl", f"evals/{number}-after.jsonl"],
        ]
    said = run_all(commands, folder)
    assert said.count("-after is ") == len(runs)  # the verdicts of the comparisons
    for number, (model, style) in enumerate(runs):
        metrics = read_rows(folder / f"outputs/{number}/metrics.jsonl")
        steps = [row for row in metrics if "reward" in row]
        assert [row["step"] for row in steps] == [1, 2]
        assert any(row["grad_norm"] > 0 for row in steps), style
        assert {f"rewards/{name}/mean" for name in REWARDS} <= steps[0].keys()
        settings = json.loads((folder / f"evals/{number}-after.json").read_text())["settings"]
        assert settings["prompt"] == style and set(settings["task"]) == TASKS.keys()
        assert settings["chat"] == (model != "base" and STYLES[style].chat)
        assert bool(settings["stop"]) == (not settings["chat"])
        prompts = [row["prompt"] for row in read_rows(folder / f"evals/{number}-after.jsonl")]
        assert all(STYLES[style].opening == "" or prompt.endswith("<think>") for prompt in prompts)
