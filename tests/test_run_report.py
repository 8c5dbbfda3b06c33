"""Curves and report of a run, up to the bytes of the page; test_run_report_browser.py opens it."""

import base64
import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from grpo_math.data.rows import fingerprint
from grpo_math.errors import UsageError
from grpo_math.models.digest import folder_digest
from grpo_math.publish.curves import (
    Accuracy,
    Run,
    add_evaluation,
    add_throughput,
    draw,
    name_apart,
    read_run,
    render,
    smooth,
)
from grpo_math.publish.run_report import completions_table, embedded, write_report

from conftest import script, write_jsonl


def metrics(steps, **more):
    parts = {"rewards/accuracy/mean": 0.2, "rewards/format/mean": 0.6}
    return [{"step": s, "reward": 0.1 * s, **parts, "entropy": 1.0, **more} for s in range(1, steps + 1)]


def save_completions(folder, step, rows):
    (folder / "completions").mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"completions/completions_{step:05d}.parquet")


def completion(text="#### 5", **more):
    return {"step": 1, "prompt": "What is 2 + 3?", "completion": text, "accuracy": 1.0, "length": -1.0, **more}


def titles(runs):
    return [axis.get_title() for axis in draw(runs).axes if axis.get_visible()]


def test_panels_are_those_that_a_run_has():
    few = Run("few", metrics(3))
    assert titles([few]) == ["Reward", "Reward by part", "Entropy, nats per token"]
    kl = Run("kl", metrics(3, kl=0.1), [Accuracy(3, 0.5, 0.4, 0.6)])
    assert titles([few, kl]) == [
        *("Reward", "Reward by part", "Held-out accuracy, 95% interval", "Entropy, nats per token"),
        "KL to the reference, nats per token",
    ]


def test_lines_are_told_apart_and_the_values_are_the_logged_ones():
    lengths = {"completions/mean_length_right": 5.0, "completions/mean_length_wrong": 9.0}
    alone = draw([Run("a $x$", metrics(2, **lengths))]).axes
    assert [text.get_text() for text in alone[1].get_legend().get_texts()] == ["accuracy", "format"]
    assert [text.get_text() for text in alone[2].get_legend().get_texts()] == ["right", "wrong"]
    assert [list(line.get_ydata()) for line in alone[2].get_lines()] == [[5.0, 5.0]] * 2 + [[9.0, 9.0]] * 2
    both = draw([Run("a", metrics(2)), Run("b", metrics(4))]).axes
    labels = ["a accuracy", "a format", "b accuracy", "b format"]
    assert [text.get_text() for text in both[1].get_legend().get_texts()] == labels
    assert [len(line.get_xdata()) for line in both[0].get_lines()] == [2, 2, 4, 4]


def test_a_metric_has_one_style_whichever_a_run_logged_first():
    right, wrong = "completions/mean_length_right", "completions/mean_length_wrong"
    first, other = Run("a", metrics(2, **{right: 5.0, wrong: 9.0})), Run("b", metrics(2, **{wrong: 9.0, right: 5.0}))
    lines = [line for line in draw([first, other]).axes[2].get_lines() if not line.get_label().startswith("_")]
    assert [(line.get_label(), line.get_linestyle()) for line in lines] == [
        *(("a right", "-"), ("a wrong", "--")),
        *(("b right", "-"), ("b wrong", "--")),
    ]


def test_a_metric_that_some_steps_lack_is_drawn_where_it_is():
    rows = metrics(3)
    rows[1]["completions/mean_length_right"] = 7.0
    rows[2]["completions/mean_length_right"] = None
    axis = draw([Run("r", rows)]).axes[2]
    assert list(axis.get_lines()[0].get_xdata()) == [2]


def test_throughput_is_new_tokens_over_the_time_of_their_steps():
    rows = [
        {"step": 1, "num_tokens": 100.0, "step_time": 2.0},
        {"step": 5, "num_tokens": 900.0, "step_time": 4.0},  # logged every fourth step
        {"step": 6, "num_tokens": 950.0},
        {"step": 7, "num_tokens": 990.0, "step_time": 0.5},
    ]
    add_throughput(rows)
    assert [row.get("tokens_per_second") for row in rows] == [50.0, 50.0, None, 80.0]


