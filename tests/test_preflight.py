"""Combinations of flags that cannot work are all named before anything is loaded."""

import pytest

from grpo_math.arguments import parse_options, parse_trl_arguments
from grpo_math.preflight import conflicts

FSDP = {"WORLD_SIZE": "4", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO3 = {"WORLD_SIZE": "4", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
QLORA = "--load_in_4bit true --use_peft true"


def found(monkeypatch, flags, environment):
    for name in (*FSDP, *ZERO3, "FSDP_ACTIVATION_CHECKPOINTING"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return conflicts(parse_trl_arguments(parse_options(["model", *flags.split()], ""), {}))


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        ("--load_in_4bit true", {}, "quantised weights cannot be trained; add --use_peft true"),
        ("--load_in_8bit true", {}, "quantised weights cannot be trained; add --use_peft true"),
        (QLORA, FSDP, "quantised LoRA does not work when fsdp2 spreads the weights"),
        (QLORA, ZERO3, "quantised LoRA does not work when zero3 spreads the weights"),
        ("--load_in_8bit true --use_peft true --use_vllm true", {}, "vLLM cannot load it; use --load_in_4bit"),
        ("--use_vllm true --vllm_tensor_parallel_size 3", FSDP, "does not divide the 4 processes"),
        ("--vllm_enable_sleep_mode true", {}, "only for vLLM on the training GPUs"),
        ("", FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "fsdp_activation_checkpointing: one of the two"),
        ("--save_only_model true", {}, "could not be continued"),
        ("--num_iterations 3", {}, "choose a multiple of 3"),
        ("--eval_strategy steps", {}, "--eval_size N reports accuracy"),
        ("--eval_steps 0.5", {}, "--eval_steps 0.5: must be a whole number of steps"),
        ("--eval_steps 0", {}, "--eval_steps 0: must be a whole number of steps"),
    ],
)
def test_conflict(monkeypatch, flags, environment, message):
    assert [line for line in found(monkeypatch, flags, environment) if message in line]


@pytest.mark.parametrize(
    ("flags", "environment"),
    [
        ("", {}),
        ("--use_peft true --eval_steps 10", FSDP),
        ("--num_iterations 2 --save_steps 100", {"WORLD_SIZE": "2"}),
    ],
)
def test_no_conflict(monkeypatch, flags, environment):
    assert found(monkeypatch, flags, environment) == []


def test_all_are_named_at_once(monkeypatch):
    lines = found(monkeypatch, "--load_in_4bit true --save_only_model true --vllm_enable_sleep_mode true", {})
    assert len([line for line in lines if "bitsandbytes is not installed" not in line]) == 3
