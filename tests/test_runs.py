"""Run folders: which checkpoints count, which model is meant, and which runs may be continued."""

import pytest
from grpo_math.errors import UsageError
from grpo_math.launch.resume import differences
from grpo_math.models.source import resolve_model
from grpo_math.run_folder import (
    COMPLETE,
    FINAL,
    checkpoints,
    last_complete_checkpoint,
    mark_complete,
    read_record,
)


def make_checkpoint(run, name, complete=True, record=None):
    folder = run / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    if complete:
        mark_complete(folder, record or {"prompt": "hash"})
    return folder


def test_checkpoints_are_ordered_by_step_and_nothing_else_counts(tmp_path):
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-3x", "checkpoint-"):
        make_checkpoint(tmp_path, name)
    (tmp_path / "checkpoint-7").write_text("a file")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-100"]


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path):
    whole = make_checkpoint(tmp_path, "checkpoint-5")
    torn = make_checkpoint(tmp_path, "checkpoint-10", complete=False)
    assert last_complete_checkpoint(tmp_path) == (whole, [torn])
    assert torn.exists()


def test_no_complete_checkpoint(tmp_path):
    assert last_complete_checkpoint(tmp_path) == (None, [])
    torn = make_checkpoint(tmp_path, "checkpoint-10", complete=False)
    assert last_complete_checkpoint(tmp_path) == (None, [torn])


def test_resolve_model(tmp_path):
    run = tmp_path / "my_run"
    five = make_checkpoint(run, "checkpoint-5", record={"prompt": "answer_tag"})
    make_checkpoint(run, "checkpoint-10", complete=False)
    found = resolve_model(str(run))
    assert (found.path, found.name, found.record) == (str(five), "my_run-checkpoint-5", {"prompt": "answer_tag"})
    final = make_checkpoint(run, FINAL)
    assert resolve_model(str(run)).path == str(final)
    assert resolve_model(str(five)).name == "my_run-checkpoint-5"
    assert resolve_model("Qwen/Qwen2.5-0.5B-Instruct").name == "Qwen2.5-0.5B-Instruct"
    assert resolve_model("gpt2").path == "gpt2"
    assert resolve_model("not a name/of the Hub").record is None


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere", "a/b/c", "~/nowhere-at-all", ""])
def test_resolve_model_of_a_path_that_is_not_there(model):
    with pytest.raises(UsageError, match=r"no such folder|holds neither"):
        resolve_model(model)


def test_resolve_model_of_a_folder_without_one(tmp_path):
    with pytest.raises(UsageError, match="holds neither a model"):
        resolve_model(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        resolve_model(str(tmp_path / "file"))


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UsageError, match=r"run\.json: cannot be read"):
        read_record(tmp_path)


def test_differences_name_what_changes_the_run_and_nothing_else():
    arguments = {"seed": 1, "learning_rate": 1e-6, "save_steps": 5, "max_steps": 7, "lr_scheduler_type": "constant"}
    old = {"prompt": "hash", "versions": {"trl": "1"}, "arguments": arguments}
    new = {**old, "versions": {"trl": "2"}, "arguments": {**arguments, "seed": 2, "save_steps": 9, "max_steps": 8}}
    assert differences(old, new) == ["seed: 1 -> 2"]
    for record in (old, new):
        record["arguments"]["lr_scheduler_type"] = "linear"
    assert differences(old, new) == ["max_steps: 7 -> 8", "seed: 1 -> 2"]
    assert differences(old, {**old, "prompt": "boxed"}) == ["prompt: hash -> boxed"]


def test_the_marker_is_written_last(tmp_path, monkeypatch):
    folder = make_checkpoint(tmp_path, "checkpoint-1", complete=False)
    monkeypatch.setattr("grpo_math.run_folder.write_record", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        mark_complete(folder, {})
    assert not (folder / COMPLETE).exists()
