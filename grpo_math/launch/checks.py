"""Before anything is loaded: batch arithmetic, and combinations that cannot work."""

from __future__ import annotations

import argparse
import importlib.util
import os
from dataclasses import dataclass
from typing import Any

from grpo_math.errors import UsageError
from grpo_math.launch.processes import launched_processes, strategy, vllm_mode
from grpo_math.launch.resume import Rhythm


@dataclass(frozen=True)
class BatchPlan:
    """How many completions and questions one optimizer step takes over all processes, and how many steps there are."""

    completions_per_generation: int
    questions_per_generation: int
    completions_per_step: int
    steps: int
    epochs: float
    max_tokens_per_step: int

    def lines(self, rows: int, num_generations: int) -> list[str]:
        return [
            f"{self.completions_per_step / num_generations:g} questions x {num_generations} completions = "
            f"{self.completions_per_step} completions a step, at most {self.max_tokens_per_step:,} tokens of them",
            f"{self.steps:,} steps over {rows:,} questions ({self.epochs:.2f} epochs)",
        ]


def plan_batches(arguments: argparse.Namespace, rows: int) -> BatchPlan:
    """Check the batch arithmetic of TRL's arguments for `rows` questions and this launch's number of processes.

    Raises:
        UsageError: the sizes do not fit together; the message names the flags and sizes that would.
    """
    group = arguments.num_generations
    for flag in (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_generations",
        "max_completion_length",
    ):
        if getattr(arguments, flag) < 1:
            raise UsageError(f"--{flag} {getattr(arguments, flag)}: must be at least 1")
    if group < 2:
        raise UsageError("--num_generations 1: a group needs at least 2 completions to compare")
    micro_batch = arguments.per_device_train_batch_size * launched_processes()
    per_step = micro_batch * arguments.gradient_accumulation_steps
    per_generation = (
        arguments.generation_batch_size
        or micro_batch * (arguments.steps_per_generation or 0)
        or per_step
    )
    if per_generation % group:
        raise UsageError(
            f"--num_generations {group} does not divide the {per_generation} completions of a generation batch "
            f"(--per_device_train_batch_size {arguments.per_device_train_batch_size} x "
            f"{micro_batch // arguments.per_device_train_batch_size} processes x --gradient_accumulation_steps "
            f"{arguments.gradient_accumulation_steps}): choose --num_generations from "
            f"{', '.join(str(n) for n in range(2, per_generation + 1) if per_generation % n == 0)}"
        )
    questions = per_generation // group
    if rows < questions:
        raise UsageError(
            f"the training data has {rows} questions, and a generation batch takes {questions}: lower "
            "--per_device_train_batch_size or --gradient_accumulation_steps, or raise --num_generations"
        )
    usable = rows // questions * questions
    steps_per_epoch = max(1, usable * group * arguments.num_iterations // per_step)
    steps = (
        arguments.max_steps
        if arguments.max_steps > 0
        else int(steps_per_epoch * arguments.num_train_epochs)
    )
    return BatchPlan(
        per_generation,
        questions,
        per_step,
        steps,
        steps / steps_per_epoch,
        per_step * arguments.max_completion_length,
    )


def steps_between_generations(arguments: argparse.Namespace) -> int:
    """Optimizer steps that one batch of completions is used for: a run can be continued only between such batches."""
    return Rhythm.of(arguments, 0).period


def conflicts(arguments: argparse.Namespace) -> list[str]:
    """What TRL would accept and then fail at, or what would make a run impossible to continue: a line for each."""
    a, spread = arguments, strategy()
    sharded = spread in ("fsdp1", "fsdp2", "zero3")
    quantized = a.load_in_4bit or a.load_in_8bit
    colocated, server = vllm_mode(a) == "colocate", vllm_mode(a) == "server"
    every = steps_between_generations(a)
    rules = [
        (
            a.use_vllm and not _installed("vllm"),
            "--use_vllm: vllm is not installed; pip install vllm, or leave it out",
        ),
        (
            spread.startswith("zero") and not _installed("deepspeed"),
            f"the launcher asks for {spread}: deepspeed is not installed; pip install deepspeed, or use fsdp2",
        ),
        (
            quantized and not _installed("bitsandbytes"),
            "--load_in_4bit/8bit: bitsandbytes is not installed",
        ),
        (
            quantized and not a.use_peft,
            "--load_in_4bit/8bit: quantised weights cannot be trained; add --use_peft true",
        ),
        (
            quantized and sharded,
            f"--load_in_4bit/8bit: quantised LoRA does not work when {spread} spreads the weights; use ddp or zero2",
        ),
        (
            quantized and a.use_vllm,
            "--load_in_4bit/8bit: the adapter cannot be added to quantised weights for vLLM without changing them; "
            "use --use_vllm false, or --dtype bfloat16 instead",
        ),
        (
            a.use_peft and a.use_vllm and spread == "fsdp1",
            "--use_peft with vLLM: FSDP 1 cannot give it the merged weights; use accelerate_configs/fsdp2.yaml",
        ),
        (
            colocated and launched_processes() % a.vllm_tensor_parallel_size,
            f"--vllm_tensor_parallel_size {a.vllm_tensor_parallel_size}: does not divide the {launched_processes()} "
            "processes of this launch",
        ),
        (
            a.vllm_enable_sleep_mode and not colocated,
            "--vllm_enable_sleep_mode: only for vLLM on the training GPUs (--use_vllm true --vllm_mode colocate)",
        ),
        (
            server and not _has_gpu(),
            "--vllm_mode server: weights go to the server over NCCL, which needs GPUs; this process sees none",
        ),
        (
            spread.startswith("fsdp")
            and a.gradient_checkpointing
            and _env_true("FSDP_ACTIVATION_CHECKPOINTING"),
            "--gradient_checkpointing true and fsdp_activation_checkpointing: one of the two",
        ),
        (
            a.eval_strategy != "no" or a.eval_on_start,
            "--eval_strategy and --eval_on_start: would report rewards; --eval_size N reports accuracy",
        ),
        (
            a.eval_steps < 1 or a.eval_steps % 1,
            f"--eval_steps {a.eval_steps:g}: must be a whole number of steps",
        ),
        (
            a.use_vllm
            and a.vllm_importance_sampling_correction
            and (a.top_k or a.top_p < 1 or a.min_p),
            "--top_k, --top_p or --min_p: vLLM's probabilities would be of the cut distribution and its correction "
            "wrong; leave them out, or add --vllm_importance_sampling_correction false",
        ),
        (
            a.save_only_model,
            "--save_only_model: leaves out the optimizer, so the run could not be continued",
        ),
        (
            a.save_steps >= 1 and a.save_steps % every,
            f"--save_steps {a.save_steps:g}: completions are used for {every} steps, and a run can be continued only "
            f"between them; choose a multiple of {every}",
        ),
    ]
    return [message for broken, message in [*_out_of_range(a), *rules] if broken]


def _out_of_range(a: argparse.Namespace) -> list[tuple[Any, str]]:
    return [
        (
            not a.learning_rate >= 0,
            f"--learning_rate {a.learning_rate:g}: must be a number that is not negative",
        ),
        (
            not a.temperature > 0,
            f"--temperature {a.temperature:g}: must be above 0, as training samples",
        ),
        (
            a.max_steps <= 0 and not a.num_train_epochs > 0,
            f"--num_train_epochs {a.num_train_epochs:g}: nothing to do; give it, or --max_steps, a number above 0",
        ),
        (
            a.max_completion_length < 1,
            f"--max_completion_length {a.max_completion_length}: must be at least 1",
        ),
    ]


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _env_true(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def check_arguments(arguments: argparse.Namespace, rewards: list[str], rows: int) -> BatchPlan:
    """Check all that can be checked before the model is read, and plan the batches.

    Raises:
        UsageError: something cannot work; of combinations of flags, all that cannot are named.
    """
    check_weights(arguments.reward_weights, rewards)
    batches = plan_batches(arguments, rows)
    if found := conflicts(arguments):
        raise UsageError("\nerror: ".join(found))
    return batches


def check_weights(weights: list[float] | None, rewards: list[str]) -> None:
    """One weight per reward function."""
    if weights is not None and len(weights) != len(rewards):
        raise UsageError(
            f"--reward_weights: {len(weights)} values for {len(rewards)} rewards ({' '.join(rewards)}); give one each"
        )
