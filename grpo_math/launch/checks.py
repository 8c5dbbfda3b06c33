"""Check before anything is loaded: batch sizes, and arguments that cannot work or do nothing."""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
from argparse import Namespace
from dataclasses import dataclass, fields

from grpo_math.errors import UsageError
from grpo_math.launch.processes import launched_processes, strategy, vllm_mode
from grpo_math.launch.resume import Rhythm

Rules = dict[str, object]  # a message, and whether it is to be given

# Arguments of transformers and TRL that are refused: why, or what does it instead.
WITHOUT_EFFECT = {
    "belongs to transformers' own evaluation, which is off; --eval_size N reports accuracy": """
        eval_strategy eval_on_start eval_delay do_eval do_predict per_device_eval_batch_size
        num_generations_eval eval_accumulation_steps prediction_loss_only batch_eval_metrics
        eval_do_concat_batches eval_use_gather_object bf16_full_eval fp16_full_eval
        include_for_metrics""",
    "checkpoints are not compared while training; evaluate those that are kept": """
        load_best_model_at_end metric_for_best_model greater_is_better""",
    "a run goes on from the last complete checkpoint in its --output_dir, and nowhere else": """
        resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint""",
    "a run saves on SIGTERM and SIGUSR1 by itself, after a step from which it can be continued": """
        enable_jit_checkpoint""",
    "a run's folder is one for all nodes, or it could not be continued": "save_on_each_node",
    "leaves out the optimizer, so the run could not be continued": "save_only_model",
    "export_model.py pushes a model to the Hub, with a card of what was measured": """
        push_to_hub hub_model_id hub_strategy hub_always_push hub_revision""",
    "GRPO has no labels, and draws its questions by itself": """
        label_smoothing_factor label_names train_sampling_strategy length_column_name""",
    "completions call no tools": "max_tool_calling_iterations",
}
# What TRL compares with these names only in the middle of a step.
CHOICES = {
    "loss_type": "grpo bnpo dr_grpo dapo cispo sapo luspo vespo",
    "scale_rewards": "group batch none",
    "multi_objective_aggregation": "sum_then_normalize normalize_then_sum",
    "importance_sampling_level": "token sequence",
    "vllm_mode": "colocate server",
    "vllm_model_impl": "vllm transformers",
    "vllm_importance_sampling_mode": "token_truncate token_mask sequence_truncate sequence_mask",
}
SIZES = """per_device_train_batch_size gradient_accumulation_steps num_generations num_iterations
    max_completion_length steps_per_generation generation_batch_size"""


@dataclass(frozen=True)
class BatchPlan:
    """What one optimizer step takes over all processes, and how many steps there are."""

    completions_per_generation: int
    questions_per_generation: int
    completions_per_step: int
    steps: int
    epochs: float
    max_tokens_per_step: int

    def lines(self, rows: int, num_generations: int) -> list[str]:
        return [
            f"{self.completions_per_step / num_generations:g} questions x {num_generations} "
            f"completions = {self.completions_per_step} completions a step, at most "
            f"{self.max_tokens_per_step:,} tokens of them",
            f"{self.steps:,} steps over {rows:,} questions ({self.epochs:.2f} epochs)",
        ]


def check_arguments(given: Namespace, rewards: list[str], rows: int) -> BatchPlan:
    """Check all that can be checked before the model is read, and plan the batches.

    Raises:
        UsageError: something cannot work; of combinations of flags, all that cannot are named.
    """
    check_weights(given.reward_weights, rewards)
    batches = plan_batches(given, rows)
    if found := conflicts(given):
        raise UsageError("\nerror: ".join(found))
    return batches


def check_weights(weights: list[float] | None, rewards: list[str]) -> None:
    """Ask for one weight per reward function."""
    if weights is not None and len(weights) != len(rewards):
        raise UsageError(
            f"--reward_weights: {len(weights)} values for {len(rewards)} rewards "
            f"({' '.join(rewards)}); give one each"
        )


