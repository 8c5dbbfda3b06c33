"""Arguments: which value wins, what is refused before anything is loaded, and how soon."""

import argparse
import time

import pytest
from grpo_math.errors import UsageError
from grpo_math.launch.arguments import REWARDS, parse_options
from grpo_math.launch.checks import check_weights, plan_batches

from conftest import ROOT, STARTER, script, write_jsonl

ROWS = [{"question": f"What is {i} plus 1?", "answer": i + 1, "task": "arithmetic"} for i in range(40)]


def test_command_line_beats_recipe_beats_default(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model_name_or_path: from/recipe\nprompt: hash\ntrain_data: recipe.jsonl\nlearning_rate: 1e-5\n")
    options = parse_options(["--config", str(recipe), "--prompt", "answer_tag", "--max_steps", "3"], "doc")
    assert (options.model, options.prompt, options.train_data) == ("from/recipe", "answer_tag", "recipe.jsonl")
    assert options.reward_funcs == REWARDS
    assert options.rest == ["--max_steps", "3"]
    assert options.recipe == {"model_name_or_path": "from/recipe", "learning_rate": "1e-5"}
    assert parse_options(["mine", "--config", str(recipe)], "doc").model == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [("just words", "lines of `name: value`"), ("a: [1", "not a YAML file"), (None, "No such file")],
)
def test_recipe_that_cannot_be_read(tmp_path, text, message):
    recipe = tmp_path / "r.yaml"
    if text is not None:
        recipe.write_text(text)
    with pytest.raises(UsageError, match=message):
        parse_options(["--config", str(recipe)], "doc")


def batch(**changed):
    values = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "num_generations": 8,
        "max_completion_length": 100,
        "generation_batch_size": None,
        "steps_per_generation": None,
        "num_iterations": 1,
        "max_steps": -1,
        "num_train_epochs": 2.0,
    }
    return argparse.Namespace(**(values | changed))


def test_batch_plan(monkeypatch):
    plan = plan_batches(batch(), rows=1001)
    assert (plan.completions_per_step, plan.questions_per_generation) == (32, 4)
    assert (plan.steps, plan.max_tokens_per_step) == (500, 3200)
    monkeypatch.setenv("WORLD_SIZE", "4")
    plan = plan_batches(batch(num_generations=16, max_steps=10), rows=80)
    assert (plan.completions_per_step, plan.questions_per_generation, plan.steps, plan.epochs) == (128, 8, 10, 1.0)


@pytest.mark.parametrize(
    ("changed", "rows", "message"),
    [
        ({"num_generations": 5}, 100, "--num_generations 5 does not divide the 32 completions.*from 2, 4, 8, 16, 32"),
        ({"num_generations": 1}, 100, "at least 2"),
        ({"num_generations": 0}, 100, "--num_generations 0: must be at least 1"),
        ({"max_completion_length": 0}, 100, "--max_completion_length 0"),
        ({}, 3, "has 3 questions, and a generation batch takes 4"),
    ],
)
def test_batch_plan_refuses(changed, rows, message):
    with pytest.raises(UsageError, match=message):
        plan_batches(batch(**changed), rows)


def test_one_weight_per_reward():
    check_weights(None, ["accuracy"])
    check_weights([1.0], ["accuracy"])
    with pytest.raises(UsageError, match="--reward_weights: 2 values for 1 rewards"):
        check_weights([1.0, 2.0], ["accuracy"])


@pytest.mark.parametrize(
    ("arguments", "message", "seconds"),  # a second is for a machine that does nothing else; tests run side by side
    [
        ([], "no model: python train_grpo.py MODEL", 5),
        ([STARTER, "--train_data", "nowhere.jsonl"], "nowhere.jsonl: no such file", 5),
        ([STARTER, "--train_data", "torn.jsonl"], "torn.jsonl, line 2: not valid JSON", 5),
        ([STARTER, "--train_data", "empty.jsonl"], "empty.jsonl: has no rows", 5),
        ([STARTER, "--reward_funcs", "acuracy"], "unknown reward 'acuracy': known rewards are accuracy,", 5),
        ([STARTER, "--prompt", "shout"], "unknown prompt style 'shout': known styles are hash", 5),
        ([STARTER, "--task", "chess"], "unknown task 'chess': known tasks are gsm8k", 5),
        ([STARTER, "--config", "nowhere.yaml"], "--config nowhere.yaml", 5),
        ([STARTER, "--num_generations", "5"], "--num_generations 5 does not divide", 60),
        ([STARTER, "--reward_weights", "1"], "--reward_weights: 1 values for 3 rewards", 60),
        ([STARTER, "--use_vllm", "true"], "--use_vllm: vllm is not installed", 60),
        ([STARTER, "--save_only_model", "true"], "--save_only_model: leaves out the optimizer", 60),
        ([STARTER, "--num_iterations", "3"], "choose a multiple of 3", 60),
        ([STARTER, "--lerning_rate", "1"], "did you mean 'learning_rate'?", 60),
        ([STARTER, "--learning_rate", "fast"], "invalid float value: 'fast'", 60),
        ([STARTER, "--config", "typo.yaml"], "unknown key 'max_stps': did you mean 'max_steps'?", 60),
        ([STARTER, "--max_completion_length", "4000"], "--max_completion_length 4000: the longest prompt has", 60),
        (["./nowhere"], "./nowhere: no such folder", 60),
        (["nobody/nothing"], "nobody/nothing: this model cannot be loaded (there is no such folder here", 60),
        (["--learning_rate", "1", STARTER], "no model: python train_grpo.py MODEL", 60),
    ],
    ids=lambda value: "_".join(map(str, value))[-40:] if isinstance(value, list) else None,
)
def test_train_refuses(tmp_path, arguments, message, seconds):
    write_jsonl(tmp_path / "data/gsm8k/train.jsonl", ROWS)
    (tmp_path / "torn.jsonl").write_text('{"question": "q", "answer": 1}\n{"question": ')
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "typo.yaml").write_text("max_stps: 3\n")
    started = time.time()
    done = script(["train_grpo.py", *arguments], tmp_path)
    assert time.time() - started < seconds
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("*.py")))
def test_help_comes_at_once_and_imports_nothing_heavy(tmp_path, name):
    check = f"import runpy, sys\nsys.argv = ['{name}', '--help']\ntry: "
    check += f"runpy.run_path('{ROOT / name}', run_name='__main__')\nexcept SystemExit: pass\n"
    check += "print(sorted({'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)))"
    (tmp_path / "check.py").write_text(check)
    done = script([tmp_path / "check.py"], tmp_path, PYTHONPATH=str(ROOT))
    assert done.stdout.startswith("usage: ") and done.stdout.endswith("[]\n"), done.stdout + done.stderr
