"""The evaluators' shared path: prompts, files, resuming, refusals, and the numbers."""

import json
import math
from itertools import pairwise

import pytest
from grpo_math.data.problems import sum_problems
from grpo_math.data.prompts import STYLES, Asking, build_prompt
from grpo_math.evaluation.results import ResultsFile, summarize
from grpo_math.terminal import printable
from transformers import AutoTokenizer

from conftest import STARTER, kill_after, read_rows, script, write_jsonl

QUESTIONS = 120


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    problems = sum_problems(QUESTIONS, -99, 99, seed=11)
    rows = [{"question": p.question, "answer": str(p.answer), "task": "arithmetic"} for p in problems]
    return write_jsonl(tmp_path_factory.mktemp("data") / "sums/test.jsonl", rows)


def command(data, *more):
    return ["evaluate_gsm8k_no_vllm.py", STARTER, "--data", data, "--max_tokens", 12, "--batch_size", 20, *more]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """An uninterrupted evaluation with two sampled completions per question."""
    folder = tmp_path_factory.mktemp("finished")
    done = script(command(data, "--n", 2, "--temperature", 1, "--name", "e"), folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_rows_settings_and_analysis(finished):
    folder, done = finished
    rows = read_rows(folder / "evals/e.jsonl")
    assert [row["sample"] for row in rows] == [0, 1] * QUESTIONS
    assert list(rows[0]) == [
        *("id", "sample", "question", "gold", "prompt", "completion", "extracted", "rule"),
        *("strict", "lenient", "failed", "tokens", "finish_reason"),
    ]
    assert rows[0]["prompt"].count("<|im_start|>") == 3
    assert all(row["lenient"] or not row["strict"] for row in rows)
    info = json.loads((folder / "evals/e.json").read_text())
    assert info["settings"]["temperature"] == 1.0 and info["settings"]["prompt"] == "answer_tag"
    assert info["results"]["strict"]["accuracy"] == sum(row["strict"] for row in rows) / len(rows)
    assert f"{QUESTIONS} questions x 2 completions" in done.stdout and "pass@2" in done.stdout
    assert "How the answer was found" in (folder / "evals/e_analysis.txt").read_text()


def test_killed_at_any_point_it_ends_with_the_same_rows(finished, data, tmp_path):
    """Killed after each of five batches, and with a row torn in the middle, the file equals the uninterrupted one."""
    whole = (finished[0] / "evals/e.jsonl").read_bytes()
    sampled = command(data, "--n", 2, "--temperature", 1, "--name", "e")
    path = tmp_path / "evals/e.jsonl"
    for batches in (1, 3, 5, 8, 10):
        kill_after(sampled, tmp_path, path, 20 * batches)
        with path.open("ab") as file:
            file.write(b'{"id": "torn')
    done = script(sampled, tmp_path)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == whole


def test_finished_evaluation_is_not_run_again(finished, data):
    done = script(command(data, "--n", 2, "--temperature", 1, "--name", "e"), finished[0])
    assert done.returncode == 0 and "finished already" in done.stdout and "strict" in done.stdout


def test_other_settings_are_refused(finished, data):
    before = (finished[0] / "evals/e.jsonl").read_bytes()
    done = script(command(data, "--n", 2, "--temperature", 0.5, "--seed", 3, "--name", "e"), finished[0])
    assert done.returncode == 2
    assert "holds an evaluation of other settings (seed: 0 -> 3; temperature: 1.0 -> 0.5)" in done.stderr
    assert (finished[0] / "evals/e.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nowhere"], "./nowhere: no such folder"),
        (["nobody/nothing"], "nobody/nothing: this model cannot be loaded (there is no such folder here"),
        ([STARTER, "--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        ([STARTER, "--n", "2"], "--n 2: greedy completions are all the same"),
        ([STARTER, "--n", "0"], "--n 0: must be at least 1"),
        ([STARTER, "--temperature", "nan"], "--temperature nan: must be at least 0"),
        ([STARTER, "--top_p", "0"], "--top_p 0.0: must lie above 0"),
        ([STARTER, "--num_samples", "0"], "--num_samples 0"),
        ([STARTER, "--prompt", "shout"], "unknown prompt style 'shout'"),
        ([STARTER, "--task", "chess"], "unknown task 'chess'"),
        ([STARTER, "--max_tokens", "5000"], "lower it to "),
        ([STARTER, "--name", "a/b"], "--name a/b"),
        ([STARTER, "--output_dir", "data/gsm8k/eval.jsonl"], "could not be written"),
    ],
    ids=lambda value: "_".join(map(str, value))[-30:] if isinstance(value, list) else None,
)
def test_evaluate_refuses(tmp_path, arguments, message):
    write_jsonl(tmp_path / "data/gsm8k/eval.jsonl", [{"question": "What is 1 plus 1?", "answer": 2}])
    done = script(["evaluate_gsm8k_no_vllm.py", *arguments], tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "evals").exists()


@pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))
@pytest.mark.parametrize("chat", [True, False])
def test_prompts_are_tokenized_as_trl_does(style, chat):
    from trl import GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    prompts = [build_prompt(style, question, chat) for question in ("What is 4 plus 5?", "Añadir ½ to 3 — 數!")]
    trainer = type(
        "Trainer", (), {"processing_class": tokenizer, "tools": None, "chat_template": None, "_is_vlm": False}
    )
    trainer.environment_factories, trainer.chat_template_kwargs = None, {}
    assert Asking(style).token_ids(prompts, tokenizer) == GRPOTrainer._tokenize_prompts(trainer, prompts)[0]


def test_a_base_model_gets_plain_text_and_is_cut_where_it_invents_a_question(data, tmp_path):
    import shutil

    shutil.copytree(STARTER, tmp_path / "base", ignore=shutil.ignore_patterns("*.py", "chat_template*"))
    done = script(
        ["evaluate_gsm8k_no_vllm.py", "base", "--data", data, "--max_tokens", 40, "--num_samples", 8, "--name", "b"],
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "evals/b.jsonl")
    assert all(row["prompt"].endswith("\nAnswer:") for row in rows)
    assert not any("\nQuestion:" in row["completion"].removesuffix("\nQuestion:") for row in rows)


def row(question, sample, strict, lenient, answer="1", **more):
    base = {"id": question, "sample": sample, "strict": strict, "lenient": lenient, "extracted": answer, "rule": "hash"}
    return base | {"failed": False, "finish_reason": "stop", "tokens": 5} | more


def test_summary_of_several_samples_against_counting_by_hand():
    rows = [row("a", i, i < 2, i < 3, answer="7" if i < 3 else "8") for i in range(4)]
    rows += [row("b", i, False, i == 0, answer="7" if i == 0 else "9") for i in range(4)]
    summary = summarize(rows)
    assert summary["strict"]["accuracy"] == 2 / 8 and summary["lenient"]["accuracy"] == 4 / 8
    # pass@2 of the strict verdicts: 1 - C(2,2)/C(4,2) for a, 0 for b.
    assert summary["strict"]["pass@k"]["2"] == pytest.approx((1 - 1 / math.comb(4, 2)) / 2)
    assert summary["lenient"]["majority@4"] == 0.5
    assert summary["lenient"]["scorecard"] == {"above_half": 0.5, "all": 0.0}
    assert summary["strict"]["scorecard"] == {"above_half": 0.0, "all": 0.0}


def test_resume_keeps_whole_batches_only(tmp_path):
    for keep in range(8):
        path = tmp_path / f"{keep}.jsonl"
        file = ResultsFile(path, {"a": 1}, {})
        file.append([row(str(i), 0, True, True) for i in range(keep)])
        with path.open("ab") as raw:
            raw.write(b'{"torn')
        done = file.resume([3, 3, 1])
        assert done == (0 if keep < 3 else 1 if keep < 6 else 2 if keep < 7 else 3)
        assert path.read_bytes().count(b"\n") == sum([3, 3, 1][:done]) and b"torn" not in path.read_bytes()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred", "ared"),
        ("bell\x07", "bell"),
        ("two\nlines\t.", "two\nlines\t."),
        ("\x9b2J", ""),
        ("a\u202eb\ud800", "ab"),
        ("a\rb", "a b"),
    ],
)
def test_model_text_cannot_steer_a_terminal(text, shown):
    assert printable(text) == shown


def test_batches_begin_with_the_longest_prompts(data, tmp_path):
    """So that memory runs out in the first batch or never."""
    done = script(command(data, "--name", "l"), tmp_path)
    assert done.returncode == 0
    counts = [int(line.split("/")[0]) for line in done.stdout.splitlines() if "questions  strict" in line]
    assert counts == list(range(20, QUESTIONS + 1, 20)) and all(a < b for a, b in pairwise(counts))
