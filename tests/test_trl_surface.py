"""What the project leans on in its libraries without a promise of theirs: an upgrade says here what moved.

Sources are read, not imported. A row is added wherever code overrides, calls or sets such a name.
"""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from conftest import ROOT

# Module, class, method, and its parameters.
METHODS = [
    ("trl.trainer.grpo_trainer", "GRPOTrainer", "_get_train_sampler", "self dataset"),
    (
        "trl.trainer.grpo_trainer",
        "GRPOTrainer",
        "_get_per_token_logps_and_entropies",
        "self model input_ids attention_mask logits_to_keep batch_size compute_entropy compute_aux_loss pixel_values "
        "image_grid_thw num_images pixel_attention_mask spatial_shapes num_tiles image_sizes token_type_ids "
        "mm_token_type_ids image_position_ids",
    ),
    ("trl.trainer.grpo_trainer", "GRPOTrainer", "_prepare_inputs", "self generation_batch"),
    (
        "trl.trainer.grpo_trainer",
        "GRPOTrainer",
        "_calculate_rewards",
        "self inputs prompts completions completion_ids_list",
    ),
    (
        "trl.trainer.grpo_trainer",
        "GRPOTrainer",
        "_generate_single_turn",
        "self prompt_ids images multimodal_fields num_generations has_tool_images",
    ),
    ("trl.trainer.grpo_trainer", "GRPOTrainer", "_generate", "self prompts"),
    ("trl.trainer.grpo_trainer", "GRPOTrainer", "_generate_and_score_completions", "self inputs"),
    ("trl.trainer.grpo_trainer", "GRPOTrainer", "_compute_loss", "self model inputs"),
    ("trl.generation.vllm_generation", "VLLMGeneration", "sync_weights", "self"),
    ("trl.generation.vllm_generation", "VLLMGeneration", "_iter_named_params", "self"),
    (
        "transformers.trainer",
        "Trainer",
        "_run_epoch",
        "self model epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial ignore_keys_for_eval "
        "start_time resume_from_checkpoint epochs_trained steps_trained_in_current_epoch",
    ),
]
# Module, and a name without a signature that stands in it.
NAMES = [
    ("trl.trainer.grpo_trainer", "self._buffered_inputs"),
    ("trl.trainer.grpo_trainer", "self._step"),
    ("trl.trainer.grpo_trainer", "self._metrics"),
    ("trl.trainer.grpo_trainer", "self._logs"),
    ("trl.trainer.grpo_trainer", "self._tokenizer"),
    ("trl.trainer.grpo_trainer", "self._is_vlm"),
    ("trl.trainer.grpo_trainer", "self._entropy_bonus_enabled"),
    ("trl.generation.vllm_generation", "_fix_param_name_to_vllm"),
    ("transformers.configuration_utils", "_attn_implementation"),
    ("transformers.configuration_utils", "_commit_hash"),
    ("transformers.modeling_utils", "_supports_attention_backend"),
    ("transformers.modeling_utils", "_can_set_attn_implementation"),
    ("vllm._custom_ops", "_supports_onednn"),
    ("vllm.model_executor.layers.utils", "check_cpu_sgl_kernel"),
]


@cache
def source(module: str) -> str:
    package, *parts = module.split(".")
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"{package} is not installed here")
    return Path(found.origin).parent.joinpath(*parts).with_suffix(".py").read_text(encoding="utf-8")


@pytest.mark.parametrize(("module", "owner", "method", "parameters"), METHODS, ids=[row[2] for row in METHODS])
def test_a_method_takes_what_it_took(module, owner, method, parameters):
    (cls,) = (node for node in ast.parse(source(module)).body if isinstance(node, ast.ClassDef) and node.name == owner)
    (function,) = (node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == method)
    taken = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
    assert " ".join(taken) == parameters


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[row[1] for row in NAMES])
def test_a_name_is_still_there(module, name):
    assert re.search(rf"\b{re.escape(name)}\b", source(module))


def test_what_the_trainer_asks_of_its_parent_is_listed():
    text = (ROOT / "grpo_math/training/trainer.py").read_text(encoding="utf-8")
    assert {*re.findall(r"super\(\)\.(_[a-z]\w+)", text)} <= {method for _, _, method, _ in METHODS}
