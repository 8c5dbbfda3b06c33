"""The search for hyperparameters: real trials on the starter model, a study that goes on, and what is refused."""

import json

import pytest
from grpo_math.data.problems import sum_problems
from search_hyperparameters import Values, parse_space

from conftest import STARTER, read_rows, script, write_jsonl

SEARCH = [
    *("search_hyperparameters.py", STARTER, "--search", "learning_rate=1e-5..1e-3:log", "num_generations=4,8"),
    *("--train_data", "train.jsonl", "--eval_size", 50, "--per_device_train_batch_size", 16, "--report_to", "none"),
    *("--gradient_accumulation_steps", 1, "--max_completion_length", 12, "--reward_funcs", "accuracy_lenient"),
    *("--max_steps", 2, "--study_dir", "study"),
]


def test_values_of_the_command_line():
    space = parse_space(["learning_rate=1e-5..1e-3:log", "num_generations=4,8", "beta=0..0.1", "max_steps=1..9"])
    assert space == {
        "learning_rate": Values((1e-5, 1e-3), log=True),
        "num_generations": Values(choices=("4", "8")),
        "beta": Values((0.0, 0.1)),
        "max_steps": Values((1.0, 9.0), whole=True),
    }


@pytest.mark.parametrize(
    "item", ["learning_rate", "beta=", "=1,2", "beta=1..0", "beta=0..1:log", "beta=a..b", "a=1:log"]
)
def test_values_that_are_none(item, tmp_path):
    done = script([*SEARCH[:2], "--search", item, "--eval_size", 5], tmp_path)
    assert done.returncode == 2 and f"--search {item}: give NAME=LOW..HIGH" in done.stderr


def test_a_study_is_saved_goes_on_and_is_drawn(tmp_path):
    optuna = pytest.importorskip("optuna", reason='pip install -e ".[search]"')
    rows = [{"question": p.question, "answer": str(p.answer)} for p in sum_problems(200, -9, 9, seed=1)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    first = script([*SEARCH, "--trials", 1], tmp_path)
    assert first.returncode == 0, first.stderr
    both = script([*SEARCH, "--trials", 2], tmp_path)
    assert (
        both.returncode == 0 and both.stdout.count("trial 1: ") == 1 and "trial 0" not in both.stdout.split("best")[0]
    )
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / 'study/study.db'}")
    assert len({trial.params["learning_rate"] for trial in study.trials}) == 2
    for trial in study.trials:
        run = tmp_path / f"study/trial-{trial.number}"
        arguments = json.loads((run / "run.json").read_text())["arguments"]
        assert arguments["learning_rate"] == pytest.approx(trial.params["learning_rate"], rel=1e-12)
        assert arguments["num_generations"] == int(trial.params["num_generations"])
        measured = [row["eval_accuracy"] for row in read_rows(run / "metrics.jsonl") if "eval_accuracy" in row]
        assert len(measured) == 2 and trial.value == measured[-1]
    assert (tmp_path / "study/study.png").read_bytes().startswith(b"\x89PNG")
    assert f"best: {study.best_value:.1%}" in both.stdout

    other = script([*SEARCH, "--trials", 2, "--learning_rate", 1], tmp_path)
    assert other.returncode == 2 and "holds the study of another command" in other.stderr
    failing = script([*SEARCH[:-1], "failing", "--trials", 1, "--prompt", "shout"], tmp_path)
    assert failing.returncode == 2 and "trial 0 failed: error: unknown prompt style 'shout'" in failing.stdout
    assert "no trial has ended well" in failing.stderr
