"""Settle TRL's arguments: here they get their last values, and nothing changes them after."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, cast

from grpo_math.errors import UsageError, first_line
from grpo_math.generation.backend import check_context
from grpo_math.launch.arguments import (
    REWARDS,
    SCALE_REWARDS,
    Arguments,
    Options,
    parse_options,
    parse_trl_arguments,
    read_mapping,
)
from grpo_math.launch.processes import check_launch, machine_defaults
from grpo_math.launch.tracking import choose_trackers
from grpo_math.run_folder import build_record
from grpo_math.terminal import say

if TYPE_CHECKING:
    from trl import GRPOConfig, ModelConfig

# Of the default rewards. Halves and quarters add up exactly in floats: with a weight of 0.2, TRL
# takes the rounding of equal rewards for variance, and frac_reward_zero_std stays 0.
REWARD_WEIGHTS = [1.0, 0.25, 0.5]
# Settled for TRL alone: a run's record says what was given, as both hold for every run.
UNRECORDED = ("save_total_limit", "model_init_kwargs")


@dataclass(frozen=True)
class Facts:
    """What the model and the data add; `longest_prompt` and `context` are in tokens."""

    name: str = ""  # of the run folder, unless --output_dir names one
    path: str | None = None  # of the weights
    longest_prompt: int = 0
    context: int | None = None  # how much the model can read and write
    stop: tuple[str, ...] = ()  # strings that end a completion
    template: Mapping[str, object] = field(default_factory=dict)


def settle_arguments(
    options: Options, given: argparse.Namespace, facts: Facts
) -> tuple[GRPOConfig, ModelConfig]:
    """Make TRL's arguments from what was given, from what this project adds, and from `facts`.

    Raises:
        UsageError: arguments contradict each other, or TRL refuses them, in its own words.
    """
    flag, cap = "--max_completion_length", given.max_completion_length
    check_context(facts.longest_prompt, cap, facts.context, flag)
    values = vars(given) | {
        "model_name_or_path": facts.path or given.model_name_or_path,
        "output_dir": given.output_dir or f"outputs/{facts.name}",
        "report_to": choose_trackers(given, options.gives("report_to"), say),
        "reward_weights": _reward_weights(options, given),
        "scale_rewards": _scale_rewards(options, given),
        "chat_template_kwargs": dict(facts.template) or None,
        "generation_kwargs": stop_arguments(facts.stop, given),
        "model_init_kwargs": _model_init_kwargs(given),
        # `training/callbacks` deletes old checkpoints, once the new one is complete.
        "save_total_limit": None,
    }
    if given.use_vllm and given.vllm_max_model_length is None:
        values["vllm_max_model_length"] = facts.longest_prompt + given.max_completion_length
    args, model_args = _build_configs(values)
    check_launch(args.world_size)
    _try_optimizer(args)
    return args, model_args


def default_arguments() -> Arguments:
    """Give TRL's arguments as a run's record says them for which none was given."""
    given = parse_trl_arguments(parse_options([], ""), machine_defaults()[0])
    return build_record(*_build_configs(vars(given)), {})["arguments"]


def _build_configs(values: Arguments) -> tuple[GRPOConfig, ModelConfig]:
    from trl import GRPOConfig, ModelConfig

    def build(kind: type) -> object:
        names = [each.name for each in fields(kind) if each.init and each.name in values]
        return kind(**{name: values[name] for name in names})

    try:
        args, model_args = build(GRPOConfig), cast("ModelConfig", build(ModelConfig))
    except (ValueError, ImportError, TypeError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    targets = model_args.lora_target_modules
    if isinstance(targets, str) and re.fullmatch(r"[\w.]+", targets):
        # TRL makes a text of a single name, which peft takes for a pattern of whole paths.
        model_args.lora_target_modules = [targets]
    return args, model_args


def _try_optimizer(args: GRPOConfig) -> None:
    """Make optimizer and schedule for a single number, as the trainer will once it has loaded."""
    import torch
    from transformers import Trainer, get_scheduler

    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        if "nstall" in reason or "import" in reason:  # the others need the model to be made
            raise UsageError(f"--optim {args.optim.value}: {reason}") from error
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    name, settings = args.lr_scheduler_type, args.lr_scheduler_kwargs
    try:
        get_scheduler(name, optimizer, 0, 1000, scheduler_specific_kwargs=settings)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--lr_scheduler_type {name.value}: {first_line(error)} (--lr_scheduler_kwargs)"
        ) from error


def _reward_weights(options: Options, given: argparse.Namespace) -> list[float] | None:
    if given.reward_weights is None and options.reward_funcs == REWARDS:
        return REWARD_WEIGHTS
    return given.reward_weights


def _scale_rewards(options: Options, given: argparse.Namespace) -> str:
    """Say in TRL's terms what `--advantage` asks for.

    Raises:
        UsageError: TRL's own arguments ask for other advantages.
    """
    if options.advantage is None:
        return given.scale_rewards
    scale, aggregation = SCALE_REWARDS[options.advantage], given.multi_objective_aggregation
    other = None
    if options.gives("scale_rewards") and given.scale_rewards != scale:
        other = f"--scale_rewards {given.scale_rewards}"
    elif aggregation != "sum_then_normalize":
        other = f"--multi_objective_aggregation {aggregation}"
    if other:
        raise UsageError(f"--advantage {options.advantage} and {other}: give one of the two")
    return scale or given.scale_rewards


def stop_arguments(stop: tuple[str, ...], given: argparse.Namespace) -> Arguments | None:
    """Give TRL's `generation_kwargs` that end a completion at any string of `stop`; the user's win.

    Raises:
        UsageError: completions are generated in a way that has no stop strings.
    """
    own = read_mapping(given.generation_kwargs, "--generation_kwargs")
    if not stop:
        return own or None
    if given.use_transformers_continuous_batching:
        raise UsageError(
            "--use_transformers_continuous_batching: has no stop strings, which plain-text prompts "
            "need; leave it out"
        )
    if given.use_vllm:
        return {"stop": list(stop), "include_stop_str_in_output": True, **own}
    return {"stop_strings": list(stop), **own}


def _model_init_kwargs(given: argparse.Namespace) -> Arguments:
    return {
        "revision": given.model_revision,
        "attn_implementation": given.attn_implementation,
        "dtype": given.dtype,
        "use_safetensors": True,
        **read_mapping(given.model_init_kwargs, "--model_init_kwargs"),
    }
