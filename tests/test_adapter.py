"""A LoRA adapter: trained by real steps, resumed as if never stopped, evaluated on its base model, and merged."""

import json
import shutil

import pytest
from grpo_math.data.problems import sum_problems
from grpo_math.models.source import find_base

from conftest import STARTER, read_rows, run_all, write_jsonl

RUN = [
    *("train_grpo.py", STARTER, "--train_data", "data/train.jsonl", "--output_dir", "run", "--use_peft", "true"),
    *("--lora_target_modules", "all-linear", "--lora_r", 4, "--per_device_train_batch_size", 8),
    *("--gradient_accumulation_steps", 2, "--num_generations", 4, "--max_completion_length", 12),
    *("--reward_funcs", "accuracy", "format", "--report_to", "none", "--learning_rate", "1e-2"),
    *("--max_steps", 4, "--save_steps", 2, "--eval_size", 40, "--eval_steps", 2),
]
EVALUATE = ["--data", "data/test.jsonl", "--max_tokens", 12, "--name"]


def logged(folder):
    """Training steps and measurements, without what depends on the clock."""
    rows = read_rows(folder / "run/metrics.jsonl")
    steps = {row["step"]: (row["reward"], row["grad_norm"]) for row in rows if "reward" in row}
    return steps, {row["step"]: row["eval_accuracy"] for row in rows if "eval_accuracy" in row}, len(rows)


def test_train_resume_evaluate_merge(tmp_path):
    problems = sum_problems(300, -9, 9, seed=1)
    rows = [{"question": p.question, "answer": str(p.answer), "task": "arithmetic"} for p in problems]
    write_jsonl(tmp_path / "data/train.jsonl", rows[:260])
    write_jsonl(tmp_path / "data/test.jsonl", rows[260:])
    run_all([RUN], tmp_path)
    run = tmp_path / "run"
    steps, accuracies, count = logged(tmp_path)
    assert list(steps) == [1, 2, 3, 4] and list(accuracies) == [0, 2, 4]
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-final"):
        assert (run / name / "adapter_config.json").is_file()
        assert not (run / name / "model.safetensors").exists()  # the adapter alone

    shutil.rmtree(run / "checkpoint-final")
    (run / "checkpoint-4/complete").unlink()  # as a kill while it was written would leave it
    said = run_all(
        [
            RUN,
            ["evaluate_gsm8k_no_vllm.py", "run", *EVALUATE, "adapter"],
            ["evaluate_gsm8k_no_vllm.py", STARTER, *EVALUATE, "base"],
        ],
        tmp_path,
    )
    assert "continuing from run/checkpoint-2, after step 2" in said
    again, accuracies_again, count_again = logged(tmp_path)
    assert list(accuracies_again) == [0, 2, 4] and count_again == count
    for step, values in steps.items():
        assert again[step] == pytest.approx(values, rel=1e-4, abs=1e-6), step
    assert accuracies_again == accuracies

    record = json.loads((run / "checkpoint-final/run.json").read_text())
    assert record["model_at"][0] == str(STARTER) == find_base(str(run / "checkpoint-final")).path

    ours, base = (read_rows(tmp_path / f"evals/{name}.jsonl") for name in ("adapter", "base"))
    assert sum(row["strict"] for row in ours) / 40 == pytest.approx(accuracies[4])
    assert [row["completion"] for row in ours] != [row["completion"] for row in base]
    assert sum(row["strict"] for row in base) / 40 == pytest.approx(accuracies[0])
    merged_model_says_the_same(tmp_path, ours)


def merged_model_says_the_same(folder, rows):
    """With the adapter's matrices added to the base's by hand: W + (alpha / r) B A."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = load_file(folder / "run/checkpoint-final/adapter_model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32)
    names = {key.removeprefix("base_model.model.").split(".lora_")[0] for key in weights}
    assert len(names) == 7 * model.config.num_hidden_layers
    with torch.no_grad():
        for name in names:
            a, b = (weights[f"base_model.model.{name}.lora_{kind}.weight"] for kind in "AB")
            model.get_submodule(name).weight += 32 / 4 * b @ a
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    for row in rows[:5]:
        ids = tokenizer(row["prompt"], return_tensors="pt").input_ids
        made = model.generate(ids, do_sample=False, max_new_tokens=12, attention_mask=torch.ones_like(ids))
        assert tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True) == row["completion"]
