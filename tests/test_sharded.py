"""FSDP2, ZeRO-2 and ZeRO-3 on two CPU processes: full gradients beside plain GRPOTrainer's, spread in the same way."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from trainer_runs import relative_error

pytestmark = pytest.mark.slow

# Two processes of uneven lengths; a whole process without an advantage; accumulation and several steps a generation.
CASES = [
    "accumulated half dr_grpo",
    "accumulated rank dr_grpo gradient_checkpointing=true",
    "long_generations uneven dapo",
]
LAUNCHER = ["-m", "accelerate.commands.launch", "--num_processes", 2, "--num_machines", 1, "--machine_rank", 0]


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    """A copy of accelerate that takes FSDP2 on CPUs: one more name in a list within a function."""
    import accelerate

    folder = tmp_path_factory.mktemp("patched")
    shutil.copytree(Path(accelerate.__file__).parent, folder / "accelerate")
    state = folder / "accelerate/state.py"
    text = state.read_text()
    before = "DistributedType.MULTI_GPU,\n"
    start = text.index("def __init__", text.index("class AcceleratorState"))
    place = text.index(before, start)
    state.write_text(text[:place] + "DistributedType.MULTI_CPU,\n" + text[place:])
    return folder


@pytest.mark.parametrize("config", ["fsdp2", "zero2", "zero3"])
def test_gradients_of_a_spread_model_are_trls(config, patched, tmp_path):
    if config != "fsdp2":
        pytest.importorskip("deepspeed")
    launch = [*LAUNCHER, "--config_file", ROOT / f"accelerate_configs/{config}.yaml", "--main_process_port", 0]
    command = [sys.executable, *launch, ROOT / "tests/sharded_runs.py", tmp_path, *CASES]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    env |= {"PYTHONPATH": f"{patched}:{ROOT}:{ROOT / 'tests'}", "TORCH_EXTENSIONS_DIR": str(patched / "built")}
    done = subprocess.run([str(c) for c in command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=450)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    shards = json.loads((tmp_path / "spread.json").read_text())
    assert shards == {"type": "FSDP" if config == "fsdp2" else "DEEPSPEED", "packs": True}
    for number in range(len(CASES)):
        theirs, ours = (torch.load(tmp_path / f"{number}-{kind}.pt") for kind in ("theirs", "ours"))
        assert len(theirs) == len(ours) > 0
        errors = [relative_error(a, b) for a, b in zip(ours, theirs, strict=True)]
        assert 0 < max(errors) < 1e-5, (CASES[number], errors)
