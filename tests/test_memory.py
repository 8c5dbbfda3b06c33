"""The memory estimate of --dry_run beside the highest resident memory of a real run, as the kernel measures it."""

import os
import re
import subprocess
import sys

import pytest
from grpo_math.data.problems import sum_problems

from conftest import ROOT, STARTER, script, write_jsonl

pytestmark = pytest.mark.slow
RUN = [
    *("--train_data", "train.jsonl", "--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 2),
    *("--num_generations", 4, "--reward_funcs", "length", "--report_to", "none", "--save_steps", 100),
    *("--skip_zero_advantage", "false"),  # the estimate is of a step in which every completion is trained on
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    problems = sum_problems(60, -99, 99, seed=1)
    write_jsonl(folder / "train.jsonl", [{"question": p.question, "answer": str(p.answer)} for p in problems])
    return folder


def random_model(folder, hidden, layers, vocabulary):
    """A model of the starter's architecture and tokenizer in another size."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(STARTER)
    config.hidden_size, config.num_hidden_layers, config.vocab_size = hidden, layers, vocabulary
    config.intermediate_size, config.layer_types = 4 * hidden, ["full_attention"] * layers
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = hidden // 64, 2, 64
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(STARTER).save_pretrained(folder)


def peak(folder, model, *arguments):
    """The highest resident memory, in GiB, of a run of two steps."""
    command = [sys.executable, ROOT / "train_grpo.py", model, *RUN, "--max_steps", 2, *arguments]
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"},
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return usage.ru_maxrss / 2**20


@pytest.fixture(scope="module")
def runtime(folder):
    """What Python and its packages take: a run of a model that takes next to nothing."""
    return peak(folder, STARTER, "--max_completion_length", 8, "--output_dir", "base")


@pytest.mark.parametrize(
    ("hidden", "layers", "vocabulary", "arguments"),
    [
        (256, 4, 8192, []),
        (384, 6, 16384, ["--gradient_checkpointing", "false"]),
        (512, 8, 32768, []),
    ],
)
def test_estimate_is_of_the_largest_step(folder, runtime, hidden, layers, vocabulary, arguments):
    random_model(folder / str(hidden), hidden, layers, vocabulary)
    arguments = ["--max_completion_length", 48, "--output_dir", f"out-{hidden}", *arguments]
    done = script(["train_grpo.py", hidden, *RUN, *arguments, "--dry_run"], folder)
    assert done.returncode == 0, done.stderr
    estimated = float(re.search(r"= ([\d.]+) GiB for each process", done.stdout)[1])
    assert not (folder / f"out-{hidden}").exists()
    taken = peak(folder, hidden, *arguments) - runtime
    # It is of a padded micro-batch, the largest that a packed row may be; a prompt that runs once takes less.
    assert 0.9 * taken <= estimated <= 1.35 * taken
