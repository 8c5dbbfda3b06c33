"""The evaluators' shared path: prompts, files, resuming, refusals, and the numbers."""

import json
import math
import re
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
from grpo_math.data.problems import sum_problems
from grpo_math.data.prompts import Asking, build_prompt
from grpo_math.data.styles import STYLES
from grpo_math.errors import UsageError
from grpo_math.evaluation.evaluate import evaluate
from grpo_math.evaluation.identity import DIGESTS, tokenizer_digest, unrecorded
from grpo_math.evaluation.options import argument_parser
from grpo_math.evaluation.progress import Live
from grpo_math.evaluation.results import ResultsFile, read_graded, summarize
from grpo_math.generation.transformers_backend import TransformersBackend
from grpo_math.terminal import printable
from transformers import AutoTokenizer

from conftest import STARTER, kill_after, read_rows, script, write_jsonl
from terminal import Terminal

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


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_text(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def change_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap_two_tokens(path):
    """Two words change places in the vocabulary, so the same ids are other text."""
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = [token for token in vocabulary if token.isdigit()][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer))


def evaluate_here(folder, *more):
    """The evaluator in this process, on the adapter in `folder` and the data beside it."""
    shared = ["--max_tokens", 4, "--n", 2, "--temperature", 1, "--output_dir", folder / "evals", "--name", "e"]
    words = [folder / "adapter", "--data", folder / "test.jsonl", *shared, *more]
    evaluate(argument_parser("").parse_args(list(map(str, words))), TransformersBackend)


def recorded(folder):
    return json.loads((folder / "evals/e.json").read_text())["settings"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A folder with a base model, an adapter on it, four questions, and their evaluation."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(STARTER, folder / "base", ignore=shutil.ignore_patterns("*.py"))
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder / "adapter")
    write_jsonl(
        folder / "test.jsonl",
        [{"question": f"What is {i} plus 4?", "answer": str(i + 4), "task": "arithmetic"} for i in range(4)],
    )
    evaluate_here(folder)
    return folder


@pytest.fixture
def copy(evaluated, tmp_path):
    """That folder, to be changed."""
    folder = tmp_path / "copy"
    shutil.copytree(evaluated, folder)
    change_json(folder / "adapter/adapter_config.json", base_model_name_or_path=str(folder / "base"))
    return folder


FILES = {
    "weights of the base": ("base/model.safetensors", change_a_byte),
    "configuration of the base": ("base/config.json", lambda path: change_json(path, rms_norm_eps=1e-3)),
    "end token": ("base/generation_config.json", lambda path: change_json(path, eos_token_id=5)),
    "adapter": ("adapter/adapter_model.safetensors", change_a_byte),
    "configuration of the adapter": ("adapter/adapter_config.json", lambda path: change_json(path, lora_alpha=3)),
    "chat template": ("base/chat_template.jinja", lambda path: change_text(path, "assistant", "user")),
    "tokenizer": ("base/tokenizer.json", swap_two_tokens),
    "a right answer": ("test.jsonl", lambda path: change_text(path, '"7"', '"8"')),
    "a question": ("test.jsonl", lambda path: change_text(path, "What is 3", "What  is 3")),
}
FLAGS = {
    "n": (3, "n: 2 -> 3"),
    "temperature": (0.5, "temperature: 1.0 -> 0.5"),
    "top_p": (0.5, "top_p: 1.0 -> 0.5"),
    "top_k": (5, "top_k: 0 -> 5"),
    "max_tokens": (5, "max_tokens: 4 -> 5"),
    "seed": (1, "seed: 0 -> 1"),
    "batch_size": (2, "batch_size: 256 -> 2"),
    "dtype": ("bfloat16", "dtype: float32 -> bfloat16"),
    "num_samples": (3, "questions: 4 -> 3"),
    "prompt": ("boxed", "prompt: answer_tag -> boxed"),
    "task": ("custom", "task: ['arithmetic'] -> ['custom']"),
    "chat_template_kwargs": ('{"enable_thinking": false}', "chat_template_kwargs: {} -> {'enable_thinking': False}"),
}


