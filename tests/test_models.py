"""Which weights are meant, whether they are those that were meant, and how an adapter finds its base."""

import json
import os
import shutil

import pytest
from grpo_math.errors import UsageError
from grpo_math.models.fingerprint import model_identity, starting_model
from grpo_math.models.loading import Loading, load_config, whole_model
from grpo_math.models.source import find_base, resolve_model

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


def record(adapter, **more):
    """Write the run's record that training leaves beside an adapter; its base is `base`."""
    source = resolve_model(str(adapter / "base"))
    found = starting_model(source, load_config(source, Loading()), adapter)
    (adapter / "adapter/run.json").write_text(json.dumps({"model": "base", **found, **more}))
    change_json(adapter / "adapter/adapter_config.json", base_model_name_or_path="base")


def same_folder(path, folder):
    return os.path.realpath(path) == str(folder)


def other_model(folder):
    """A model of the same shape and other weights."""
    shutil.copytree(STARTER, folder, ignore=shutil.ignore_patterns("*.py"))
    change_a_byte(folder / "model.safetensors")


@pytest.mark.parametrize("cwd", [".", "elsewhere", "adapter"])
@pytest.mark.parametrize("recorded", [True, False])
def test_the_base_is_found_from_any_folder(adapter, monkeypatch, cwd, recorded):
    if recorded:
        record(adapter)
    else:
        change_json(adapter / "adapter/adapter_config.json", base_model_name_or_path="base")
    (adapter / "elsewhere").mkdir()
    monkeypatch.chdir(adapter / cwd)
    assert same_folder(find_base(str(adapter / "adapter")).path, adapter / "base")


def test_the_base_is_found_when_run_and_base_were_moved(adapter, monkeypatch, tmp_path_factory):
    record(adapter)
    moved = tmp_path_factory.mktemp("moved") / "all"
    shutil.move(adapter, moved)
    monkeypatch.chdir(moved / "adapter")
    assert same_folder(find_base(str(moved / "adapter")).path, moved / "base")


def test_a_base_of_the_same_name_is_not_taken(adapter, monkeypatch):
    """Neither the one in the folder that one stands in, nor one that took the place of the first."""
    record(adapter)
    other_model(adapter / "elsewhere/base")
    monkeypatch.chdir(adapter / "elsewhere")
    assert same_folder(find_base("../adapter").path, adapter / "base")
    shutil.move(adapter / "base", adapter / "kept")
    with pytest.raises(UsageError, match="is not the model that this adapter was trained on"):
        find_base("../adapter")
    shutil.move(adapter / "elsewhere/base", adapter / "base")
    with pytest.raises(UsageError, match="is not the model that this adapter was trained on"):
        find_base("../adapter")
    change_json(adapter / "adapter/adapter_config.json", base_model_name_or_path=str(adapter / "kept"))
    assert find_base("../adapter").path == str(adapter / "kept")


def test_without_a_record_two_different_bases_are_refused(adapter, monkeypatch):
    change_json(adapter / "adapter/adapter_config.json", base_model_name_or_path="base")
    other_model(adapter / "elsewhere/base")
    monkeypatch.chdir(adapter / "elsewhere")
    with pytest.raises(UsageError, match=r"may be .*elsewhere/base and .*, which differ"):
        find_base("../adapter")


def test_a_base_that_is_gone_is_one_line(adapter):
    record(adapter)
    shutil.rmtree(adapter / "base")
    with pytest.raises(UsageError, match=r"its base model base is not there; .*base_model_name_or_path"):
        find_base(str(adapter / "adapter"))


def test_a_base_on_the_hub_is_that_of_the_recorded_commit(adapter):
    commit = "0123456789" * 4
    record(adapter, model_sha256=f"commit {commit}", model_at=[])
    source = resolve_model(str(adapter / "adapter"))
    with pytest.raises(UsageError, match="is not the model"):  # a folder called as the Hub's model is
        whole_model(source, Loading())
    change_json(adapter / "adapter/adapter_config.json", base_model_name_or_path="someone/model")
    assert whole_model(source, Loading()) == ("someone/model", commit)
    with pytest.raises(UsageError, match=f"--revision v2: .* commit {commit}"):
        whole_model(source, Loading(revision="v2"))


def test_training_does_not_go_on_from_an_adapter(adapter):
    source = resolve_model(str(adapter / "adapter"))
    with pytest.raises(UsageError, match=r"export_model\.py"):
        starting_model(source, load_config(source, Loading()), adapter)