def save_model(folder, weights, **more):
    folder.mkdir(parents=True)
    for name, content in {"model.safetensors": weights, "config.json": "{}", "complete": "", **more}.items():
        (folder / name).write_text(content)
    return folder


def save_evaluation(path, model, accuracy, /, data="test.jsonl", **settings):
    """An evaluation's two files, as the evaluators leave them, of the model in a folder."""
    result = {"accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1}
    results = {"strict": result, "lenient": result, "questions": 4, "samples_per_question": 1, "truncated": 0.0}
    known = {"model": str(model), "data": data, "data_sha256": "0", "temperature": 0.0, "max_tokens": 16}
    known |= {"model_sha256": folder_digest(model)} if Path(model).is_dir() else {}
    path.write_text(json.dumps({"settings": known | settings, "results": results}))
    write_jsonl(path.with_suffix(".jsonl"), [{"question": f"What is {i} + {i}?"} for i in range(4)])
    return path


@pytest.fixture
def run_folder(tmp_path):
    """A run of four steps with two checkpoints on a base model, and its training data of eight questions."""
    folder, base = tmp_path / "outputs/run", save_model(tmp_path / "base", "0")
    for name, weights in {"checkpoint-3": "3", "checkpoint-final": "4"}.items():
        save_model(folder / name, weights)
    data = write_jsonl(tmp_path / "train.jsonl", [{"question": f"What is {i} + {i}?"} for i in range(3, 11)])
    train = {"path": str(data), "rows": 8, "sha256": fingerprint(data)}
    held_out = {"path": "eval.jsonl", "questions": 2, "sha256": "1"}
    record = {"model": str(base), "train_data": train, "eval_data": held_out, "arguments": {}}
    (folder / "run.json").write_text(json.dumps(record))
    measured = {"step": 2, "eval_accuracy": 0.5, "eval_accuracy_low": 0.4, "eval_accuracy_high": 0.6}
    write_jsonl(folder / "metrics.jsonl", [*metrics(2), measured, *metrics(4)[2:]])
    return folder


def test_accuracies_of_a_run_are_told_by_the_models_files(tmp_path, run_folder):
    moved = tmp_path / "elsewhere/x"
    moved.parent.mkdir()
    shutil.copytree(run_folder / "checkpoint-3", moved)  # the same model under another name
    other = save_model(tmp_path / "other/run/checkpoint-final", "another run of this name")
    changed = save_model(tmp_path / "other/base", "another base of this name")
    run = read_run(run_folder)
    models = {tmp_path / "base": 0.1, moved: 0.7, run_folder / "checkpoint-final": 0.9, other: 0.2, changed: 0.3}
    said = {}
    for model, accuracy in models.items():
        _, place = add_evaluation(run, run_folder, save_evaluation(tmp_path / "e.json", model, accuracy))
        said[model] = place.words
    assert [(each.step, each.value) for each in run.accuracies] == [(0, 0.1), (2, 0.5), (3, 0.7), (4, 0.9)]
    assert [row["step"] for row in run.rows] == [1, 2, 3, 4] and run.accuracies[1].data == "2 of eval.jsonl"
    assert said[other] == said[changed] == "not a model of this run" and said[moved] == "step 3 of this run"


def test_what_is_not_drawn_is_said(tmp_path, run_folder):
    other = save_model(tmp_path / "other/run/checkpoint-final", "another run of this name")
    evaluation = save_evaluation(tmp_path / "e.json", other, 0.2)
    done = script(["plot_training.py", run_folder, "--evals", evaluation], tmp_path)
    assert done.returncode == 0 and "not a model of this run by its files, and not on the curve" in done.stderr


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        ({"model": "outputs/run/checkpoint-final"}, None),  # its weights are others today
        ({"model": "outputs/run/checkpoint-1"}, 1),  # deleted by --save_total_limit
        ({"model": "run/checkpoint-1"}, None),
        ({"model_sha256": "of the run"}, 3),
        ({"model_sha256": "of the run", "base_sha256": "another base"}, None),
    ],
)
def test_models_that_only_their_path_or_base_tells_apart(tmp_path, run_folder, monkeypatch, settings, step):
    monkeypatch.chdir(tmp_path)
    record = json.loads((run_folder / "run.json").read_text()) | {"model_sha256": "the base"}
    (run_folder / "run.json").write_text(json.dumps(record))
    if settings.get("model_sha256"):
        settings = settings | {"model_sha256": folder_digest(run_folder / "checkpoint-3")}
    evaluation = save_evaluation(tmp_path / "e.json", "nowhere", 0.5, **settings)
    assert add_evaluation(read_run(run_folder), run_folder, evaluation)[1].step == step


