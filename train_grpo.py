"""Train a language model with GRPO on questions whose answers can be checked.

    python train_grpo.py Qwen/Qwen2.5-0.5B-Instruct
    python train_grpo.py starter_model --config recipes/starter_arithmetic.yaml
    accelerate launch --config_file accelerate_configs/ddp.yaml train_grpo.py Qwen/Qwen2.5-3B-Instruct

The defaults are Dr. GRPO (arXiv 2503.20783). A run's folder holds its checkpoints, `checkpoint-final`, `metrics.jsonl`,
TensorBoard files and `run.json`; the same command run again continues from the last complete checkpoint.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_math.arguments import (
    REWARD_WEIGHTS,
    REWARDS,
    build_configs,
    parse_options,
    parse_trl_arguments,
    trl_parser,
)
from grpo_math.errors import UsageError, run
from grpo_math.generation import Loading, load_config, load_tokenizer
from grpo_math.prompts import asks_in_chat, build_prompts, prompt_token_ids, stop_strings
from grpo_math.rewards import build_rewards
from grpo_math.runs import FINAL, ModelSource, mark_complete, open_run, resolve_model
from grpo_math.tasks import choose_style, fingerprint, load_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from trl import GRPOConfig, GRPOTrainer, ModelConfig


def say(line: str) -> None:
    """Print on the main process of a launch."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def build_dataset(rows: list[dict[str, Any]], prompts: list) -> Any:
    """One row per question: the prompt, and every field that all rows have, for the reward functions."""
    from datasets import Dataset

    shared = [key for key in rows[0] if key not in ("prompt", "solution") and all(key in row for row in rows)]
    try:
        return Dataset.from_list(
            [{**{key: row[key] for key in shared}, "prompt": prompt} for row, prompt in zip(rows, prompts, strict=True)]
        )
    except Exception as error:  # pyarrow's errors for fields of mixed types share no base of their own
        raise UsageError(f"the rows' fields do not have one type each ({first_line(error)})") from error


def configure_tracking(args: GRPOConfig, chosen: bool) -> None:
    """W&B when asked, or when logged in and nothing was `chosen`; never a login prompt that would block a batch job."""
    import importlib.util
    import netrc

    if importlib.util.find_spec("wandb") is None:
        if "wandb" in args.report_to:
            raise UsageError("--report_to wandb: wandb is not installed; pip install wandb")
        return
    try:
        stored = netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        stored = False
    logged_in = stored or bool(os.environ.get("WANDB_API_KEY"))
    if logged_in and not chosen:
        args.report_to = ["tensorboard", "wandb"]
    if "wandb" in args.report_to and not logged_in and "WANDB_MODE" not in os.environ:
        os.environ["WANDB_MODE"] = "offline"
        say("W&B: not logged in, so the run is kept offline (wandb login, or WANDB_API_KEY)")
    os.environ.setdefault("WANDB_PROJECT", "grpo-math")
    args.run_name = args.run_name or Path(args.output_dir).name


def build_trainer(
    source: ModelSource,
    args: GRPOConfig,
    model_args: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Any,
    rewards: list,
    record: dict[str, Any],
) -> GRPOTrainer:
    from transformers import PrinterCallback, ProgressCallback
    from trl import get_peft_config, get_quantization_config

    from grpo_math.callbacks import CompleteCheckpoints, MetricsFile, StepPrinter
    from grpo_math.stopping import StopsAtStrings

    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(args.model_init_kwargs or {}),
    }
    run_dir = Path(args.output_dir)
    keep, args.save_total_limit = args.save_total_limit, None
    trainer = StopsAtStrings(
        model=source.path,
        reward_funcs=rewards,
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        callbacks=[CompleteCheckpoints(run_dir, record, keep), MetricsFile(run_dir), StepPrinter()],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def save_final(trainer: GRPOTrainer, record: dict[str, Any]) -> Path:
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


def main() -> None:
    options = parse_options(sys.argv[1:], __doc__)
    if options.help_all:
        trl_parser().print_help()
        return
    if options.model is None and not options.gives("model_name_or_path"):
        raise UsageError("no model: python train_grpo.py MODEL, where MODEL is a Hub id or a folder")
    rows = load_rows(options.train_data, options.task)
    style = choose_style(options.prompt, rows)
    build_rewards(options.reward_funcs, style)  # here for its error messages, before anything is loaded

    from grpo_math.preflight import (
        check_combinations,
        check_context,
        check_launch,
        check_weights,
        machine_defaults,
        plan_batches,
        stop_arguments,
    )

    machine, notes = machine_defaults()
    trl_args = parse_trl_arguments(options, machine)
    trl_args.model_name_or_path = options.model or trl_args.model_name_or_path
    source = resolve_model(trl_args.model_name_or_path)
    if trl_args.reward_weights is None and options.reward_funcs == REWARDS:
        trl_args.reward_weights = REWARD_WEIGHTS
    check_combinations(trl_args)
    check_weights(trl_args.reward_weights, options.reward_funcs)
    plan = plan_batches(trl_args, len(rows))
    task = rows[0]["task"]
    trl_args.output_dir = trl_args.output_dir or f"outputs/{source.name}-{task}"
    args, model_args = build_configs(trl_args)
    check_launch(args.world_size)

    loading = Loading(revision=trl_args.model_revision, trust_remote_code=trl_args.trust_remote_code)
    context = getattr(load_config(source, loading), "max_position_embeddings", None)
    tokenizer = load_tokenizer(source, loading)
    chat = asks_in_chat(style, tokenizer)
    prompts = build_prompts(style, [row["question"] for row in rows], tokenizer)
    dataset = build_dataset(rows, prompts)
    longest = max(len(ids) for ids in prompt_token_ids(tokenizer, prompts))
    check_context(longest, args.max_completion_length, context)
    if args.use_vllm and args.vllm_max_model_length is None:
        args.vllm_max_model_length = longest + args.max_completion_length
    args.generation_kwargs = stop_arguments(stop_strings(chat, style), args)

    own = {
        "model": source.path,
        "task": task,
        "prompt": style.name,
        "chat": chat,
        "train_data": {"path": options.train_data, "rows": len(rows), "sha256": fingerprint(options.train_data)},
        "reward_funcs": options.reward_funcs,
    }
    record, checkpoint = open_run(args, model_args, own, insist=options.resume, say=say)
    if record is None:
        return
    for line in [f"run          {args.output_dir}", *plan.lines(len(rows), args.num_generations), *notes]:
        say(line)
    rewards = build_rewards(options.reward_funcs, style, args.max_completion_length)
    configure_tracking(args, options.gives("report_to"))
    trainer = build_trainer(source, args, model_args, tokenizer, dataset, rewards, record)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    say(f"saved        {save_final(trainer, record)}")


if __name__ == "__main__":
    run(main)