def plan_batches(given: Namespace, rows: int) -> BatchPlan:
    """Check the batch arithmetic for `rows` questions and this launch's number of processes.

    Raises:
        UsageError: the sizes do not fit together; the message names the flags and sizes that would.
    """
    group, processes = given.num_generations, launched_processes()
    micro_batch = given.per_device_train_batch_size * processes
    _check_sizes(given, micro_batch)
    rhythm = Rhythm.of(given, rows)
    per_generation = micro_batch * rhythm.generation // given.num_iterations
    if per_generation % group:
        fitting = [str(n) for n in range(2, per_generation + 1) if per_generation % n == 0]
        raise UsageError(
            f"--num_generations {group} does not divide the {per_generation} completions of a "
            f"generation batch ({processes} processes, --per_device_train_batch_size "
            f"{given.per_device_train_batch_size}, --gradient_accumulation_steps "
            f"{given.gradient_accumulation_steps}): choose --num_generations from "
            f"{', '.join(fitting)}"
        )
    questions = per_generation // group
    if rows < questions:
        raise UsageError(
            f"the training data has {rows} questions, and a generation batch takes {questions}: "
            "lower --per_device_train_batch_size or --gradient_accumulation_steps, or raise "
            "--num_generations"
        )
    steps = 0
    if given.max_steps > 0 or 0 < given.num_train_epochs < math.inf:
        steps = rhythm.steps(given.max_steps, given.num_train_epochs)
    per_step = micro_batch * given.gradient_accumulation_steps
    return BatchPlan(
        completions_per_generation=per_generation,
        questions_per_generation=questions,
        completions_per_step=per_step,
        steps=steps,
        epochs=steps / rhythm.steps_per_epoch,
        max_tokens_per_step=per_step * given.max_completion_length,
    )


def _check_sizes(given: Namespace, micro_batch: int) -> None:
    for flag in SIZES.split():
        size = getattr(given, flag)
        if size is not None and size < 1:
            raise UsageError(f"--{flag} {size}: must be at least 1")
    if given.num_generations < 2:
        raise UsageError("--num_generations 1: a group needs at least 2 completions to compare")
    size = given.generation_batch_size
    if size and size % micro_batch:
        raise UsageError(
            f"--generation_batch_size {size}: must be a multiple of the {micro_batch} completions "
            "of a micro-batch over all processes"
        )
    if size and given.steps_per_generation:
        raise UsageError("--generation_batch_size and --steps_per_generation: give one of the two")


def steps_between_generations(given: Namespace) -> int:
    """Give the optimizer steps from one that a run can be continued after to the next."""
    return Rhythm.of(given, 0).period


def conflicts(given: Namespace) -> list[str]:
    """Give a line for all that TRL would fail at late, or that would not do what it says."""
    rules = [_range_rules, _spread_rules, _vllm_rules, _run_rules]
    found = [message for each in rules for message, broken in each(given).items() if broken]
    return [*_unknown_choices(given), *_without_effect(given), *found]


def _range_rules(a: Namespace) -> Rules:
    return {
        f"--learning_rate {a.learning_rate:g}: must be a number that is not negative": (
            not 0 <= a.learning_rate < math.inf
        ),
        f"--temperature {a.temperature:g}: must be above 0, as training samples": (
            not 0 < a.temperature < math.inf
        ),
        f"--max_steps {a.max_steps}: must be at least 1; without it, --num_train_epochs counts": (
            a.max_steps < 1 and a.max_steps != -1
        ),
        f"--num_train_epochs {a.num_train_epochs:g}: nothing to do; give it, or --max_steps, a "
        "number above 0": a.max_steps <= 0 and not 0 < a.num_train_epochs < math.inf,
        f"--eval_steps {a.eval_steps:g}: must be a whole number of steps": (
            a.eval_steps < 1 or a.eval_steps % 1
        ),
        f"--save_steps {a.save_steps:g}: must be above 0; --save_strategy no saves the final "
        "model alone": not a.save_steps > 0,
    }


