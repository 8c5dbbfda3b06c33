"""Before anything is loaded: batch arithmetic, the machine's precision, and combinations that cannot work."""

from __future__ import annotations

import argparse
import importlib.util
import os
from dataclasses import dataclass
from typing import Any

from grpo_math.errors import UsageError


def machine_defaults() -> tuple[dict[str, Any], list[str]]:
    """TRL arguments that depend on this machine, and a line for each that says what was chosen and why."""
    import torch

    if not torch.cuda.is_available():
        device = "an Apple GPU" if torch.backends.mps.is_available() else "no GPU"
        defaults = {"bf16": False, "attn_implementation": "sdpa", "dataloader_pin_memory": False}
        if launched_processes() > 1:
            # Without these, each process on a CPU would train a model of its own.
            defaults |= {"use_cpu": True, "ddp_backend": "gloo"}
        return defaults, [f"{device}: float32 and sdpa attention"]
    bf16 = torch.cuda.is_bf16_supported()
    flash = importlib.util.find_spec("flash_attn") is not None
    notes = ["bfloat16 autocast" if bf16 else f"{torch.cuda.get_device_name()} has no bfloat16: float32"]
    notes.append("flash-attention" if flash else "flash_attn is not installed: sdpa attention")
    attention = "flash_attention_2" if flash else "sdpa"
    return {"bf16": bf16, "attn_implementation": attention}, [", ".join(notes)]


def launched_processes() -> int:
    """How many processes `accelerate launch` or `torchrun` has started for this run, over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


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
    per_generation = arguments.generation_batch_size or micro_batch * (arguments.steps_per_generation or 0) or per_step
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
    steps = arguments.max_steps if arguments.max_steps > 0 else int(steps_per_epoch * arguments.num_train_epochs)
    return BatchPlan(
        per_generation, questions, per_step, steps, steps / steps_per_epoch, per_step * arguments.max_completion_length
    )


def check_combinations(arguments: argparse.Namespace) -> None:
    """Refuse what TRL would accept and then fail at, or what would make a run impossible to continue."""
    if arguments.use_vllm and importlib.util.find_spec("vllm") is None:
        raise UsageError("--use_vllm: vllm is not installed; pip install vllm, or leave the flag out")
    if arguments.save_only_model:
        raise UsageError("--save_only_model: leaves out the optimizer, so the run could not be continued; leave it out")
    accumulation = arguments.gradient_accumulation_steps
    per_generation = (arguments.steps_per_generation or accumulation) * arguments.num_iterations // accumulation
    if arguments.save_steps >= 1 and per_generation > 1 and arguments.save_steps % per_generation:
        raise UsageError(
            f"--save_steps {arguments.save_steps:g}: completions are used for {per_generation} steps, and a run can be "
            f"continued only between them; choose a multiple of {per_generation}"
        )


def stop_arguments(stop: tuple[str, ...], arguments: Any) -> dict[str, Any] | None:
    """TRL's `generation_kwargs` that end a completion at any string of `stop`; what the user gives there wins.

    Raises:
        UsageError: completions are generated in a way that has no stop strings.
    """
    if not stop:
        return arguments.generation_kwargs
    if arguments.use_transformers_continuous_batching:
        raise UsageError(
            "--use_transformers_continuous_batching: has no stop strings, which plain-text prompts need; leave it out"
        )
    ours = (
        {"stop": list(stop), "include_stop_str_in_output": True} if arguments.use_vllm else {"stop_strings": list(stop)}
    )
    return {**ours, **(arguments.generation_kwargs or {})}


def check_launch(world_size: int) -> None:
    """Processes that were launched together must train together, or each would make a model of its own."""
    launched = launched_processes()
    if launched != world_size:
        raise UsageError(
            f"{launched} processes were launched, but each sees {world_size}: launch with a configuration from "
            "accelerate_configs/ that fits the machine (cpu.yaml where there is no GPU)"
        )


def check_weights(weights: list[float] | None, rewards: list[str]) -> None:
    """One weight per reward function."""
    if weights is not None and len(weights) != len(rewards):
        raise UsageError(
            f"--reward_weights: {len(weights)} values for {len(rewards)} rewards ({' '.join(rewards)}); give one each"
        )


def check_context(longest_prompt: int, max_completion_length: int, context: int | None) -> None:
    """The longest prompt and the longest completion must fit into the model's context, all counted in tokens."""
    if context is not None and longest_prompt + max_completion_length > context:
        raise UsageError(
            f"the longest prompt has {longest_prompt} tokens, which leaves {max(0, context - longest_prompt)} of the "
            f"model's {context} for the completion: lower --max_completion_length {max_completion_length}"
        )
