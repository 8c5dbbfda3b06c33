"""Combinations that cannot work are refused before anything is loaded, all of them at once."""

import pytest
from grpo_math.launch import checks as preflight
from grpo_math.launch.arguments import parse_options, parse_trl_arguments
from grpo_math.launch.checks import conflicts, steps_between_generations

from conftest import STARTER, script, write_jsonl

PEFT = "--use_peft true"
FSDP1 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


@pytest.fixture
def installed(monkeypatch):
    """Every package is said to be installed, but those in the set that this gives."""
    missing = set()
    monkeypatch.setattr(preflight, "_installed", lambda name: name not in missing)
    return missing


def found(flags):
    return conflicts(parse_trl_arguments(parse_options(["m", *flags.split()], ""), {}))


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        ("--load_in_4bit true", {}, "quantised weights cannot be trained; add --use_peft true"),
        (f"--load_in_4bit true {PEFT}", FSDP2, "quantised LoRA does not work when fsdp2 spreads the weights"),
        (f"--load_in_8bit true {PEFT}", ZERO3, "quantised LoRA does not work when zero3 spreads the weights"),
        (f"--load_in_8bit true {PEFT} --use_vllm true", {}, "use --use_vllm false, or --dtype bfloat16"),
        (f"--load_in_4bit true {PEFT} --use_vllm true", {}, "use --use_vllm false, or --dtype bfloat16"),
        (f"{PEFT} --use_vllm true", FSDP1, "FSDP 1 cannot give it the merged weights"),
        ("--use_vllm true --vllm_tensor_parallel_size 2", {"WORLD_SIZE": "3"}, "does not divide the 3 processes"),
        ("--vllm_enable_sleep_mode true", {}, "--vllm_enable_sleep_mode: only for vLLM on the training GPUs"),
        ("--use_vllm true --vllm_mode server", {}, "over NCCL, which needs GPUs"),
        ("--use_vllm true --top_k 20", {}, "vLLM's probabilities would be of the cut distribution"),
        ("--save_only_model true", {}, "could not be continued"),
        ("--num_iterations 2 --save_steps 3", {}, "choose a multiple of 2"),
        ("--eval_strategy steps", {}, "--eval_size N reports accuracy"),
        ("--eval_steps 0.5", {}, "--eval_steps 0.5: must be a whole number of steps"),
        ("--eval_steps 0", {}, "--eval_steps 0: must be a whole number of steps"),
        ("", FSDP2 | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "one of the two"),
    ],
)
def test_what_cannot_work_is_named(monkeypatch, installed, flags, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (line,) = found(flags)
    assert words in line


@pytest.mark.parametrize(
    ("flags", "environment"),
    [
        ("", {}),
        (f"--load_in_4bit true {PEFT}", {"WORLD_SIZE": "2"}),
        (f"{PEFT} --use_vllm true", FSDP2),
        (PEFT, FSDP2),
        ("--use_vllm true --vllm_enable_sleep_mode true", ZERO3),
        ("--use_vllm true --top_k 20 --vllm_importance_sampling_correction false", {}),
        ("--num_iterations 2 --save_steps 4", {}),
    ],
)
def test_what_works_is_let_through(monkeypatch, installed, flags, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert found(flags) == []


@pytest.mark.parametrize(
    ("package", "flags", "environment"),
    [
        ("vllm", "--use_vllm true", {}),
        ("deepspeed", "", ZERO3),
        ("bitsandbytes", f"--load_in_4bit true {PEFT}", {}),
    ],
)
def test_missing_packages_are_named(monkeypatch, installed, package, flags, environment):
    installed.add(package)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (line,) = found(flags)
    assert f"{package} is not installed" in line


@pytest.mark.parametrize(
    ("flags", "steps"),
    [("", 1), ("--num_iterations 3", 3), ("--steps_per_generation 8 --gradient_accumulation_steps 2", 4)],
)
def test_steps_between_generations(flags, steps):
    assert steps_between_generations(parse_trl_arguments(parse_options(["m", *flags.split()], ""), {})) == steps


def test_dry_run_names_every_conflict_and_loads_no_weights(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(40)])
    command = ["train_grpo.py", STARTER, "--train_data", "train.jsonl", "--max_completion_length", 16, "--dry_run"]
    bad = script([*command, "--save_only_model", "true", "--vllm_enable_sleep_mode", "true"], tmp_path)
    assert bad.returncode == 2
    assert [line[:8] for line in bad.stderr.splitlines()] == ["error: -"] * 2
    good = script(command, tmp_path)
    assert good.returncode == 0, good.stderr
    for words in ("rank 0 of 1", "723,584 parameters, 723,584 of them trained", "4 questions x 8 completions", "GiB"):
        assert words in good.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]
