"""Machines without internet: a model downloaded where there is some, and one line where it is missing."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT, STARTER, script, write_jsonl
from hub import TOKEN, Hub, Repository


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


def test_a_downloaded_model_is_all_that_a_machine_without_internet_needs(tmp_path):
    """From a stand-in of the Hub over HTTP; weights in formats that run code when loaded stay there."""
    files = {path.name: path.read_bytes() for path in STARTER.iterdir() if path.suffix != ".py" and path.is_file()}
    with Hub() as hub:
        hub.repositories["tester/model"] = Repository(True, {**files, "pytorch_model.bin": b"pickle"}, commits=1)
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}
        refused = script(["download_model.py", "tester/model"], tmp_path, **online)
        assert refused.returncode == 2 and "cannot be downloaded" in refused.stderr
        done = script(["download_model.py", "tester/model"], tmp_path, HF_TOKEN=TOKEN, **online)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("models/model: ready") and TOKEN not in done.stdout + done.stderr
        asked = len(hub.requests)
        again = script(["download_model.py", "tester/model"], tmp_path, HF_TOKEN=TOKEN, **online)
        assert again.returncode == 0 and not any("safetensors" in request for request in hub.requests[asked:])
    assert {path.name for path in (tmp_path / "models/model").iterdir() if path.is_file()} == set(files)
    write_jsonl(tmp_path / "rows.jsonl", [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(40)])
    offline = script(["train_grpo.py", "models/model", "--train_data", "rows.jsonl", "--dry_run"], tmp_path)
    assert offline.returncode == 0 and "723,584 parameters" in offline.stdout, offline.stderr
