"""Which weights are meant, whether they are those that were meant, and how an adapter finds its base."""

import json
import shutil

import pytest
from grpo_math.models.fingerprint import model_identity
from grpo_math.models.loading import Loading, load_config
from grpo_math.models.source import resolve_model

from conftest import STARTER


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_a_byte(path):
    """One byte in the middle of the file, where a digest of its ends would not look."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def identity(folder):
    source = resolve_model(str(folder))
    return model_identity(source, load_config(source, Loading()))


@pytest.fixture
def adapter(tmp_path):
    """A LoRA adapter, not trained, on a base beside it: both their folders' parent."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    shutil.copytree(STARTER, tmp_path / "base", ignore=shutil.ignore_patterns("*.py"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    return tmp_path


CHANGES = {
    "weights": ("base/model.safetensors", change_a_byte),
    "configuration": ("base/config.json", lambda path: change_json(path, rms_norm_eps=1e-3)),
    "end token": ("base/generation_config.json", lambda path: change_json(path, eos_token_id=5)),
    "adapter": ("adapter/adapter_model.safetensors", change_a_byte),
    "adapter configuration": ("adapter/adapter_config.json", lambda path: change_json(path, lora_alpha=3)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_identity_changes_with_whatever_changes_the_answers(adapter, name):
    path, change = CHANGES[name]
    before = {model: identity(adapter / model) for model in ("base", "adapter")}
    change(adapter / path)
    assert identity(adapter / "adapter") != before["adapter"]
    assert (identity(adapter / "base") != before["base"]) == path.startswith("base/")


def test_an_identity_does_not_depend_on_where_a_model_lies(adapter):
    before = identity(adapter / "adapter")
    (adapter / "elsewhere").mkdir()
    for name in ("base", "adapter"):
        shutil.move(adapter / name, adapter / "elsewhere" / name)
    config = adapter / "elsewhere/adapter/adapter_config.json"
    change_json(config, base_model_name_or_path=str(adapter / "elsewhere/base"))
    assert identity(adapter / "elsewhere/adapter") == before
    assert set(before) == {"model_sha256", "base_sha256"}


def test_code_counts_only_where_it_builds_the_model(adapter):
    before = identity(adapter / "base")
    (adapter / "base/notes.py").write_text("x = 1\n")
    assert identity(adapter / "base") == before
    change_json(adapter / "base/config.json", auto_map={})
    with_code = identity(adapter / "base")
    (adapter / "base/notes.py").write_text("x = 2\n")
    assert identity(adapter / "base") != with_code
