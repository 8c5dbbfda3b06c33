"""Both evaluators on the same questions, with a real vLLM (its CPU build where there is no GPU): make test-vllm."""

import json
import shutil

import pytest
from conftest import STARTER, kill_after, read_rows, script, write_jsonl

from grpo_math.arithmetic import sum_problems

pytestmark = pytest.mark.slow
QUESTIONS = 200


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    problems = sum_problems(QUESTIONS, -99, 99, seed=21)
    rows = [{"question": p.question, "answer": str(p.answer), "task": "arithmetic"} for p in problems]
    return write_jsonl(tmp_path_factory.mktemp("data") / "sums/test.jsonl", rows)


def evaluate(backend, model, data, folder, *more):
    name = {"vllm": "evaluate_gsm8k.py", "transformers": "evaluate_gsm8k_no_vllm.py"}[backend]
    folder.mkdir(exist_ok=True)
    done = script([name, model, "--data", data, "--max_tokens", 16, "--name", backend, *more], folder, timeout=900)
    assert done.returncode == 0, done.stderr
    return {(row["id"], row["sample"]): row for row in read_rows(folder / f"evals/{backend}.jsonl")}


def assert_agreement(folder, model, data, *more):
    """Greedy completions agree on at least 98% of the questions, and where they do, so do all verdicts."""
    ours, theirs = (evaluate(backend, model, data, folder, *more) for backend in ("vllm", "transformers"))
    assert ours.keys() == theirs.keys()
    same = [key for key in ours if ours[key]["completion"] == theirs[key]["completion"]]
    assert len(same) >= 0.98 * len(ours)
    for key in same:
        assert ours[key] == theirs[key]
    return ours


def test_backends_agree_and_write_the_same_rows(data, tmp_path):
    rows = assert_agreement(tmp_path, STARTER, data)
    assert len(rows) == QUESTIONS
    ours, theirs = (json.loads((tmp_path / f"evals/{b}.json").read_text()) for b in ("vllm", "transformers"))
    differing = {key for key in ours["settings"] if ours["settings"][key] != theirs["settings"].get(key)}
    assert differing == {"backend", "batch_size", "tensor_parallel_size"}
    compared = script(["compare_evaluations.py", "evals/transformers.jsonl", "evals/vllm.jsonl"], tmp_path)
    assert compared.returncode == 0 and "not" in compared.stdout


def test_a_model_without_chat_template_is_cut_at_the_same_stop_string(data, tmp_path):
    shutil.copytree(STARTER, tmp_path / "base", ignore=shutil.ignore_patterns("*.py", "chat_template*"))
    assert_agreement(tmp_path, "base", data, "--num_samples", 50, "--max_tokens", 32)


def test_an_adapter_is_loaded_on_its_base_model(data, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(STARTER),
        LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    adapted = assert_agreement(tmp_path, "adapter", data, "--num_samples", 100)
    base = evaluate("transformers", STARTER, data, tmp_path / "base", "--num_samples", 100)
    assert any(adapted[key]["completion"] != base[key]["completion"] for key in base)


def test_killed_evaluation_ends_with_the_same_rows(data, tmp_path):
    """Sampled, three completions a question; killed five times."""
    settings = ["--n", 3, "--temperature", 1, "--batch_size", 60]
    evaluate("vllm", STARTER, data, tmp_path / "whole", *settings)
    command = ["evaluate_gsm8k.py", STARTER, "--data", data, "--max_tokens", 16, "--name", "vllm", *settings]
    path = tmp_path / "evals/vllm.jsonl"
    for batches in (1, 3, 4, 6, 9):
        kill_after(command, tmp_path, path, 60 * batches)
    evaluate("vllm", STARTER, data, tmp_path, *settings)
    assert path.read_bytes() == (tmp_path / "whole/evals/vllm.jsonl").read_bytes()


def test_a_colocated_engine_follows_the_weights(data, tmp_path):
    """Training on what vLLM writes: after two steps at a high learning rate its greedy completions are others.

    And what it measures on held-out questions is what transformers finds with the final weights.
    """
    problems = sum_problems(8, -99, 99, seed=3)
    rows = [{"question": p.question, "answer": str(p.answer), "task": "arithmetic"} for p in problems]
    write_jsonl(tmp_path / "train.jsonl", rows)
    shutil.copy(data, tmp_path / "test.jsonl")
    done = script(
        [
            *(
                "train_grpo.py",
                STARTER,
                "--train_data",
                "train.jsonl",
                "--eval_size",
                150,
                "--eval_steps",
                2,
                "--use_vllm",
                "true",
                "--output_dir",
                "run",
            ),
            *("--per_device_train_batch_size", 32, "--gradient_accumulation_steps", 1, "--num_generations", 4),
            *("--top_k", 1, "--advantage", "no_baseline", "--reward_funcs", "format", "accuracy_lenient"),
            *("--learning_rate", "3e-3", "--lr_scheduler_type", "constant", "--max_steps", 4, "--report_to", "none"),
            *("--max_completion_length", 16, "--gradient_checkpointing", "false", "--give_up_after", 0),
        ],
        tmp_path,
        timeout=900,
        VLLM_CPU_KVCACHE_SPACE="1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    logged = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if "reward" in row]
    # Greedy completions of the same eight questions in every step, so only new weights can change them...
    assert len({(row["completions/mean_length"], row["reward"]) for row in logged}) > 1, logged
    # ... and they are the trainer's weights: both give vLLM's completions the same probabilities (vLLM's are bfloat16).
    assert all(row["sampling/sampling_logp_difference/mean"] < 0.02 for row in logged), logged
    measured = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if "eval_accuracy" in row]
    assert [row["step"] for row in measured] == [0, 2, 4]
    for row, model in ((measured[0], STARTER), (measured[-1], tmp_path / "run")):
        found = evaluate("transformers", model, data, tmp_path / f"at-{row['step']}").values()
        chosen = sorted(found, key=lambda each: each["id"])[:150]
        lenient = sum(each["lenient"] for each in chosen) / 150
        assert row["eval_accuracy_lenient"] == pytest.approx(lenient, abs=3 / 150)