@pytest.mark.parametrize(
    ("name", "complete"),
    [*((name, True) for name in FILES), ("chat template", False), ("weights of the base", False)],
)
def test_an_evaluation_of_other_files_is_refused(copy, name, complete):
    if not complete:
        change_json(copy / "evals/e.json", results=None)
    path, change = FILES[name]
    change(copy / path)
    before = (copy / "evals/e.jsonl").read_bytes()
    with pytest.raises(UsageError, match=r"e\.jsonl: holds an evaluation of other settings \(.*_sha256: .* -> "):
        evaluate_here(copy)
    assert (copy / "evals/e.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", FLAGS)
def test_an_evaluation_with_another_flag_is_refused(copy, name):
    value, said = FLAGS[name]
    with pytest.raises(UsageError) as refused:
        evaluate_here(copy, f"--{name}", value)
    assert said in str(refused.value) and "give another --name" in str(refused.value)


def test_an_evaluation_with_another_system_prompt_or_mark_is_refused(copy, monkeypatch):
    style = STYLES["answer_tag"]
    for other in (replace(style, system="Answer at once."), replace(style, mark="boxed")):
        monkeypatch.setitem(STYLES, "answer_tag", other)
        with pytest.raises(UsageError, match="other settings"):
            evaluate_here(copy)


def test_the_same_evaluation_is_known_whatever_its_files_are_called(copy, monkeypatch, capsys):
    shutil.move(copy / "test.jsonl", copy / "renamed.jsonl")
    shutil.move(copy / "adapter", copy / "moved")
    monkeypatch.chdir(copy)
    words = [
        "./moved",
        "--data",
        "./renamed.jsonl",
        "--max_tokens",
        "4",
        "--n",
        "2",
        "--temperature",
        "1",
        "--name",
        "e",
    ]
    evaluate(argument_parser("").parse_args(words), TransformersBackend)
    assert "finished already" in capsys.readouterr().out


def test_an_evaluation_of_an_earlier_version_is_refused_and_compared(copy):
    """One whose record lacks a digest, and whose rows say `answer`."""
    for missing in DIGESTS:
        settings = recorded(copy)
        del settings[missing]
        assert unrecorded(settings, recorded(copy)) == [missing]
    change_json(copy / "evals/e.json", settings=settings)
    rows = [row for _, row in read_graded(copy / "evals/e.jsonl")]
    for row in rows:
        row["answer"] = row.pop("extracted")
    write_jsonl(copy / "evals/e.jsonl", rows)
    with pytest.raises(UsageError, match=f"earlier version, which did not record {missing}: give another --name"):
        evaluate_here(copy)
    assert summarize([row for _, row in read_graded(copy / "evals/e.jsonl")])["questions"] == 4
    shutil.copy(copy / "evals/e.jsonl", copy / "evals/f.jsonl")
    done = script(["compare_evaluations.py", "evals/e.jsonl", "evals/f.jsonl"], copy)
    assert done.returncode == 0 and "not significantly different" in done.stdout


def test_rows_that_are_gone_are_not_called_finished(copy):
    (copy / "evals/e.jsonl").unlink()
    with pytest.raises(UsageError, match=r"e\.jsonl: is gone, and e\.json says that it is complete"):
        evaluate_here(copy)


