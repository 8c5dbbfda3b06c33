"""Machines without internet: a model downloaded where there is some, and one line where it is missing."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, STARTER, script, write_jsonl


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train_grpo.py", "Qwen/Qwen2.5-0.5B-Instruct", "--train_data", "rows.jsonl"], "download it where there is"),
        (
            ["evaluate_gsm8k_no_vllm.py", "Qwen/Qwen2.5-0.5B-Instruct", "--data", "rows.jsonl"],
            "download it where there",
        ),
        (["download_model.py", "Qwen/Qwen2.5-0.5B-Instruct"], "cannot be downloaded"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(tmp_path, command, words):
    write_jsonl(tmp_path / "rows.jsonl", [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(40)])
    done = script(command, tmp_path, HF_HOME=str(tmp_path / "cache"))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "Qwen/Qwen2.5-0.5B-Instruct" in done.stderr and words in done.stderr
    assert not (tmp_path / "models/Qwen2.5-0.5B-Instruct/config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "8.8.8.8"], "--host 8.8.8.8: is 8.8.8.8, where strangers may reach it"),
        (["--host", "0.0.0.0"], "where strangers may reach it"),
        (["--host", "no-such-host.invalid"], "cannot be resolved"),
    ],
)
def test_the_server_refuses_public_addresses(arguments, words):
    command = [sys.executable, ROOT / "serve_vllm.py", STARTER, *arguments]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
