"""Live tracking: W&B and Trackio for real, offline; one run however often it is continued; and no secret anywhere."""

import importlib.util
import json
import os
import socket
import sqlite3
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from grpo_math.data.problems import sum_problems
from grpo_math.errors import UsageError
from grpo_math.launch.tracking import choose_trackers, identify_run, wandb_login, wandb_silence

from conftest import STARTER, script, write_jsonl

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdefplanted0123456789abcdef0",
    "HF_TOKEN": "hf_PlantedPlantedPlantedPlantedPlanted",
    "HUGGING_FACE_HUB_TOKEN": "hf_OtherPlantedOtherPlantedOtherPlanted",
}


def contents(path: Path) -> bytes:
    """What is in a file, nothing where it is gone: a database takes its temporary files away when it likes."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("wandb", "trackio"))), reason='wandb or trackio is missing: ".[test]"'
)
def test_a_continued_run_is_one_run_with_its_completions_and_without_secrets(tmp_path):
    problems = sum_problems(40, -9, 9, seed=1)
    rows = [{"question": p.question, "answer": str(p.answer), "task": "arithmetic"} for p in problems]
    write_jsonl(tmp_path / "train.jsonl", rows)
    command = ["train_grpo.py", STARTER, "--train_data", "train.jsonl", "--output_dir", "run", "--save_steps", 1]
    command += ["--per_device_train_batch_size", 4, "--num_generations", 4, "--gradient_accumulation_steps", 1]
    command += ["--max_completion_length", 8, "--report_to", "wandb", "trackio", "--gradient_checkpointing", "false"]
    places = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path), "WANDB_MODE": "offline"}
    output = ""
    for steps in (1, 2):
        done = script([*command, "--max_steps", steps], tmp_path, **places, **SECRETS)
        assert done.returncode == 0, done.stderr
        output += done.stdout + done.stderr
    assert "continuing from run/checkpoint-1" in output

    identity = json.loads((tmp_path / "run/tracking.json").read_text())
    kept = sorted((tmp_path / "run/wandb").glob("offline-run-*"))
    assert len(kept) == 2 and all(folder.name.endswith(f"-{identity['id']}") for folder in kept)
    for folder in kept:
        (log,) = folder.glob("*.wandb")
        assert identity["name"].encode() in log.read_bytes() and b"train/reward" in log.read_bytes()
        tables = [json.loads(path.read_text()) for path in folder.glob("files/media/table/*.json")]
        assert tables and {"question", "completion", "gold", "strict"} <= set(tables[0]["columns"])
    (database,) = (tmp_path / "trackio").glob("*.db")
    logged = sqlite3.connect(database).execute("select run_id, run_name, metrics from metrics").fetchall()
    assert len({run for run, _, _ in logged}) == 1 and {name for _, name, _ in logged} == {identity["name"]}
    merged = [json.loads(metrics) for _, _, metrics in logged]
    assert [row["train/global_step"] for row in merged if "train/reward" in row] == [1, 2]
    assert {row["completions"]["_value"][0]["step"] for row in merged if "completions" in row} == {1, 2}

    assert script(["plot_training.py", "run"], tmp_path, **SECRETS).returncode == 0
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {"run.json", "report.html", "metrics.jsonl", "tracking.json"} <= {path.name for path in written}
    for secret in SECRETS.values():
        assert secret not in output
        assert [path for path in written if secret.encode() in contents(path)] == []


def arguments(**given):
    known = {"report_to": ["tensorboard"], "hub_token": None, "model_init_kwargs": None, "run_name": None}
    return SimpleNamespace(**{**known, "project": "grpo-math", **given})


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No login and nothing set, and the environment as it was afterwards."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("API_KEY", "MODE", "RUN_ID", "RESUME", "DIR", "PROJECT"):
        monkeypatch.setenv(f"WANDB_{name}", "")
        monkeypatch.delenv(f"WANDB_{name}")
    return tmp_path


def installed(monkeypatch, *names):
    for name in ("tensorboard", "wandb", "trackio"):
        module = SimpleNamespace(__spec__=SimpleNamespace(name=name)) if name in names else None
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"report_to": ["wandbb"]}, "--report_to wandbb: known services are tensorboard, wandb, trackio, and none"),
        ({"report_to": ["wandb"]}, "--report_to wandb: is not installed; pip install -c constraints.txt wandb"),
        ({"report_to": ["tensorboard", "trackio"]}, "--report_to trackio: is not installed"),
        ({"hub_token": "hf_x"}, "--hub_token: would be recorded"),
        ({"model_init_kwargs": {"token": "hf_x"}}, "--model_init_kwargs token: would be recorded"),
    ],
)
def test_what_cannot_be_reported_to_is_refused(nowhere, monkeypatch, given, words):
    installed(monkeypatch, "tensorboard")
    with pytest.raises(UsageError, match=words.replace(".", r"\.")) as error:
        choose_trackers(arguments(**given), True, print)
    assert "hf_x" not in str(error.value)


@pytest.mark.parametrize(
    ("login", "chosen", "given", "report_to", "mode"),
    [
        (False, False, ["tensorboard"], ["tensorboard"], None),
        (True, False, ["tensorboard"], ["tensorboard", "wandb"], None),
        (True, True, ["tensorboard"], ["tensorboard"], None),
        (True, True, ["wandb"], ["wandb"], None),
        (False, True, ["wandb"], ["wandb"], "offline"),
        (True, True, [], [], None),
    ],
)
def test_wandb_when_asked_or_logged_in_and_never_a_prompt(nowhere, monkeypatch, login, chosen, given, report_to, mode):
    installed(monkeypatch, "tensorboard", "wandb")
    monkeypatch.setattr("grpo_math.launch.tracking.wandb_silence", lambda: None)
    if login:
        (nowhere / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
        (nowhere / ".netrc").chmod(0o600)
    assert wandb_login() is login
    assert choose_trackers(arguments(report_to=given), chosen, print) == report_to
    assert os.environ.get("WANDB_MODE") == mode


def test_wandb_stays_offline_where_its_server_is_silent(nowhere, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        answer = threading.Thread(target=lambda: free.accept()[0].sendall(b"HTTP/1.1 404 No\r\n\r\n"), daemon=True)
        answer.start()
        assert wandb_silence() is None
    said = []
    choose_trackers(arguments(report_to=["wandb"]), True, said.append)
    assert os.environ["WANDB_MODE"] == "offline"
    assert "cannot be reached" in said[0] and "`wandb sync` sends it later" in said[0]


def test_a_run_keeps_its_id_and_name_and_another_gets_its_own(nowhere, monkeypatch):
    seen = []
    for folder, name in (("a", None), ("a", None), ("b", None), ("b", "chosen"), ("b", None)):
        for variable in ("RUN_ID", "RESUME", "DIR"):
            monkeypatch.delenv(f"WANDB_{variable}", raising=False)
        args = arguments(output_dir=str(nowhere / folder), run_name=name)
        identify_run(args)
        seen.append((os.environ["WANDB_RUN_ID"], args.run_name))
        assert os.environ["WANDB_RESUME"] == "allow" and os.environ["WANDB_DIR"] == str(nowhere / folder)
    assert seen[0] == seen[1] and seen[0][1] == f"a-{seen[0][0][:4]}"
    assert seen[0][0] != seen[2][0] == seen[3][0] == seen[4][0]
    assert [name for _, name in seen[2:]] == [f"b-{seen[2][0][:4]}", "chosen", "chosen"]


def test_what_the_environment_says_stands_and_is_kept(nowhere, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    identify_run(arguments(output_dir=str(nowhere)))
    assert os.environ["WANDB_PROJECT"] == "ours"
    monkeypatch.delenv("WANDB_RUN_ID")
    identify_run(arguments(output_dir=str(nowhere)))
    assert os.environ["WANDB_RUN_ID"] == "mine"


def test_only_the_main_process_names_the_run(nowhere, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    identify_run(arguments(output_dir=str(nowhere)))
    assert not (nowhere / "tracking.json").exists() and "WANDB_RUN_ID" not in os.environ


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_broken_identity_is_named(nowhere, content):
    (nowhere / "tracking.json").write_text(content)
    with pytest.raises(UsageError, match=r"tracking\.json: cannot be read"):
        identify_run(arguments(output_dir=str(nowhere)))
