"""Combinations that cannot work are refused before anything is loaded, all of them at once."""

import dataclasses
import re

import pytest
from grpo_math.errors import UsageError
from grpo_math.launch import checks as preflight
from grpo_math.launch.arguments import parse_options, parse_trl_arguments
from grpo_math.launch.checks import conflicts, steps_between_generations
from grpo_math.launch.settle import Facts, settle_arguments
from grpo_math.run_folder import checkpoints
from trl import GRPOConfig

from conftest import STARTER, read_rows, run_all, script, write_jsonl

PEFT = "--use_peft true"
FSDP1 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}

# Every flag of transformers and TRL about saving, loading, continuing, evaluating and the number of steps: each is
# refused in a line that has these words, or is obeyed, which is tried below or where the comment says.
EVALUATION, BEST = "--eval_size N reports accuracy", "evaluate those that are kept"
CONTINUED, PUSHED = "goes on from the last complete checkpoint", "export_model.py pushes"
REFUSED = {
    "eval_strategy": ("steps", EVALUATION),
    "eval_on_start": ("true", EVALUATION),
    "eval_delay": ("1", EVALUATION),
    "do_eval": ("true", EVALUATION),
    "do_predict": ("true", EVALUATION),
    "per_device_eval_batch_size": ("4", EVALUATION),
    "num_generations_eval": ("4", EVALUATION),
    "eval_accumulation_steps": ("2", EVALUATION),
    "prediction_loss_only": ("true", EVALUATION),
    "batch_eval_metrics": ("true", EVALUATION),
    "eval_do_concat_batches": ("false", EVALUATION),
    "eval_use_gather_object": ("true", EVALUATION),
    "bf16_full_eval": ("true", EVALUATION),
    "fp16_full_eval": ("true", EVALUATION),
    "include_for_metrics": ("loss", EVALUATION),
    "load_best_model_at_end": ("true", BEST),
    "metric_for_best_model": ("eval_accuracy", BEST),
    "greater_is_better": ("true", BEST),
    "resume_from_checkpoint": ("other/checkpoint-3", CONTINUED),
    "ignore_data_skip": ("true", CONTINUED),
    "restore_callback_states_from_checkpoint": ("true", CONTINUED),
    "enable_jit_checkpoint": ("true", "a run saves on SIGTERM and SIGUSR1 by itself"),
    "save_on_each_node": ("true", "one for all nodes"),
    "save_only_model": ("true", "leaves out the optimizer"),
    "push_to_hub": ("true", PUSHED),
    "hub_model_id": ("me/mine", PUSHED),
    "hub_strategy": ("end", PUSHED),
    "hub_always_push": ("true", PUSHED),
    "hub_revision": ("main", PUSHED),
    "ref_model_mixup_alpha": ("0.5", "only with --sync_ref_model true"),
    "ref_model_sync_steps": ("5", "only with --sync_ref_model true"),
}
OBEYED = {
    *("save_strategy", "save_steps", "save_total_limit", "max_steps", "num_train_epochs", "eval_steps"),
    "sync_ref_model",  # with --beta; a run with it is not continued
    *("hub_private_repo", "hub_token"),  # of Trackio's space; refused as a secret, see test_tracking
    *("do_train", "save_safetensors"),  # training is what happens
}
STEPPING = re.compile(
    r"save_|load_best|.*best|resume|.*eval|hub_|push_|ref_model|sync_ref|ignore_data|restore_|.*jit_|max_steps|do_|"
    r"prediction_loss|include_for_metrics|num_train_epochs"
)


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
        *((f"--{name} {value}", {}, f"--{name}: ") for name, (value, _) in REFUSED.items() if "ref_model" not in name),
        *((f"--{name} {value}", {}, words) for name, (value, words) in REFUSED.items()),
        ("--save_strategy best", {}, "--save_strategy best: would save nothing"),
        ("--save_steps 0", {}, "--save_steps 0: must be above 0"),
        ("--save_steps -5", {}, "--save_steps -5: must be above 0"),
        ("--max_steps 0", {}, "--max_steps 0: must be at least 1"),
        ("--max_steps -7", {}, "--max_steps -7: must be at least 1"),
        ("--num_train_epochs 0", {}, "--num_train_epochs 0: nothing to do"),
        ("--num_train_epochs inf", {}, "--num_train_epochs inf: nothing to do"),
        ("--sync_ref_model true", {}, "there is no reference model with --beta 0"),
        (f"--sync_ref_model true --beta 0.1 {PEFT}", {}, "an adapter's reference is its base model"),
        ("--loss_type ppo", {}, "--loss_type ppo: unknown; "),
        ("--loss_type drgrpo", {}, "--loss_type drgrpo: unknown; did you mean dr_grpo? Known are grpo, bnpo"),
        ("--scale_rewards false", {}, "--scale_rewards false: unknown; known are group, batch, none"),
        ("--importance_sampling_level word", {}, "known are token, sequence"),
        ("--multi_objective_aggregation mean", {}, "known are sum_then_normalize"),
        ("--vllm_mode colocated", {}, "did you mean colocate?"),
        ("--vllm_importance_sampling_mode mask", {}, "--vllm_importance_sampling_mode mask: unknown"),
        ("--label_smoothing_factor 0.1", {}, "GRPO has no labels"),
        ("--max_tool_calling_iterations 2", {}, "completions call no tools"),
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
        ("--save_strategy epoch --save_total_limit -1", {}),
        ("--save_steps 0.5 --num_train_epochs 0.3 --max_steps -1", {}),
        ("--sync_ref_model true --beta 0.1 --ref_model_sync_steps 2", {}),
        ("--scale_rewards batch --loss_type sapo --optim adafactor", {}),
    ],
)
def test_what_works_is_let_through(monkeypatch, installed, flags, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert found(flags) == []


def test_every_flag_about_saving_loading_and_stepping_is_refused_or_tried():
    named = {each.name for each in dataclasses.fields(GRPOConfig) if STEPPING.match(each.name)}
    assert named - REFUSED.keys() - OBEYED == set()


def test_the_choices_are_those_of_trl():
    """TRL compares them in the trainer, after the model is loaded; none is left out here, and none is made up."""
    import inspect

    from trl.generation import vllm_generation
    from trl.trainer import grpo_config, grpo_trainer

    source = "".join(map(inspect.getsource, (grpo_config, grpo_trainer, vllm_generation)))
    for words in preflight.CHOICES.values():
        for choice in words.split():
            assert f'"{choice}"' in source or f"'{choice}'" in source, choice
    compared = re.findall(r"self\.loss_type (?:==|in|not in) (\[[^\]]*\]|\"\w+\")", source)
    assert set(re.findall(r"\"(\w+)\"", "".join(compared))) == set(preflight.CHOICES["loss_type"].split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--optim adamw_8bit", "--optim adamw_8bit: .*install.*bitsandbytes"),
        ("--optim galore_adamw", "--optim galore_adamw: .*galore"),
        ("--optim schedule_free_adamw", "--optim schedule_free_adamw: .*schedulefree"),
        ("--lr_scheduler_type warmup_stable_decay", "--lr_scheduler_type warmup_stable_decay: .*num_decay_steps"),
        ("--lr_scheduler_type cosine_with_min_lr", "--lr_scheduler_type cosine_with_min_lr: .*min_lr"),
        ("--lr_scheduler_type reduce_lr_on_plateau", "reduce_lr_on_plateau requires an eval strategy"),
    ],
)
def test_optimizers_and_schedules_are_tried_before_anything_is_loaded(flags, message):
    options = parse_options(["m", *flags.split()], "")
    with pytest.raises(UsageError, match=message):
        settle_arguments(options, parse_trl_arguments(options, {"bf16": False}), Facts())


