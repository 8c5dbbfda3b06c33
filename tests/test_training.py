"""Real GRPO steps through TRL on the starter model: the gradient, the run's folder, resuming, and that it learns."""

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet
import pytest
from grpo_math.data.problems import sum_problems
from grpo_math.run_folder import FINAL, is_complete, last_complete_checkpoint, read_record
from grpo_math.training.callbacks import MetricsFile

from conftest import ROOT, STARTER, read_rows, script, write_jsonl

SMALL = [
    *("--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 2, "--num_generations", 4),
    *("--max_completion_length", 12, "--gradient_checkpointing", "false", "--reward_funcs", "accuracy", "format"),
    *("--report_to", "none", "--learning_rate", "1e-4"),
]


@pytest.fixture
def data(tmp_path):
    problems = sum_problems(300, -9, 9, seed=1)
    rows = [{"question": p.question, "answer": str(p.answer), "task": "arithmetic"} for p in problems]
    return write_jsonl(tmp_path / "train.jsonl", rows)


def train(cwd, *arguments, **kwargs):
    done = script(["train_grpo.py", STARTER, "--train_data", "train.jsonl", *SMALL, *arguments], cwd, **kwargs)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def losses(run):
    rows = read_rows(run / "metrics.jsonl")
    return {row["step"]: (row["grad_norm"], row["reward"]) for row in rows if "reward" in row}


def test_a_run_is_recorded_resumed_and_not_mixed_with_another(tmp_path, data):
    whole = ["--max_steps", 6, "--save_steps", 2, "--output_dir", "whole"]
    done = train(tmp_path, *whole)
    assert done.returncode == 0, done.stderr
    assert "4 questions x 4 completions = 16 completions a step, at most 192 tokens of them" in done.stdout
    run = tmp_path / "whole"
    assert is_complete(run / FINAL) and sorted(losses(run)) == [1, 2, 3, 4, 5, 6]
    record = read_record(run / FINAL)
    assert record["prompt"] == "answer_tag"
    assert {k: record["arguments"][k] for k in ("loss_type", "scale_rewards", "beta")} == {
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        "beta": 0.0,
    }

    # The same run, cut after step 4 as a kill in the middle of writing checkpoint 6 would leave it.
    (run / FINAL).rename(tmp_path / "elsewhere")
    (run / "checkpoint-6/complete").unlink()
    before = losses(run)
    again = train(tmp_path, *whole)
    assert again.returncode == 0, again.stderr
    assert "whole/checkpoint-6: was cut off while it was written; passed over" in again.stdout
    assert "continuing from whole/checkpoint-4, after step 4" in again.stdout
    after = losses(run)
    assert list(after) == [1, 2, 3, 4, 5, 6]
    for step, values in before.items():
        assert after[step] == pytest.approx(values, rel=1e-4, abs=1e-6), step

    finished = train(tmp_path, *whole, "--resume")
    assert finished.returncode == 0 and "this run is finished" in finished.stdout

    other = train(tmp_path, *whole, "--learning_rate", "1e-3", "--prompt", "hash")
    assert other.returncode == 2
    assert "learning_rate: 0.0001 -> 0.001; prompt: answer_tag -> hash" in other.stderr

    nothing = train(tmp_path, "--max_steps", 1, "--output_dir", "fresh", "--resume")
    assert nothing.returncode == 2 and "--resume: fresh holds no complete checkpoint" in nothing.stderr


def test_a_killed_run_on_real_gsm8k_goes_on_at_the_right_step_and_is_evaluated(tmp_path, gsm8k):
    assert script(["prepare_gsm8k.py", "--source", gsm8k], tmp_path).returncode == 0
    command = [sys.executable, ROOT / "train_grpo.py", STARTER, *SMALL, "--max_steps", 20, "--save_steps", 5]
    command += ["--output_dir", "run", "--max_completion_length", 24]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([str(part) for part in command], cwd=tmp_path, stdout=log, stderr=log)
        run = tmp_path / "run"
        deadline = time.time() + 200
        while last_complete_checkpoint(run)[0] is None and time.time() < deadline and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed_after = last_complete_checkpoint(run)[0]
    assert killed_after is not None and not (run / FINAL).exists(), (tmp_path / "log").read_text()
    done = script(command[1:], tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"continuing from run/{killed_after.name}" in done.stdout
    assert list(losses(run)) == list(range(1, 21))

    scored = script(["evaluate_gsm8k_no_vllm.py", "run", "--max_tokens", 24, "--batch_size", 250], tmp_path)
    assert scored.returncode == 0, scored.stderr
    rows = read_rows(tmp_path / "evals/run-checkpoint-final--gsm8k-eval.jsonl")
    assert len(rows) == 500 and "prompt style hash" in scored.stdout


def test_two_processes_make_one_run(tmp_path, data):
    launch = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "accelerate_configs/cpu.yaml"]
    launch += ["--num_processes", 2, "--num_machines", 1, "--machine_rank", 0, "--main_process_port", 0]
    command = [sys.executable, *launch, ROOT / "train_grpo.py", STARTER, "--train_data", "train.jsonl", *SMALL]
    command += ["--max_steps", 2, "--save_steps", 1, "--output_dir", "run", "--eval_size", 41, "--eval_steps", 2]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(c) for c in command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "8 questions x 4 completions = 32 completions a step" in done.stdout
    assert done.stdout.count("step 2/2") == 1
    run = tmp_path / "run"
    assert (
        (run / "checkpoint-1/rng_state_1.pth").exists()
        and is_complete(run / "checkpoint-2")
        and is_complete(run / FINAL)
    )
    assert list(losses(run)) == [1, 2]
    logged = read_rows(run / "metrics.jsonl")
    for row in (row for row in logged if "reward" in row):
        table = pyarrow.parquet.read_table(run / f"completions/completions_{row['step']:05d}.parquet").to_pylist()
        assert len(table) == 32
        for verdict, name in ((True, "right"), (False, "wrong")):
            tokens = [each["tokens"] for each in table if each["strict"] is verdict]
            mean = pytest.approx(sum(tokens) / len(tokens)) if tokens else None
            assert row.get(f"completions/mean_length_{name}") == mean, row["step"]

    # 41 held-out questions, which two processes do not share evenly: what the evaluator finds alone.
    measured = {row["step"]: row["eval_accuracy_lenient"] for row in logged if "eval_accuracy" in row}
    assert list(measured) == [0, 2] and done.stdout.count("of 41 held-out questions right") == 2
    scored = script(["evaluate_gsm8k_no_vllm.py", STARTER, "--data", "train.jsonl", "--max_tokens", 12], tmp_path)
    assert scored.returncode == 0, scored.stderr
    (evaluation,) = (tmp_path / "evals").glob("*.jsonl")
    verdicts = [each["lenient"] for each in sorted(read_rows(evaluation), key=lambda each: each["id"])[:41]]
    assert measured[0] == pytest.approx(sum(verdicts) / 41) and 0 < sum(verdicts) < 41


def test_it_learns(tmp_path):
    """Sampled accuracy must rise clearly within seconds: the whole chain, with nothing replaced."""
    problems = sum_problems(600, -99, 99, seed=5)
    rows = [{"question": p.question, "answer": str(p.answer), "task": "arithmetic"} for p in problems]
    write_jsonl(tmp_path / "train.jsonl", rows)
    recipe = ROOT / "recipes/starter_arithmetic.yaml"
    done = script(
        [
            *("train_grpo.py", STARTER, "--config", recipe, "--train_data", "train.jsonl", "--output_dir", "run"),
            *("--max_steps", 12, "--report_to", "none"),
        ],
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rewards = [row["rewards/accuracy/mean"] for row in read_rows(tmp_path / "run/metrics.jsonl") if "reward" in row]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1, rewards


@pytest.mark.parametrize(("step", "kept"), [(2, [0, 1, 2]), (0, [])])
def test_metrics_of_steps_to_be_made_again_are_dropped(tmp_path, step, kept):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (0, 1, 2, 3)) + '{"step": 4, "re')
    state = type("State", (), {"is_world_process_zero": True, "global_step": step})
    MetricsFile(tmp_path).on_train_begin(None, state, None)
    assert [row["step"] for row in read_rows(path)] == kept