@pytest.mark.parametrize(
    ("data", "words"),
    [("train.jsonl", "train.jsonl (training data)"), ("some.jsonl", "some.jsonl (25.0% in training data)")],
)
def test_training_data_is_never_called_held_out(tmp_path, run_folder, data, words):
    digest = fingerprint(tmp_path / data) if data == "train.jsonl" else "2"
    evaluation = save_evaluation(tmp_path / "e.json", tmp_path / "base", 0.5, data=data, data_sha256=digest)
    run = read_run(run_folder)
    held_out = titles([run])
    added = add_evaluation(run, run_folder, evaluation)
    assert run.accuracies[0].data == words
    assert "Accuracy, 95% interval" in titles([run]) and "Held-out accuracy, 95% interval" in held_out
    page = write_report(run_folder, run, [added], 10).read_text()
    assert f'<td data-label="data">{words}</td>' in page and "what this run began with" in page
    assert "held-out" not in page.lower()


def test_a_step_that_is_no_number_takes_its_neighbours_not_with_it(tmp_path):
    values = [1.0, 2.0, math.nan, 4.0, math.inf, 6.0]
    assert [math.isfinite(mean) for mean in smooth(values)] == [True, True, False, True, False, True]
    assert smooth(values)[0] == (1.0 + 2.0 + 4.0) / 3
    render(draw([Run("r", [{"step": i, "reward": value} for i, value in enumerate(values)])]), "svg")


@pytest.mark.parametrize("columns", [1, 3])
def test_many_rewards_leave_their_panel_free(columns):
    names = {f"rewards/a_reward_of_my_own_{i}/mean": i / 14 for i in range(14)}
    figure = draw([Run("r", [{"step": step, "reward": 1.0, **names} for step in (1, 2)])], columns)
    figure.draw_without_rendering()
    panel = figure.axes[1]
    legend, area = panel.get_legend().get_window_extent(), panel.get_window_extent()
    assert not legend.overlaps(area) and area.height > 200 and area.width > 250
    looks = {(line.get_color(), line.get_linestyle()) for line in panel.get_lines() if line.get_alpha() is None}
    assert len(looks) == 14


def test_a_metric_that_is_a_text_is_named(tmp_path):
    write_jsonl(tmp_path / "metrics.jsonl", [*metrics(1), {"step": 2, "reward": "high"}])
    with pytest.raises(UsageError, match=r"metrics\.jsonl, line 2: reward is 'high', expected a number"):
        read_run(tmp_path)


def test_what_a_reward_logs_beside_itself_is_no_reward(tmp_path):
    save_completions(tmp_path, 1, [completion(note="a text", depth=3.0, advantage=0.5)])
    record = {"reward_funcs": ["accuracy", "length"], "arguments": {"reward_weights": [1.0, 0.5]}}
    table, _ = completions_table(tmp_path, record, 10)
    assert table["names"] == ["accuracy", "length"] and table["reward"] == [0.5]


@pytest.mark.parametrize("column", ["extracted", "answer"])
def test_answers_are_read_under_both_names_of_their_column(tmp_path, column):
    save_completions(tmp_path, 1, [completion(**{column: "5", "strict": True})])
    table, _ = completions_table(tmp_path, {}, 10)
    assert table["answer"] == ["5"] and table["names"] == ["accuracy", "length"]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"results": null, "settings": {"model": "m"}}'])
def test_an_evaluation_that_cannot_be_used_is_named(tmp_path, content):
    if content:
        (tmp_path / "e.json").write_text(content)
    with pytest.raises(UsageError, match=r"--evals .*e\.json: "):
        add_evaluation(Run("r", metrics(1)), tmp_path, tmp_path / "e.json")


def test_runs_of_one_name_are_called_by_their_paths(tmp_path):
    folders = [tmp_path / "a/run", tmp_path / "b/run", tmp_path / "c"]
    runs = [Run(folder.name, metrics(1)) for folder in folders]
    name_apart(runs, folders)
    assert [run.name for run in runs] == [str(folders[0]), str(folders[1]), "c"]


