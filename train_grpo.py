"""Train a language model with GRPO on questions whose answers can be checked.

    python train_grpo.py Qwen/Qwen2.5-0.5B-Instruct
    python train_grpo.py starter_model --config recipes/starter_arithmetic.yaml
    accelerate launch --config_file accelerate_configs/ddp.yaml train_grpo.py Qwen/Qwen2.5-3B-Instruct

The defaults are Dr. GRPO (arXiv 2503.20783). A run's folder holds its checkpoints, `checkpoint-final`, `metrics.jsonl`,
TensorBoard files and `run.json`; the same command run again continues from the last complete checkpoint.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_math.data.prompts import (
    Asking,
    PromptStyle,
    asks_in_chat,
    stop_strings,
)
from grpo_math.data.tasks import choose_style
from grpo_math.errors import STOPPED, UsageError, first_line, run, tell_job
from grpo_math.launch.arguments import (
    REWARD_WEIGHTS,
    REWARDS,
    Options,
    build_configs,
    parse_options,
    parse_trl_arguments,
    set_advantage,
    trl_parser,
)
from grpo_math.launch.processes import check_launch, machine_defaults, vllm_mode
from grpo_math.launch.resume import open_run
from grpo_math.launch.tracking import choose_trackers, identify_run
from grpo_math.launch.training_data import TrainingData, load_training_data
from grpo_math.models.loading import Loading, load_config, load_tokenizer
from grpo_math.models.source import ModelSource, resolve_model
from grpo_math.rewards.build import build_rewards
from grpo_math.run_folder import FINAL, RunRecord, mark_complete, write_record
from grpo_math.terminal import is_main_process

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerCallback
    from trl import GRPOConfig, ModelConfig

    from grpo_math.training.stopping import StopsAtStrings


def say(line: str) -> None:
    """Print on the main process of a launch."""
    if is_main_process():
        print(line, flush=True)


def build_dataset(rows: list[dict[str, Any]], prompts: list) -> Any:
    """One row per question: the prompt, and every field that all rows have, for the reward functions."""
    from datasets import Dataset

    shared = [
        key
        for key in rows[0]
        if key not in ("prompt", "solution") and all(key in row for row in rows)
    ]
    try:
        return Dataset.from_list(
            [
                {**{key: row[key] for key in shared}, "prompt": prompt}
                for row, prompt in zip(rows, prompts, strict=True)
            ]
        )
    except (
        Exception
    ) as error:  # pyarrow's errors for fields of mixed types share no base of their own
        raise UsageError(
            f"the rows' fields do not have one type each ({first_line(error)})"
        ) from error


def build_trainer(
    plan: Plan, record: RunRecord, callbacks: list[TrainerCallback]
) -> StopsAtStrings:
    from transformers import PrinterCallback, ProgressCallback
    from trl import get_peft_config, get_quantization_config

    from grpo_math.generation.vllm_backend import prepare_training_engine
    from grpo_math.training.callbacks import CompleteCheckpoints, MetricsFile, StepPrinter
    from grpo_math.training.stopping import StopsAtStrings

    args, model_args = plan.args, plan.model_args
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        "use_safetensors": True,
        **(args.model_init_kwargs or {}),
    }
    run_dir = Path(args.output_dir)
    keep, args.save_total_limit = args.save_total_limit, None
    if vllm_mode(args) == "colocate":
        prepare_training_engine(args)
    trainer = StopsAtStrings(
        **plan.ours,
        model=plan.source.path,
        reward_funcs=plan.rewards,
        args=args,
        train_dataset=plan.dataset,
        processing_class=plan.tokenizer,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        callbacks=[
            CompleteCheckpoints(run_dir, record, keep),
            MetricsFile(run_dir),
            StepPrinter(),
            *callbacks,
        ],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def save_final(trainer: StopsAtStrings, record: RunRecord) -> Path:
    """Save the trained model, on all ranks, under a temporary name that becomes `checkpoint-final` when it is whole."""
    final = Path(trainer.args.output_dir) / FINAL
    partial = final.with_name(f"{FINAL}.partial")
    trainer.save_model(str(partial))
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        mark_complete(partial, record)
        shutil.rmtree(final, ignore_errors=True)  # of a shorter run that was continued
        partial.rename(final)
    return final


def build_inputs(
    data: TrainingData, style: PromptStyle, tokenizer: Any
) -> tuple[Any, list[list[int]], int]:
    """The training set, the held-out prompts as token ids, and the length of the longest prompt of both."""
    asking = Asking(style)
    prompts = asking.prompts([row["question"] for row in data.rows], tokenizer)
    asked = asking.prompts([row["question"] for row in data.held_out], tokenizer)
    held_out = asking.token_ids(asked, tokenizer)
    longest = max(len(ids) for ids in [*asking.token_ids(prompts, tokenizer), *held_out])
    return build_dataset(data.rows, prompts), held_out, longest


@dataclass
class Plan:
    """A run as far as it is known before the model is loaded."""

    source: ModelSource
    args: GRPOConfig
    model_args: ModelConfig
    model_config: Any
    tokenizer: PreTrainedTokenizerBase
    dataset: Any
    rewards: list
    own: dict[str, Any]  # of the record: what TRL does not know
    ours: dict[str, Any]  # of the trainer's arguments: those that TRL's does not have
    longest_prompt: int
    lines: list[str]  # for a person
    held_out: list[dict[str, Any]]
    held_out_prompts: list[list[int]]  # token ids
    style: PromptStyle


def prepare(options: Options) -> Plan:
    """Read data, tokenizer and configurations, and check all that can be checked without the weights.

    Raises:
        UsageError: something cannot work; of combinations of flags, all that cannot are named.
    """
    if options.model is None and not options.gives("model_name_or_path"):
        raise UsageError(
            "no model: python train_grpo.py MODEL, where MODEL is a Hub id or a folder"
        )
    data = load_training_data(options)
    rows = data.rows
    style = choose_style(options.prompt, rows)
    build_rewards(
        options.reward_funcs, style
    )  # here for its error messages, before anything is loaded

    from grpo_math.launch.checks import (
        check_context,
        check_weights,
        conflicts,
        plan_batches,
        stop_arguments,
    )

    machine, notes = machine_defaults()
    trl_args = parse_trl_arguments(options, machine)
    trl_args.model_name_or_path = options.model or trl_args.model_name_or_path
    source = resolve_model(trl_args.model_name_or_path)
    if trl_args.reward_weights is None and options.reward_funcs == REWARDS:
        trl_args.reward_weights = REWARD_WEIGHTS
    set_advantage(options, trl_args)
    check_weights(trl_args.reward_weights, options.reward_funcs)
    batches = plan_batches(trl_args, len(rows))
    if found := conflicts(trl_args):
        raise UsageError("\nerror: ".join(found))
    task = rows[0]["task"]
    trl_args.output_dir = trl_args.output_dir or f"outputs/{source.name}-{task}"
    args, model_args = build_configs(trl_args)
    check_launch(args.world_size)
    choose_trackers(args, options.gives("report_to"), say)

    loading = Loading(
        revision=trl_args.model_revision, trust_remote_code=trl_args.trust_remote_code
    )
    model_config = load_config(source, loading)
    tokenizer = load_tokenizer(source, loading)
    chat = asks_in_chat(style, tokenizer)
    dataset, held_out, longest = build_inputs(data, style, tokenizer)
    check_context(
        longest, args.max_completion_length, getattr(model_config, "max_position_embeddings", None)
    )
    if args.use_vllm and args.vllm_max_model_length is None:
        args.vllm_max_model_length = longest + args.max_completion_length
    args.generation_kwargs = stop_arguments(stop_strings(chat, style), args)
    rewards = build_rewards(options.reward_funcs, style, args.max_completion_length)
    own = {
        "model": source.path,
        "task": task,
        "prompt": style.name,
        "chat": chat,
        **data.record,
        "reward_funcs": options.reward_funcs,
        **(
            {"advantage": "no_baseline"} if options.advantage == "no_baseline" else {}
        ),  # the others are TRL's
    }
    ours = {
        "baseline": options.advantage != "no_baseline",
        "skip_zero_advantage": options.skip_zero_advantage,
    }
    lines = [
        f"run          {args.output_dir}",
        *data.lines,
        *batches.lines(len(rows), args.num_generations),
        *notes,
    ]
    about_model = (source, args, model_args, model_config, tokenizer)
    return Plan(
        *about_model, dataset, rewards, own, ours, longest, lines, data.held_out, held_out, style
    )


def dry_run(plan: Plan) -> None:
    """Print what the run would take, on every rank of the launch, without its weights."""
    from trl import get_peft_config

    from grpo_math.launch.memory import count_parameters, estimate, memory_lines
    from grpo_math.launch.processes import rank_line

    parameters = count_parameters(plan.model_config, get_peft_config(plan.model_args))
    parts = estimate(parameters, plan.model_config, plan.args, plan.model_args, plan.longest_prompt)
    lines = [
        *plan.lines,
        f"model        {plan.source.path}: {parameters.total:,} parameters, {parameters.trained:,} of them trained",
        f"prompts      at most {plan.longest_prompt} tokens, completions at most {plan.args.max_completion_length}",
        *memory_lines(parts, plan.args),
    ]
    print(rank_line(plan.args.device), flush=True)
    for line in lines:
        say(line)


def train(plan: Plan, options: Options) -> None:
    """Start or continue the run. Exits with status 75 when a signal asked for a stop.

    Raises:
        UsageError: the folder holds another run, or this one cannot learn.
    """
    from grpo_math.launch.checks import steps_between_generations
    from grpo_math.launch.failures import loading_explained, shortage_explained
    from grpo_math.launch.vllm_server import ServerWatch, server_url, wait_for_server
    from grpo_math.training.callbacks import StopSignal
    from grpo_math.training.diagnosis import Diagnosis
    from grpo_math.training.held_out import HeldOut

    start = open_run(plan.args, plan.model_args, plan.own, options.resume, say)
    if start.finished:
        return
    record, checkpoint = start.record, start.checkpoint
    for line in plan.lines:
        say(line)
    generates_elsewhere = vllm_mode(plan.args) == "server"
    if generates_elsewhere:
        wait_for_server(server_url(plan.args), plan.args.vllm_server_timeout, say)
    stop = StopSignal(steps_between_generations(plan.args))
    diagnosis = Diagnosis(options.give_up_after, say)
    with shortage_explained(), loading_explained(plan.source.path):
        trainer = build_trainer(plan, record, [stop, diagnosis])
    if is_main_process():
        write_record(Path(plan.args.output_dir), record)
    identify_run(plan.args)
    if plan.held_out:
        every = int(plan.args.eval_steps)
        trainer.add_callback(
            HeldOut(trainer, plan.held_out, plan.held_out_prompts, plan.style, every, say)
        )
    say(f"skipping     {trainer.skip_note}")
    say(f"sharing      {trainer.share_note}")
    if generates_elsewhere and trainer.accelerator.is_main_process:
        ServerWatch(server_url(plan.args), plan.args.vllm_server_timeout).start(
            trainer.vllm_generation
        )
    with shortage_explained():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if diagnosis.verdict:
        raise UsageError(diagnosis.verdict)
    if not stop.stopped:
        say(f"saved        {save_final(trainer, record)}")
        return
    say(
        f"stopped after step {trainer.state.global_step}, checkpoint saved; the same command continues from it"
    )
    trainer.accelerator.end_training()
    if not tell_job("stopped"):
        raise SystemExit(STOPPED)


def main() -> None:
    options = parse_options(sys.argv[1:], __doc__)
    if options.help_all:
        trl_parser().print_help()
        return
    plan = prepare(options)
    if options.dry_run:
        dry_run(plan)
    else:
        train(plan, options)


if __name__ == "__main__":
    run(main)
