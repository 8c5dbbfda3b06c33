"""Train a language model with GRPO on questions whose answers can be checked.

    python train_grpo.py Qwen/Qwen2.5-0.5B-Instruct
    python train_grpo.py starter_model --config recipes/starter_arithmetic.yaml
    accelerate launch --config_file accelerate_configs/ddp.yaml train_grpo.py Qwen/Qwen2.5-3B

The defaults are Dr. GRPO (arXiv 2503.20783). A run's folder holds its checkpoints,
`checkpoint-final`, `metrics.jsonl`, TensorBoard files and `run.json`; the same command run again
continues from the last complete checkpoint.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_math.errors import STOPPED, UsageError, run, tell_job
from grpo_math.launch.arguments import Options, parse_options, parse_trl_arguments, trl_parser
from grpo_math.launch.checks import check_arguments
from grpo_math.launch.plan import (
    Plan,
    build_questions,
    choose_asking,
    collect_facts,
    describe_run,
    find_model,
    read_model,
    show,
)
from grpo_math.launch.processes import machine_defaults, vllm_mode
from grpo_math.launch.resume import Rhythm, open_run
from grpo_math.launch.settle import settle_arguments
from grpo_math.launch.tracking import identify_run
from grpo_math.launch.training_data import load_training_data
from grpo_math.launch.vllm_server import ServerWatch, server_url, wait_for_server
from grpo_math.models.lora import check_adapter
from grpo_math.rewards.build import build_rewards, graded_place
from grpo_math.run_folder import FINAL, mark_complete, write_record
from grpo_math.terminal import is_main_process, say

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from grpo_math.training.sampling import InformativeDraws
    from grpo_math.training.trainer import MathGRPOTrainer


def main() -> None:
    options = parse_options(sys.argv[1:], __doc__)
    if options.help_all:
        trl_parser().print_help()
        return
    data = load_training_data(options)
    source = find_model(options)
    asking, asked = choose_asking(options, data.rows, source)
    build_rewards(options.reward_funcs, asking.style)  # what is misspelled is told at once

    machine, notes = machine_defaults()
    given = parse_trl_arguments(options, machine)
    batches = check_arguments(given, options.reward_funcs, len(data.rows))
    model = read_model(source, given)
    questions = build_questions(data, asking, model)
    facts = collect_facts(model, asking, questions, data.rows[0]["task"])
    args, model_args = settle_arguments(options, given, facts)
    check_adapter(model.config, args, model_args)
    rewards = build_rewards(options.reward_funcs, asking.style, args.max_completion_length)
    record = describe_run(options, data, given, model, asking, (args, model_args))
    lines = [f"run          {args.output_dir}", *data.lines, f"asked        {asked}"]
    lines += [*batches.lines(len(data.rows), args.num_generations), *notes]
    plan = Plan(model, asking, questions, rewards, args, model_args, record, lines)
    if options.dry_run:
        show(plan)
    else:
        train(plan, options)


def train(plan: Plan, options: Options) -> None:
    """Start or continue the run. Exits with status 75 when a signal asked for a stop.

    Raises:
        UsageError: the folder holds another run, or this one cannot learn.
    """
    from grpo_math.launch.failures import loading_explained, shortage_explained
    from grpo_math.training.callbacks import CompleteCheckpoints, StopSignal
    from grpo_math.training.diagnosis import Diagnosis

    rhythm = Rhythm.of(plan.args, len(plan.questions.dataset))
    start = open_run(plan.record, rhythm, options.resume, say)
    if start.finished:
        return
    if start.checkpoint and plan.args.sync_ref_model:
        raise UsageError(
            f"--sync_ref_model: {start.checkpoint} does not hold the reference model as it was "
            "then, so the run cannot be continued; choose another --output_dir"
        )
    for line in plan.lines:
        say(line)
    if vllm_mode(plan.args) == "server":
        wait_for_server(server_url(plan.args), plan.args.vllm_server_timeout, say)
    saving = CompleteCheckpoints(plan.record, rhythm.is_exact, say)
    stop = StopSignal(rhythm.is_exact)
    diagnosis = Diagnosis(options.give_up_after, say)
    with shortage_explained(), loading_explained(plan.model.source.path):
        trainer = build_trainer(plan, options, [stop, diagnosis, saving])
    if is_main_process():
        write_record(Path(plan.args.output_dir), plan.record)
    identify_run(plan.args)
    for line in trainer.notes:
        say(line)
    with shortage_explained():
        trainer.train(resume_from_checkpoint=start.checkpoint and str(start.checkpoint))
    if diagnosis.verdict:
        raise UsageError(diagnosis.verdict)
    if not stop.stopped:
        say(f"saved        {save_final(trainer, plan)}")
        return
    step = trainer.state.global_step
    say(f"stopped after step {step}, checkpoint saved; the same command continues from it")
    trainer.accelerator.end_training()
    if not tell_job("stopped"):
        raise SystemExit(STOPPED)


def build_trainer(
    plan: Plan, options: Options, callbacks: list[TrainerCallback]
) -> MathGRPOTrainer:
    """Load the weights into a trainer that measures, saves and prints as this project does."""
    from transformers import PrinterCallback, ProgressCallback
    from trl import get_peft_config, get_quantization_config

    from grpo_math.generation.vllm_backend import prepare_training_engine
    from grpo_math.training.callbacks import MetricsFile, StepPrinter
    from grpo_math.training.held_out import HeldOut
    from grpo_math.training.trainer import MathGRPOTrainer

    args, questions, run_dir = plan.args, plan.questions, Path(plan.args.output_dir)
    if vllm_mode(args) == "colocate":
        prepare_training_engine(args)
    draws = choose_draws(plan, options)
    trainer = MathGRPOTrainer(
        draws=draws,
        baseline=options.advantage != "no_baseline",
        skip_zero_advantage=options.skip_zero_advantage,
        model=plan.model.source.path,
        reward_funcs=plan.rewards,
        args=args,
        train_dataset=questions.dataset,
        processing_class=plan.model.tokenizer,
        quantization_config=get_quantization_config(plan.model_args),
        peft_config=get_peft_config(plan.model_args),
        callbacks=[MetricsFile(run_dir), StepPrinter(), *filter(None, [draws]), *callbacks],
    )
    for unwanted in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(unwanted)
    if questions.held_out:
        rows, prompts, style = questions.held_out, questions.held_out_prompts, plan.asking.style
        trainer.add_callback(HeldOut(trainer, rows, prompts, style, int(args.eval_steps), say))
    if vllm_mode(args) == "server" and trainer.accelerator.is_main_process:
        watch = ServerWatch(server_url(args), args.vllm_server_timeout)
        watch.start(trainer.vllm_generation)
    return trainer


def choose_draws(plan: Plan, options: Options) -> InformativeDraws | None:
    """Draw questions by what they can teach, where that is asked for."""
    from grpo_math.training.sampling import InformativeDraws

    questions, place = plan.questions, graded_place(options.reward_funcs)
    if questions.rates is None or place is None:
        return None
    ids, group = questions.dataset["id"], plan.args.num_generations
    return InformativeDraws(list(ids), questions.rates, place, group, plan.args.seed)


def save_final(trainer: MathGRPOTrainer, plan: Plan) -> Path:
    """Save the trained model, on all ranks; it is called `checkpoint-final` once it is complete."""
    final = Path(plan.args.output_dir) / FINAL
    partial = final.with_name(f"{FINAL}.partial")
    trainer.save_model(str(partial))
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        mark_complete(partial, plan.record)
        shutil.rmtree(final, ignore_errors=True)  # of a shorter run that was continued
        partial.rename(final)
    return final


if __name__ == "__main__":
    run(main)
