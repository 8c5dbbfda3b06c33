"""The search for hyperparameters: real trials on the starter model, a study that goes on, and what is refused."""

import json

import pytest
from grpo_math.data.problems import sum_problems
from grpo_math.errors import UsageError
from grpo_math.launch.search import Values, check_flags, parse_space

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
    "item", ["learning_rate", "beta=", "=1,2", "beta=1..0", "beta=0..1:log", "beta=a..b", "a=1:log", "a=1..2..3"]
)
def test_values_that_are_none(item, tmp_path):
    done = script([*SEARCH[:2], "--search", item, "--eval_size", 5], tmp_path)
    assert done.returncode == 2 and f"--search {item}: give NAME=LOW..HIGH" in done.stderr


@pytest.mark.parametrize(
    ("flags", "searched", "words"),
    [
        (["m", "--eval_size", "4"], "beta", None),
        (["m", "--eval_size=4"], "beta", None),
        (["m", "--config", "sized.yaml"], "beta", None),
        (["--config", "sized.yaml"], "beta", None),
        (["--eval_size", "4"], "model_name_or_path", None),
        (["--config", "sized.yaml"], "model_name_or_path", None),
        (["--model_name_or_path", "m", "--eval_size", "4"], "beta", None),
        (["m"], "beta", "--eval_size: is needed"),
        (["m", "--eval_size=0"], "beta", "--eval_size: is needed"),
        (["--eval_size", "4"], "beta", "no model"),
        ([], "eval_size", "no model"),
        (["m", "--eval_size", "4"], "model_name_or_path", "MODEL m and --search model_name_or_path: "),
        (["m", "--model_name_or_path", "n", "--eval_size", "4"], "beta", "MODEL m and --model_name_or_path n"),
        (["m", "--model_name_or_path=n", "--eval_size=4"], "beta", "MODEL m and --model_name_or_path n"),
        (["--model_name_or_path=n", "--eval_size=4"], "model_name_or_path", "--model_name_or_path: is searched"),
        (["m", "--eval_size=4", "--output_dir=x"], "beta", "--output_dir: each trial"),
        (["m", "--eval_size=4"], "output_dir", "--output_dir: each trial"),
    ],
)
def test_flags_that_a_study_takes_and_refuses(tmp_path, monkeypatch, flags, searched, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sized.yaml").write_text("model_name_or_path: from_recipe\neval_size: 4\n")
    space = parse_space([f"{searched}=1,2"])
    if words is None:
        assert check_flags(flags, space)[: len(flags)] == flags
    else:
        with pytest.raises(UsageError, match=words):
            check_flags(flags, space)


def test_a_study_ends_where_its_recipe_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags, space = ["m", "--config", "r.yaml"], parse_space(["beta=1,2"])
    (tmp_path / "r.yaml").write_text("eval_size: 4\n")
    before = check_flags(flags, space)
    (tmp_path / "r.yaml").write_text("eval_size: 5\n")
    assert check_flags(flags, space) != before


def test_every_trial_trains_the_model_that_is_said(tmp_path):
    """Two models and a recipe that names a third: each trial's record says which one it was."""
    pytest.importorskip("optuna", reason='pip install -e ".[search]"')
    rows = [{"question": p.question, "answer": str(p.answer)} for p in sum_problems(200, -9, 9, seed=1)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    (tmp_path / "recipe.yaml").write_text("model_name_or_path: nowhere\neval_size: 10\n")
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(STARTER)
    search = [SEARCH[0], "--config", "recipe.yaml", "--search", "model_name_or_path=one,two", *SEARCH[5:7]]
    search += [*SEARCH[9:], "--trials", 3, "--sampler_seed", 1]
    done = script(search, tmp_path)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line.split(" with ")[1]) for line in done.stdout.splitlines() if line.startswith("trial")]
    records = [json.loads((tmp_path / f"study/trial-{number}/run.json").read_text()) for number in range(3)]
    assert [record["model"] for record in records] == [each["model_name_or_path"] for each in said]
    assert {record["model"] for record in records} == {"one", "two"}


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