def test_the_same_run_gives_the_same_bytes():
    for form, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        first, second = (render(draw([Run("r", metrics(3))]), form) for _ in range(2))
        assert first == second and first.startswith(start)


def test_embedded_json_ends_no_element_and_comes_back_whole():
    value = {"text": "</script><!--<script> & \u2028\u2029 é ]]>", "n": [1, None, 0.5]}
    text = embedded(value)
    assert not re.search(r"[<>&\u2028\u2029]|[^\x00-\x7f]", text)
    assert json.loads(text) == value


def test_rewards_are_weighted_as_in_the_run(tmp_path):
    save_completions(tmp_path, 1, [completion(), completion(accuracy=float("nan"))])
    table, note = completions_table(tmp_path, {"arguments": {"reward_weights": [1.0, 0.5]}}, 10)
    assert table["names"] == ["accuracy", "length"] and table["reward"] == [0.5, -0.5]
    assert table["parts"][1] == [None, -1.0]
    assert note == "2 of 2 completions from 1 of 1 saved steps."
    assert "without weights" in completions_table(tmp_path, None, 10)[1]


def test_completions_are_taken_evenly_and_broken_files_are_named(tmp_path):
    for step in range(1, 11):
        save_completions(tmp_path, step, [completion(f"{step}-{i}") for i in range(8)])
    table, note = completions_table(tmp_path, {}, 30)
    assert table["completion"][:4] == ["1-0", "1-1", "1-2", "2-0"] and len(table["completion"]) == 30
    assert note == "30 of 80 completions from 10 of 10 saved steps, the first of each step."
    (tmp_path / "completions/completions_00003.parquet").write_bytes(b"PAR1 cut off")
    table, note = completions_table(tmp_path, {}, 4)
    assert table["completion"] == ["1-0", "4-0", "7-0", "10-0"] and "not be read" not in note
    assert "1 files could not be read" in completions_table(tmp_path, {}, 80)[1]


def test_a_page_loads_nothing_and_knows_its_one_script(tmp_path):
    save_completions(tmp_path, 1, [completion("{{SCRIPT}} </script><script>alert(1)</script>")])
    (tmp_path / "run.json").write_text(json.dumps({"task": "<b>{{DATA}}", "arguments": {"seed": 1}}))
    page = write_report(tmp_path, Run("<i>run", metrics(2)), {}, 10).read_text()
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert [attributes for attributes, _ in scripts] == [' id="data" type="application/json"', ""]
    assert json.loads(scripts[0][1])["completion"] == ["{{SCRIPT}} </script><script>alert(1)</script>"]
    digest = base64.b64encode(hashlib.sha256(scripts[1][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert re.findall(r'(?:src|href)="([^",]*)', page) == ["data:image/svg+xml;base64"]
    assert "&lt;i&gt;run" in page and "&lt;b&gt;{{DATA}}" in page and "<i>" not in page


def test_the_script_as_a_user_runs_it(tmp_path):
    for name in ("a", "b"):
        write_jsonl(tmp_path / name / "metrics.jsonl", metrics(3))
    done = script(["plot_training.py", "a", "b", "--output", "ab.png"], tmp_path)
    assert done.returncode == 0 and done.stdout.split() == ["ab.png"], done.stderr
    assert (tmp_path / "ab.png").read_bytes().startswith(b"\x89PNG")
    done = script(["plot_training.py", "a"], tmp_path)
    assert done.returncode == 0 and done.stdout.split() == ["a/training.png", "a/report.html"], done.stderr
    page = (tmp_path / "a/report.html").read_text()
    assert "none were saved" in page and "has no run.json" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere/metrics.jsonl: no such file"),
        (["a", "a", "--evals", "e.json"], "--evals: takes one RUN"),
        (["a", "--evals", "e.json"], "--evals e.json: No such file"),
        (["a", "--completions", "-1"], "--completions -1: must be 0 or more"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line(tmp_path, arguments, words):
    write_jsonl(tmp_path / "a/metrics.jsonl", metrics(1))
    done = script(["plot_training.py", *arguments], tmp_path)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "a/report.html").exists()