def test_arguments_of_the_chat_template_reach_the_prompts(copy):
    """Those of the flag, else those that the model was trained with; what cannot be obeyed is refused."""
    template = copy / "base/chat_template.jinja"
    template.write_text(template.read_text() + "{% if enable_thinking is false %}<answer>{% endif %}")
    arguments = {"chat_template_kwargs": {"enable_thinking": False}}
    (copy / "adapter/run.json").write_text(json.dumps({"prompt": "answer_tag", "arguments": arguments}))
    for name, flags, ends in (
        ("trained", [], True),
        ("cleared", ["--chat_template_kwargs", "{}"], False),
        ("given", ["--chat_template_kwargs", '{"enable_thinking": false, "x": 1}'], True),
    ):
        evaluate_here(copy, "--name", name, *flags)
        (_, row), *_ = read_graded(copy / f"evals/{name}.jsonl")
        assert row["prompt"].endswith("<answer>") == ends
    for value, flags in (('{"add_generation_prompt": 1}', []), ('{"enable_thinking": true}', ["--prompt", "hash_raw"])):
        with pytest.raises(UsageError, match="chat_template_kwargs"):
            evaluate_here(copy, "--chat_template_kwargs", value, "--name", "other", *flags)


def test_equal_questions_are_said_and_counted_once(copy, capsys):
    rows = read_rows(copy / "test.jsonl")
    write_jsonl(copy / "twice.jsonl", rows * 3)
    evaluate_here(copy, "--data", copy / "twice.jsonl", "--name", "twice")
    assert "twice.jsonl: 8 of 12 questions repeat another one" in capsys.readouterr().out
    once, twice = (json.loads((copy / f"evals/{name}.json").read_text())["results"] for name in ("e", "twice"))
    assert (twice["questions"], twice["distinct_questions"]) == (12, 4) and "distinct_questions" not in once


def test_format_right_and_answer_wrong_is_counted():
    rows = [row("a", 0, True, True, rule="answer_tag"), row("b", 0, False, False, rule="answer_tag")]
    rows += [row("c", 0, False, True, rule="phrase"), row("d", 0, False, False, rule="phrase")]
    assert summarize(rows, "answer_tag")["format_right_answer_wrong"] == 0.25


def test_a_tokenizer_is_the_same_after_it_was_used():
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    before = tokenizer_digest(tokenizer)
    tokenizer(["one", "one and two"], padding=True, truncation=True, max_length=2)
    assert tokenizer_digest(tokenizer) == before == tokenizer_digest(AutoTokenizer.from_pretrained(STARTER))


def test_a_log_hears_of_a_batch_that_is_still_at_work(copy, monkeypatch, capsys):
    monkeypatch.setattr("grpo_math.evaluation.progress.EVERY", 0.02)
    write_jsonl(copy / "more.jsonl", [{"question": f"What is {i} plus 4?", "answer": i + 4} for i in range(80)])
    evaluate_here(copy, "--data", copy / "more.jsonl", "--name", "more", "--max_tokens", 24)
    said = capsys.readouterr().out
    lines = re.findall(r"^  (\d+)/160 completions  [\d,]+ tokens/s  \d+ s, (?:\d+ s|\?) left$", said, re.M)
    counts = list(map(int, lines))
    assert counts == sorted(counts) and any(0 < count < 160 for count in counts), said
    assert len(re.findall("questions  strict so far", said)) == 1, "all that in one batch"


def test_a_terminal_shows_a_bar(data, tmp_path):
    terminal = Terminal(command(data, "--name", "t", "--max_tokens", 40), tmp_path, columns=100)
    terminal.wait_for(r"\d+/120 completions .* tokens/s", timeout=120)
    assert terminal.leave(60) == 0
    shown = "\n".join(terminal.rows())
    assert (
        "120/120 questions  strict so far" in shown
        and "completions" not in shown.partition("rows in")[0].partition("120 questions x 1 completions")[0]
    )


def test_progress_counts_what_was_there_and_what_was_begun_anew():
    live = Live(total=10, before=4)
    live(2, 20)
    live(3, 30)
    assert live.line().startswith("  9/10 completions") and live.tokens == 50
    live(4, 40)  # the batch is begun anew after a lack of memory
    assert live.line().startswith("  10/10 completions") and live.line().endswith(" 0 s left")
    live.saved(4, 45)
    assert live.line().startswith("  8/10 completions") and live.tokens == 45