@pytest.mark.parametrize(("name", "value"), [("save_strategy", "often"), ("optim", "adam"), ("lr_scheduler_type", 1)])
def test_choices_of_transformers_are_looked_at_in_recipes_too(tmp_path, name, value):
    (tmp_path / "r.yaml").write_text(f"{name}: {value}\n")
    with pytest.raises(UsageError, match=f"r.yaml: {name}: '?{value}'? is none of "):
        parse_trl_arguments(parse_options(["m", "--config", str(tmp_path / "r.yaml")], ""), {})
    with pytest.raises(UsageError, match=f"{name}.*: invalid choice: '{value}'"):
        found(f"--{name} {value}")


def test_steps_and_checkpoints_are_as_many_as_was_said(tmp_path):
    """Fractional epochs, generations shorter and longer than a step, and every way to save."""
    rows = [{"question": f"What is {n} plus 1?", "answer": str(n + 1), "task": "arithmetic"} for n in range(10)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    base = ["train_grpo.py", STARTER, "--train_data", "train.jsonl", "--report_to", "none", "--num_generations", 4]
    base += ["--max_completion_length", 4, "--gradient_checkpointing", "false", "--reward_funcs", "accuracy"]
    size = "--per_device_train_batch_size 8 --gradient_accumulation_steps 1"
    half = "--per_device_train_batch_size 4 --gradient_accumulation_steps 4 --steps_per_generation 2"
    cases = [  # flags, steps, steps with a checkpoint
        (f"{size} --num_train_epochs 1.3 --save_steps 0.5 --save_total_limit -1", 7, [4, 7]),
        (f"{half} --num_train_epochs 2 --save_strategy epoch", 6, [3, 6]),
        (f"{size} --num_train_epochs 0.5 --save_strategy no", 3, []),
        (f"{size} --max_steps 4 --save_steps 1 --save_total_limit 0", 4, [1, 2, 3, 4]),
        (f"{size} --max_steps 4 --save_steps 1 --save_total_limit 2", 4, [3, 4]),
        (f"{size} --max_steps 2 --beta 0.1 --sync_ref_model true --ref_model_sync_steps 1", 2, [2]),
    ]
    said = run_all(
        [[*base, *flags.split(), "--output_dir", f"run{i}"] for i, (flags, *_) in enumerate(cases)], tmp_path
    )
    for i, (flags, steps, saved) in enumerate(cases):
        _, _, part = said.partition(f"run{i}\n")
        assert re.search(r"^([\d,]+) steps over 10 questions", part, re.M)[1] == str(steps), flags
        made = [row["step"] for row in read_rows(tmp_path / f"run{i}/metrics.jsonl") if "reward" in row]
        assert made == list(range(1, steps + 1)), flags
        assert [int(path.name.split("-")[1]) for path in checkpoints(tmp_path / f"run{i}")] == saved, flags
    (tmp_path / "run5/checkpoint-final").rename(tmp_path / "elsewhere")
    again = script([*base, *cases[5][0].split(), "--output_dir", "run5", "--max_steps", 3], tmp_path)
    assert again.returncode == 2 and "--sync_ref_model: run5/checkpoint-2 does not hold the reference" in again.stderr


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