def _spread_rules(a: Namespace) -> Rules:
    spread, quantized = strategy(), a.load_in_4bit or a.load_in_8bit
    checkpointing_twice = a.gradient_checkpointing and _env_true("FSDP_ACTIVATION_CHECKPOINTING")
    return {
        f"the launcher asks for {spread}: deepspeed is not installed; pip install deepspeed, or "
        "use fsdp2": spread.startswith("zero") and not _installed("deepspeed"),
        "--gradient_checkpointing true and fsdp_activation_checkpointing: one of the two": (
            spread.startswith("fsdp") and checkpointing_twice
        ),
        "--load_in_4bit/8bit: bitsandbytes is not installed": (
            quantized and not _installed("bitsandbytes")
        ),
        "--load_in_4bit/8bit: quantised weights cannot be trained; add --use_peft true": (
            quantized and not a.use_peft
        ),
        f"--load_in_4bit/8bit: quantised LoRA does not work when {spread} spreads the weights; use "
        "ddp or zero2": quantized and spread in ("fsdp1", "fsdp2", "zero3"),
    }


def _vllm_rules(a: Namespace) -> Rules:
    spread, mode = strategy(), vllm_mode(a)
    processes, parallel = launched_processes(), a.vllm_tensor_parallel_size
    cut_distribution = a.top_k or a.top_p < 1 or a.min_p
    return {
        "--use_vllm: vllm is not installed; pip install vllm, or leave it out": (
            a.use_vllm and not _installed("vllm")
        ),
        "--load_in_4bit/8bit: the adapter cannot be added to quantised weights for vLLM without "
        "changing them; use --use_vllm false, or --dtype bfloat16 instead": (
            a.use_vllm and (a.load_in_4bit or a.load_in_8bit)
        ),
        "--use_peft with vLLM: FSDP 1 cannot give it the merged weights; use "
        "accelerate_configs/fsdp2.yaml": a.use_peft and a.use_vllm and spread == "fsdp1",
        f"--vllm_tensor_parallel_size {parallel}: does not divide the {processes} processes of "
        "this launch": mode == "colocate" and processes % parallel,
        "--vllm_enable_sleep_mode: only for vLLM on the training GPUs (--use_vllm true "
        "--vllm_mode colocate)": a.vllm_enable_sleep_mode and mode != "colocate",
        "--vllm_mode server: weights go to the server over NCCL, which needs GPUs; this process "
        "sees none": mode == "server" and not _has_gpu(),
        "--top_k, --top_p or --min_p: vLLM's probabilities would be of the cut distribution and "
        "its correction wrong; leave them out, or add --vllm_importance_sampling_correction "
        "false": a.use_vllm and a.vllm_importance_sampling_correction and cut_distribution,
    }


def _run_rules(a: Namespace) -> Rules:
    period = steps_between_generations(a)
    reference = _changed(a, "ref_model_mixup_alpha ref_model_sync_steps")
    return {
        "--save_strategy best: would save nothing, as checkpoints are not compared while "
        "training; use steps": a.save_strategy == "best",
        f"--save_steps {a.save_steps:g}: completions are used for {period} steps, and a run can be "
        f"continued only between them; choose a multiple of {period}": (
            a.save_steps >= 1 and a.save_steps % period
        ),
        "--sync_ref_model: there is no reference model with --beta 0; raise it, or leave it out": (
            a.sync_ref_model and not a.beta
        ),
        "--sync_ref_model: an adapter's reference is its base model, which stays; leave it out, "
        "or add --use_peft false": a.sync_ref_model and a.use_peft,
        f"--{' and --'.join(reference)}: only with --sync_ref_model true": (
            reference and not a.sync_ref_model
        ),
    }


def _unknown_choices(given: Namespace) -> list[str]:
    """Look at the choices that TRL makes late; transformers' are made by their parser."""
    found = []
    for name, words in CHOICES.items():
        value, choices = getattr(given, name), words.split()
        if value not in choices and not isinstance(value, bool):
            close = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"did you mean {close[0]}? Known" if close else "known"
            found.append(f"--{name} {value}: unknown; {hint} are {', '.join(choices)}")
    return found


def _without_effect(given: Namespace) -> list[str]:
    return [
        f"--{name}: {instead}"
        for instead, names in WITHOUT_EFFECT.items()
        for name in _changed(given, names)
    ]


def _changed(given: Namespace, names: str) -> list[str]:
    """Give those of TRL's arguments that do not have TRL's defaults."""
    from trl import GRPOConfig

    defaults = {each.name: each.default for each in fields(GRPOConfig)}
    defaults["include_for_metrics"] = []
    return [name for name in names.split() if getattr(given, name) != defaults[name]]


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _env_true(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
