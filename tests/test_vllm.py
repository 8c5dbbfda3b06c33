"""Both evaluators on the same questions, with a real vLLM (its CPU build where there is no GPU): make test-vllm."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from grpo_math.data.problems import sum_problems

from conftest import ROOT, STARTER, kill_after, read_rows, script, vllm_environment, write_jsonl
from terminal import Terminal

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
    """vLLM's greedy completions while it trains are those of the checkpoint before: two steps have changed them.

    And the accuracy that it measures on held-out questions is what transformers finds with the same weights.
    """
    import pyarrow.parquet

    problems = sum_problems(8, -99, 99, seed=3)
    rows = [{"question": p.question, "answer": str(p.answer), "task": "arithmetic"} for p in problems]
    write_jsonl(tmp_path / "train.jsonl", rows)
    done = script(
        [
            *("train_grpo.py", STARTER, "--train_data", "train.jsonl", "--use_vllm", "true", "--output_dir", "run"),
            *("--eval_data", data, "--eval_size", 150, "--eval_steps", 2),
            *("--per_device_train_batch_size", 32, "--gradient_accumulation_steps", 1, "--num_generations", 4),
            *("--top_k", 1, "--vllm_importance_sampling_correction", "false", "--advantage", "no_baseline"),
            *("--learning_rate", "3e-3", "--lr_scheduler_type", "constant", "--max_steps", 3, "--report_to", "none"),
            *("--max_completion_length", 16, "--gradient_checkpointing", "false", "--give_up_after", 0),
            *("--save_steps", 1, "--reward_funcs", "format", "accuracy_lenient"),
        ],
        tmp_path,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    greedy = {}
    for step, model in ((1, STARTER), (3, tmp_path / "run/checkpoint-2")):
        table = pyarrow.parquet.read_table(tmp_path / f"run/completions/completions_{step:05d}.parquet").to_pylist()
        written = {row["question"]: row["completion"] for row in table}
        written = {q: c if isinstance(c, str) else c[0]["content"] for q, c in written.items()}
        scored = evaluate("transformers", model, tmp_path / "train.jsonl", tmp_path / str(step))
        greedy[step] = {row["question"]: row["completion"] for row in scored.values()}
        same = sum(written[question].strip() == text.strip() for question, text in greedy[step].items())
        assert same >= 7, (step, written, greedy[step])  # vLLM's weights are bfloat16: one may differ
    assert sum(greedy[1][question] != greedy[3][question] for question in greedy[1]) >= 3

    measured = {row["step"]: row for row in read_rows(tmp_path / "run/metrics.jsonl") if "eval_accuracy" in row}
    assert list(measured) == [0, 2, 3]
    for step, model in ((0, STARTER), (2, tmp_path / "run/checkpoint-2")):
        found = evaluate("transformers", model, data, tmp_path / f"at-{step}").values()
        chosen = sorted(found, key=lambda row: row["id"])[:150]
        for key, verdict in (("eval_accuracy", "strict"), ("eval_accuracy_lenient", "lenient")):
            share = sum(row[verdict] for row in chosen) / 150
            assert measured[step][key] == pytest.approx(share, abs=3 / 150), (step, key)


# A script on a machine where vLLM finds no device, as its build for GPUs finds none without one.
NO_DEVICE = """
import runpy, sys
import vllm.platforms
from vllm.platforms.interface import UnspecifiedPlatform
vllm.platforms._current_platform = UnspecifiedPlatform()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate_gsm8k.py", STARTER, "--data"],
        ["train_grpo.py", STARTER, "--use_vllm", "true", "--eval_size", 20, "--output_dir", "run", "--train_data"],
    ],
)
def test_vllm_without_a_device_is_one_line(data, tmp_path, command):
    words = [sys.executable, "-c", NO_DEVICE, ROOT / command[0], *command[1:], data]
    done = subprocess.run([str(word) for word in words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "its build for GPUs is installed, and no GPU is seen here; use evaluate_gsm8k_no_vllm.py" in done.stderr


# Trains with the project's script, and writes what became of the frozen weights and what the engine holds.
WATCHED = """
import json, runpy, sys
import torch
from trl import GRPOTrainer
train = GRPOTrainer.train

def watched(self, *args, **named):
    frozen = {name: each.detach().clone() for name, each in self.model.named_parameters() if not each.requires_grad}
    train(self, *args, **named)
    self.vllm_generation.sync_weights()
    runner = self.vllm_generation.llm.llm_engine.model_executor.driver_worker.model_runner
    engine, moved, held = dict(runner.model.named_parameters()), [], {}
    for name, each in self.model.named_parameters():
        if name in frozen and not torch.equal(each, frozen[name]):
            moved.append(name)
    for name, layer in self.model.get_base_model().named_modules():
        if name.endswith(("o_proj", "down_proj")):
            a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
            base = layer.base_layer.weight
            wanted = (base.float() + layer.scaling["default"] * b @ a).to(base.dtype)
            held[name] = [torch.equal(engine[name + ".weight"], wanted), torch.equal(base, wanted)]
    json.dump([moved, held, str(base.dtype), self.state.global_step], open("found.json", "w"))

GRPOTrainer.train = watched
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_an_adapter_is_given_to_vllm_without_touching_the_frozen_weights(data, tmp_path):
    """Thirty steps in bfloat16: the base is bit for bit what it was, and the engine holds base plus adapter."""
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(STARTER, tmp_path / "half", ignore=shutil.ignore_patterns("*.py", "*.safetensors"))
    AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    command = [
        *(sys.executable, "-c", WATCHED, ROOT / "train_grpo.py", "half", "--train_data", data, "--output_dir", "run"),
        *("--use_vllm", "true", "--use_peft", "true", "--lora_target_modules", "all-linear", "--dtype", "bfloat16"),
        *("--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 1, "--num_generations", 4),
        *("--max_completion_length", 12, "--learning_rate", "3e-3", "--max_steps", 30, "--report_to", "none"),
        *("--give_up_after", 0, "--save_steps", 30, "--reward_funcs", "format", "accuracy_lenient"),
    ]
    done = subprocess.run([str(part) for part in command], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    moved, held, dtype, steps = json.loads((tmp_path / "found.json").read_text())
    assert (moved, dtype, steps) == ([], "torch.bfloat16", 30)
    assert held and all(found == [True, False] for found in held.values()), held


@pytest.fixture
def server(models, tmp_path):
    """A real `vllm serve` on loopback, which asks for a key: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = vllm_environment(tmp_path)
    command = [Path(sys.executable).with_name("vllm"), "serve", models / "endless", "--host", "127.0.0.1"]
    command += ["--port", port, "--served-model-name", "served", "--max-model-len", 4096, "--enforce-eager"]
    command += ["--dtype", "float32"]
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [str(part) for part in [*command, "--api-key", "sk-served"]],
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            deadline = time.time() + 240
            while process.poll() is None and time.time() < deadline:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                    break
                time.sleep(0.5)
            assert process.poll() is None, (tmp_path / "serve.log").read_text()
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_the_repl_talks_with_vllm_and_with_a_server(server, data, models, tmp_path):
    """A worker with vLLM's engine and one that speaks to a server say what transformers says, and can be stopped."""
    without_key = ["instruct_model_repl.py", "served", "--backend", "openai", "--base_url", server, "-p", "x"]
    refused = script(without_key, tmp_path)
    assert refused.returncode == 2 and "status 401" in refused.stderr and "set OPENAI_API_KEY" in refused.stderr

    model, key = models / "endless", {"OPENAI_API_KEY": "sk-served"}
    (tmp_path / "models.yaml").write_text(
        f"- {model}\n- {{model: {model}, name: engine, backend: vllm}}\n"
        f"- {{model: served, backend: openai, base_url: {server}}}\n"
    )
    repl = ["instruct_model_repl.py", "--models", "models.yaml", "--style", "answer_tag"]
    whole = [*repl, "--input", data, "--max_tokens", 5, "--output", "rows.jsonl"]
    done = script(whole, tmp_path, timeout=400, **key)
    assert done.returncode == 0, done.stderr
    assert "sk-served" not in done.stdout + done.stderr + (tmp_path / "rows.jsonl").read_text()
    answers: dict[str, dict[str, str]] = {}
    for row in read_rows(tmp_path / "rows.jsonl"):
        answers.setdefault(row["name"], {})[row["question"]] = row["completion"]
    assert {name: len(said) for name, said in answers.items()} == dict.fromkeys(
        ("endless", "engine", "served"), QUESTIONS
    )
    for name in ("engine", "served"):
        same = sum(answers[name][question] == text for question, text in answers["endless"].items())
        assert same >= 0.98 * QUESTIONS, name

    terminal = Terminal([*repl, "--max_tokens", 3000], tmp_path, **key)
    terminal.wait_for("is ready", 3, timeout=120)
    terminal.enter("What is 4 plus 5?")
    terminal.wait_for("^<ans.* <ans.* <ans")  # all three are being written
    terminal.type("\x03")
    # On two cores the server may be through with its answer by the time the others have begun theirs.
    terminal.wait_for("interrupted.*interrupted.*(interrupted|cut at)")
    terminal.enter("/max_tokens 4")
    terminal.enter("What is 4 plus 5?")
    terminal.wait_for("cut at .*cut at .*cut at ")
    terminal.enter("/quit")
    assert terminal.leave() == 0
