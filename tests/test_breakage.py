"""What users get wrong: each ends in one line that names the file, row, field or flag, with status 2 and nothing torn.

The scripts run in this process, in a folder of their own, so that TRL is imported once for all cases.
"""

import functools
import json
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from grpo_math.rewards.build import announced, guarded_reward
from safetensors.torch import load_file, save_file

from conftest import ROOT, STARTER, read_rows, script, write_jsonl

ROWS = [{"question": f"What is {n} plus 1?", "answer": str(n + 1), "task": "arithmetic"} for n in range(40)]
TRAIN = ["train_grpo.py", STARTER, "--train_data", "train.jsonl", "--output_dir", "run", "--report_to", "none"]
TRAIN += ["--per_device_train_batch_size", 8, "--num_generations", 4, "--max_completion_length", 8, "--max_steps", 2]
TRAIN += ["--gradient_accumulation_steps", 1, "--gradient_checkpointing", "false", "--save_steps", 1]
EVALUATE = ["evaluate_gsm8k_no_vllm.py", STARTER, "--data", "train.jsonl", "--max_tokens", 8, "--num_samples", 4]
EVALUATE += ["--name", "e"]


def row(**fields):
    return json.dumps({"question": "What is 1 plus 1?", "answer": "2", **fields}).encode() + b"\n"


GOOD = row()
FILES = {
    "empty.jsonl": b"",
    "torn.jsonl": GOOD + b'{"question": "wh',
    "latin.jsonl": GOOD + b'{"question": "caf\xe9", "answer": "1"}\n',
    "utf16.jsonl": GOOD.decode().encode("utf-16"),
    "binary.jsonl": bytes(range(256)) * 8,
    "list.jsonl": b"[1, 2]\n",
    "csv.jsonl": b"question,answer\nWhat is 1 plus 1?,2\n",
    "no_question.jsonl": GOOD + b'{"answer": "2"}\n',
    "no_answer.jsonl": GOOD + b'{"question": "What?"}\n',
    "null_question.jsonl": row(question=None),
    "null_answer.jsonl": row(answer=None),
    "number_question.jsonl": row(question=7),
    "list_answer.jsonl": row(answer=["2"]),
    "blank_question.jsonl": row(question="  "),
    "words.jsonl": row(answer="two"),
    "two_answers.jsonl": row(answer="2 or 3"),
    "infinite.jsonl": row(answer="1e999999999"),
    "nan.jsonl": b'{"question": "What?", "answer": NaN}\n',
    "other_task.jsonl": GOOD + row(question="Which?", task="chess"),
    "two_tasks.jsonl": row(task="arithmetic") + row(question="Which?", task="gsm8k"),
    "one.jsonl": GOOD,
    "huge.jsonl": GOOD + row(question="How much is it? " * 100_000),
    "recipe_list.yaml": b"- a\n- b\n",
    "recipe_torn.yaml": b"a: [1,\n",
    "mixed_field.jsonl": b"".join(row(question=f"{n}?", level=[n, "hard"][n % 2]) for n in range(40)),
    "recipe_choice.yaml": b"optim: adam\n",
    "recipe_twice.yaml": b"learning_rate: 1\nlearning_rate: 2\n",
    "models.yaml": b"- nope: 1\n",
    "torn_run/metrics.jsonl": b'{"step": 1}\n{"st',
    "good_run/metrics.jsonl": b'{"step": 1, "reward": 0.5}\n',
    "nothing/readme.txt": b"hello",
    "bad_evals/a.jsonl": b'{"id": "x"}\n',
    "bad_evals/b.jsonl": b'{"id": 1, "strict": "yes"}\n',
    "my_rewards.py": b"""
def raises(completions, **kwargs):
    return [completions[0]["nope"]]

def nan(completions, **kwargs):
    return [float("nan")] * len(completions)

def few(completions, **kwargs):
    return [1.0]

def words(completions, **kwargs):
    return ["good"] * len(completions)

def nothing(completions, **kwargs):
    pass

number = 3
""",
    "broken_module.py": b"import no_such_module\n",
}


def change(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def model(folder, name):
    shutil.copytree(STARTER, folder / name, ignore=shutil.ignore_patterns("*.py"))
    return folder / name


def broken_models(folder):
    """Copies of the starter model, each with something wrong."""
    (model(folder, "no_config") / "config.json").unlink()
    (model(folder, "torn_config") / "config.json").write_text("{")
    change(model(folder, "unknown_type"), "config.json", model_type="nonsense", architectures=["Nonsense"])
    change(model(folder, "remote"), "config.json", model_type="odd", auto_map={"AutoConfig": "c.C"})
    (folder / "remote/c.py").write_text("raise SystemExit('code of the model ran')")
    (model(folder, "no_weights") / "model.safetensors").unlink()
    weights = model(folder, "torn_weights") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    change(model(folder, "other_shape"), "config.json", hidden_size=64, head_dim=16)
    pickled = model(folder, "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    (model(folder, "torn_tokenizer") / "tokenizer.json").write_text('{"version": "1.0", "trunc')
    no_tokenizer = model(folder, "no_tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (no_tokenizer / name).unlink()
    (model(folder, "bad_template") / "chat_template.jinja").write_text("{% for %}")
    adapter = folder / "lost_adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "./gone"}))
    save_file({"x": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    (folder / "torn_adapter").mkdir()
    (folder / "torn_adapter/adapter_config.json").write_text("{")
    (folder / "empty_folder").mkdir()


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder with good rows, and everything that can be wrong."""
    folder = tmp_path_factory.mktemp("bench")
    write_jsonl(folder / "train.jsonl", ROWS)
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    broken_models(folder)
    return folder


def attempt(command, folder, monkeypatch, capfd):
    """Exit status and the two outputs of a script, run in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(logging, "raiseExceptions", False)  # libraries keep the stderr of the case before
    capfd.readouterr()
    try:
        runpy.run_path(str(ROOT / command[0]), run_name="__main__")
        status = 0
    except SystemExit as error:
        status = error.code
    return status, *capfd.readouterr()


def listing(folder):
    """The files, locks apart, and when each was written."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != ".lock"]
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in files}


def with_data(script_words, flag):
    """The mistakes in data files that every script that reads rows must tell."""
    for name, message in {
        "absent": "absent.jsonl: no such file",
        "empty": "empty.jsonl: has no rows",
        "torn": "torn.jsonl, line 2: not valid JSON",
        "latin": "latin.jsonl, line 2: byte",
        "utf16": "utf16.jsonl, line 1: byte 1 is not UTF-8",
        "binary": "binary.jsonl, line 1:",
        "list": "list.jsonl, line 1: expected a JSON object, found list",
        "csv": "csv.jsonl, line 1: not valid JSON",
        "no_question": "no_question.jsonl, line 2: ",
        "no_answer": "no_answer.jsonl, line 2: ",
        "null_question": "null_question.jsonl, line 1: ",
        "null_answer": "null_answer.jsonl, line 1: ",
        "number_question": "number_question.jsonl, line 1: ",
        "list_answer": "list_answer.jsonl, line 1: ",
        "blank_question": "blank_question.jsonl, line 1: ",
        "words": "words.jsonl, line 1: ",
        "two_answers": "two_answers.jsonl, line 1: ",
        "infinite": "infinite.jsonl, line 1: ",
        "nan": "nan.jsonl, line 1: ",
        "other_task": "other_task.jsonl, line 2: ",
    }.items():
        yield [*script_words, flag, f"{name}.jsonl"], message


def with_model(name, message):
    """Both scripts that load weights."""
    for words in (TRAIN, EVALUATE):
        yield [words[0], name, *words[2:]], message


CASES = [
    *with_data(TRAIN, "--train_data"),
    *with_data(EVALUATE, "--data"),
    *with_model("./gone", "./gone: no such folder"),
    *with_model("train.jsonl", "train.jsonl: is a file"),
    *with_model("./empty_folder", "holds neither a model (config.json) nor a complete checkpoint"),
    *with_model("./no_config", "no_config"),
    *with_model("./torn_config", "torn_config"),
    *with_model("./unknown_type", "unknown_type"),
    *with_model("./remote", "remote: comes with code of its own; read it, and then give --trust_remote_code"),
    *with_model("./no_weights", "no_weights"),
    *with_model("./torn_weights", "torn_weights"),
    *with_model("./other_shape", "other_shape"),
    *with_model("./pickled", "pickled"),
    *with_model("./torn_tokenizer", "torn_tokenizer"),
    *with_model("./no_tokenizer", "no_tokenizer"),
    *with_model("./bad_template", "bad_template"),
    *with_model("./lost_adapter", "./gone"),
    *with_model("./torn_adapter", "torn_adapter"),
    ([*TRAIN, "--train_data", "one.jsonl"], "the training data has 1 questions"),
    ([*TRAIN, "--train_data", "two_tasks.jsonl"], "--prompt: the rows are of tasks arithmetic, gsm8k"),
    ([*TRAIN, "--train_data", "nothing"], "nothing: is a folder"),
    ([*TRAIN, "--train_data", "huge.jsonl"], "the longest prompt has"),
    ([*EVALUATE, "--data", "huge.jsonl"], "the longest prompt has"),
    ([*TRAIN, "--config", "recipe_list.yaml"], "--config recipe_list.yaml"),
    ([*TRAIN, "--config", "recipe_torn.yaml"], "--config recipe_torn.yaml"),
    ([*TRAIN, "--config", "train.jsonl"], "--config train.jsonl"),
    ([*TRAIN, "--config", "nothing"], "--config nothing"),
    ([*TRAIN, "--output_dir", "train.jsonl"], "train.jsonl"),
    ([*TRAIN, "--output_dir", "/proc/run"], "/proc/run"),
    ([*TRAIN, "--resume"], "--resume: run holds no complete checkpoint"),
    ([*TRAIN, "--max_completion_length", 4000], "--max_completion_length 4000: the longest prompt has"),
    ([*TRAIN, "--dtype", "float99"], "float99"),
    ([*TRAIN, "--bf16", "perhaps"], "--bf16"),
    ([*TRAIN, "--load_in_4bit", "true"], "--load_in_4bit"),
    ([*TRAIN, "--attn_implementation", "flash_attention_2"], "FlashAttention2"),
    ([*TRAIN, "--model_name_or_path", "other"], "--model_name_or_path other: give one of the two"),
    ([*TRAIN, "--loss_type", "ppo"], "--loss_type ppo: unknown"),
    ([*TRAIN, "--scale_rewards", "false"], "--scale_rewards false: unknown"),
    ([*TRAIN, "--optim", "adamw_8bit"], "--optim adamw_8bit: You need to install `bitsandbytes`"),
    ([*TRAIN, "--lr_scheduler_type", "warmup_stable_decay"], "--lr_scheduler_type warmup_stable_decay: "),
    ([*TRAIN, "--resume_from_checkpoint", "run/checkpoint-1"], "--resume_from_checkpoint: a run goes on from"),
    ([*TRAIN, "--chat_template_kwargs", "yes"], "--chat_template_kwargs yes: must be a JSON object"),
    ([*TRAIN, "--chat_template_kwargs", '{"tools": []}'], "tools is no argument of a template"),
    ([*TRAIN, "--generation_kwargs", "[1]"], "--generation_kwargs [1]: must be a JSON object"),
    ([*TRAIN, "--train_data", "mixed_field.jsonl"], "field 'level' of the rows: not of one type"),
    ([*TRAIN, "--config", "recipe_choice.yaml"], "recipe_choice.yaml: optim: 'adam' is none of "),
    ([*TRAIN, "--eval_size", 100], "--eval_size 100"),
    ([*TRAIN, "--eval_size", 2, "--eval_data", "absent.jsonl"], "absent.jsonl: no such file"),
    ([*TRAIN, "--difficulty", "train.jsonl"], "train.jsonl"),
    ([*TRAIN, "--difficulty", "absent.jsonl"], "absent.jsonl: no such file"),
    ([*TRAIN, "--learning_rate", "nan"], "--learning_rate"),
    ([*TRAIN, "--learning_rate", "-1"], "--learning_rate"),
    ([*TRAIN, "--max_steps", "0", "--num_train_epochs", "0"], "--num_train_epochs"),
    ([*TRAIN, "--num_generations", 1], "--num_generations"),
    ([*TRAIN, "--temperature", 0], "--temperature"),
    ([*TRAIN, "--report_to", "nobody"], "--report_to"),
    ([*TRAIN, "--reward_funcs", "broken_module.reward"], "cannot import 'broken_module.reward'"),
    ([*TRAIN, "--reward_funcs", "my_rewards.absent"], "cannot import 'my_rewards.absent'"),
    ([*TRAIN, "--reward_funcs", "my_rewards.number"], "'my_rewards.number' is not a function"),
    ([*TRAIN, "--reward_funcs", "accuracy:wrong=bad"], "wrong must be a number"),
    ([*EVALUATE, "--output_dir", "train.jsonl"], "could not be written"),
    ([*EVALUATE, "--output_dir", "/proc/evals"], "/proc/evals"),
    ([*EVALUATE, "--max_tokens", 5000], "--max_tokens 5000"),
    ([*EVALUATE, "--batch_size", 0], "--batch_size 0"),
    ([*EVALUATE, "--task", "broken_module.task"], "cannot import 'broken_module.task'"),
    (["compare_evaluations.py", "absent.jsonl", "train.jsonl"], "absent.jsonl"),
    (["compare_evaluations.py", "train.jsonl", "train.jsonl"], "the same file is given twice"),
    (["compare_evaluations.py", "bad_evals/a.jsonl", "train.jsonl"], "bad_evals/a.jsonl, line 1"),
    (["compare_evaluations.py", "bad_evals/b.jsonl", "train.jsonl"], "bad_evals/b.jsonl, line 1"),
    (["compare_evaluations.py", "empty.jsonl", "train.jsonl"], "empty.jsonl: has no rows"),
    (["compare_evaluations.py", "binary.jsonl", "train.jsonl"], "binary.jsonl, line 1"),
    (["plot_training.py", "absent"], "absent"),
    (["plot_training.py", "nothing"], "nothing"),
    (["plot_training.py", "torn_run"], "torn_run/metrics.jsonl, line 2: not valid JSON"),
    (["plot_training.py", "good_run", "--output", "/proc/a.png"], "/proc/a.png"),
    (["plot_training.py", "good_run", "--evals", "train.jsonl"], "train.jsonl"),
    (["export_model.py", "absent"], "absent"),
    (["export_model.py", "no_weights", "--output_dir", "x"], "no_weights"),
    (["export_model.py", "torn_weights", "--output_dir", "x"], "torn_weights"),
    (["export_model.py", "lost_adapter", "--output_dir", "x"], "./gone"),
    (["instruct_model_repl.py", "--models", "models.yaml"], "--models models.yaml: entry 1"),
    (["instruct_model_repl.py", "--models", "recipe_torn.yaml"], "--models recipe_torn.yaml"),
    (["instruct_model_repl.py", STARTER, "--input", "torn.jsonl", "--output", "o.jsonl"], "torn.jsonl, line 2"),
    (["instruct_model_repl.py", STARTER, "--input", "train.jsonl"], "--input: needs --output"),
    (["instruct_model_repl.py", STARTER, "--temperature", "hot", "-p", "hi"], "temperature"),
    (["prepare_gsm8k.py", "--source", "absent/"], "--source absent/"),
    (["prepare_gsm8k.py", "--source", "nothing"], "nothing"),
    (["prepare_gsm8k.py", "--source", "torn.jsonl"], "torn.jsonl"),
    (["prepare_math.py", "--source", "one.jsonl"], "one.jsonl"),
    (["prepare_arithmetic.py", "--min_num", 5, "--max_num", 1], "--min_num 5"),
    (["prepare_arithmetic.py", "--num_problems", 100, "--output_dir", "train.jsonl"], "could not be written"),
    (["search_hyperparameters.py", STARTER, "--search", "learning_rate"], "--search learning_rate"),
    (["download_model.py", "nobody/nothing"], "nobody/nothing: cannot be downloaded"),
    (["download_model.py", "not a name"], "not a name"),
    (["quickstart.py", "--steps", "many"], "--steps"),
]


def case_id(value):
    return "-".join(str(part).rpartition("/")[2] for part in value)[:110] if isinstance(value, list) else ""


@pytest.mark.parametrize(("command", "message"), CASES, ids=case_id)
def test_a_mistake_is_one_line(command, message, bench, monkeypatch, capfd):
    before = listing(bench)
    status, _, said = attempt(command, bench, monkeypatch, capfd)
    assert status == 2 and message in said.splitlines()[-1] and "Traceback" not in said, said
    changed = {path for path, time in listing(bench).items() if before.get(path) != time}
    assert not changed, "something was half-written"


@pytest.fixture
def place(bench, tmp_path):
    """A folder with the good rows and the bad rewards, that may be written to."""
    for name in ("train.jsonl", "my_rewards.py"):
        shutil.copy(bench / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("raises", "my_rewards.raises: TypeError"),
        ("nan", "my_rewards.nan: returned nan for completion 0; where it does not apply, return None"),
        ("few", "my_rewards.few: returned 1 values for 8 completions; it must return one for each"),
        ("words", "my_rewards.words: must return a list of one number for each completion"),
        ("nothing", "my_rewards.nothing: must return a list of one number for each completion"),
    ],
)
def test_a_reward_that_fails_is_named(reward, message, place, monkeypatch, capfd):
    status, _, said = attempt([*TRAIN, "--reward_funcs", f"my_rewards.{reward}"], place, monkeypatch, capfd)
    assert status == 2 and message in said.splitlines()[-1] and "Traceback" not in said, said


def test_a_reward_that_hangs_is_named(capfd):
    with announced("--reward_funcs my_rewards.slow", every=0.05):
        time.sleep(0.3)
    assert "--reward_funcs my_rewards.slow: still at work after 0 s" in capfd.readouterr().err


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def trained(bench, tmp_path_factory):
    """A run of two steps, each with a checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("train.jsonl", "my_rewards.py"):
        shutil.copy(bench / name, folder)
    done = script(TRAIN, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def finished(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "run.json"]
)
def test_a_damaged_checkpoint_is_named(name, finished, monkeypatch, capfd):
    cut(finished / "run/checkpoint-2" / name)
    before = listing(finished)
    status, _, said = attempt([*TRAIN, "--max_steps", 3], finished, monkeypatch, capfd)
    assert status == 2 and "run/checkpoint-2: is damaged" in said and name in said and "Traceback" not in said, said
    assert listing(finished) == before


def test_when_a_damaged_checkpoint_is_moved_away_the_one_before_goes_on(finished, monkeypatch, capfd):
    (finished / "run/checkpoint-2").rename(finished / "aside")
    status, printed, said = attempt([*TRAIN, "--max_steps", 3], finished, monkeypatch, capfd)
    assert status == 0 and "continuing from run/checkpoint-1, after step 1" in printed, said
    assert [row["step"] for row in read_rows(finished / "run/metrics.jsonl") if "reward" in row] == [1, 2, 3]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "run.json").unlink(), "run: holds checkpoints but no run.json"),
        (lambda run: (run / "run.json").write_text("{"), "run.json: cannot be read"),
        (lambda run: (run / "run.json").write_text("[]"), "run.json: is not a run's record"),
        (lambda run: change(run, "run.json", prompt="boxed"), "prompt: boxed -> answer_tag"),
        (lambda run: change(run, "run.json", reward_funcs=None), "reward_funcs: None -> "),
        (lambda run: change(run, "run.json", arguments={}), "holds a run of other settings"),
    ],
    ids=["no_record", "torn", "list", "other_prompt", "older", "no_arguments"],
)
def test_a_folder_of_another_run_is_left_alone(spoil, message, finished, monkeypatch, capfd):
    spoil(finished / "run")
    before = listing(finished)
    status, _, said = attempt(TRAIN, finished, monkeypatch, capfd)
    assert status == 2 and message in said.splitlines()[-1] and "Traceback" not in said, said
    assert listing(finished) == before


def without(name):
    def spoil(folder):
        (folder / name).unlink()

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        without("chat_template.jinja"),
        without("generation_config.json"),
        lambda folder: change(folder, "tokenizer_config.json", pad_token=None),
        lambda folder: save_file(
            {name: value.bfloat16() for name, value in load_file(folder / "model.safetensors").items()},
            folder / "model.safetensors",
            {"format": "pt"},
        ),
    ],
    ids=["no_template", "no_generation_config", "no_padding_token", "bfloat16"],
)
def test_what_a_model_lacks_is_made_up_for(spoil, place, monkeypatch, capfd):
    spoil(model(place, "odd"))
    for command in ([TRAIN[0], "odd", *TRAIN[2:]], [EVALUATE[0], "run", *EVALUATE[2:]]):
        status, _, said = attempt(command, place, monkeypatch, capfd)
        assert status == 0, said


def test_odd_but_good_rows_train(place, monkeypatch, capfd):
    """Repeated questions, CRLF, a byte order mark, no last newline, numbers as numbers, other fields of any type."""
    rows = [json.dumps({"question": f"What is {n % 3} plus 1?", "answer": n % 3 + 1, "x": [n]}) for n in range(30)]
    (place / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*rows, ""]).encode() + rows[0].encode())
    for command in (TRAIN, EVALUATE):
        status, _, said = attempt(command, place, monkeypatch, capfd)
        assert status == 0, said


def started(command, cwd, **environment):
    """A script in a process of its own, and a function that waits until it has printed something."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment}
    words = [sys.executable, ROOT / command[0], *map(str, command[1:])]
    # A shell's background jobs ignore Ctrl-C, and so would what is started from there.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, cwd=cwd, env=env, text=True, preexec_fn=heed, **pipes)

    def wait_for(text):
        for line in process.stdout:
            if text in line:
                return
        raise AssertionError(process.stderr.read())

    return process, wait_for


@pytest.mark.slow
def test_ctrl_c_ends_each_phase_and_the_run_goes_on(place):
    long = [*TRAIN, "--max_steps", 400]
    for phase in ("run  ", "step 1/", "step 3/"):
        process, wait_for = started(long, place)
        wait_for(phase)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130 and said.splitlines()[-1] == "interrupted", said
        assert "Traceback" not in said
    process, wait_for = started(long, place)
    wait_for("continuing from run/checkpoint-")
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_ctrl_c_ends_an_evaluation_that_goes_on(place):
    long = [*EVALUATE[:-4], "--n", 200, "--temperature", 1, "--batch_size", 200, "--name", "e"]
    process, _ = started(long, place)
    while not (place / "evals/e.jsonl").exists() or not (place / "evals/e.jsonl").stat().st_size:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.splitlines()[-1] == "interrupted" and "Traceback" not in said, said
    rows = (place / "evals/e.jsonl").read_bytes().count(b"\n")
    assert 0 < rows < 200 * len(ROWS) and rows % 200 == 0
    done = script(long, place)
    assert done.returncode == 0 and len(read_rows(place / "evals/e.jsonl")) == 200 * len(ROWS), done.stderr


@pytest.mark.slow
def test_too_little_memory_is_a_line_with_the_way_out(place):
    code = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30));"
    code += f"sys.argv = {[str(word) for word in (ROOT / TRAIN[0], *TRAIN[1:])]!r};"
    code += "sys.argv += ['--per_device_train_batch_size', '40000', '--num_generations', '1000'];"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=place, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "error: out of memory" in done.stderr.splitlines()[-1], done.stderr[-3000:]
    smaller = script(TRAIN, place)  # other settings, as nothing was saved
    assert smaller.returncode == 0, smaller.stderr


@pytest.mark.slow
def test_a_killed_loader_is_named_and_the_run_goes_on(place):
    command = [*TRAIN, "--max_steps", 400, "--dataloader_num_workers", 1]
    process, wait_for = started(command, place)
    wait_for("step 2/")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    loaders = [pid for pid in children if b"train_grpo.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(loaders[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2 and "DataLoader worker" in said.splitlines()[-1] and "Traceback" not in said, said
    process, wait_for = started(command, place)
    wait_for("continuing from run/checkpoint-")
    process.kill()
    process.communicate()


def test_two_at_once_in_one_folder_are_refused(place):
    long = [*TRAIN, "--max_steps", 400]
    first, wait_for = started(long, place)
    wait_for("step 1/")
    second = script(long, place)
    first.kill()
    first.communicate()
    assert second.returncode == 2 and "run: another process is at work on it" in second.stderr, second.stderr
    third, wait_for = started(long, place)
    wait_for("continuing from run/checkpoint-")
    third.kill()
    third.communicate()


class Called:
    """Rewards that are no plain functions."""

    def __call__(self, completions, **kwargs):
        return [1.0] * len(completions)


class Awaited:
    async def __call__(self, completions, **kwargs):
        return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("reward", "name", "guarded"),
    [
        (Called(), "Called", True),
        (functools.partial(Called.__call__, Called()), "__call__", True),
        (Awaited(), None, False),
        (Awaited.__call__, None, False),
        (torch.nn.Linear(1, 1), None, False),
    ],
    ids=["object", "partial", "awaited", "coroutine", "model"],
)
def test_rewards_of_all_kinds_keep_their_names(reward, name, guarded):
    made = guarded_reward("my.reward", reward)
    assert (made is not reward) == guarded
    if guarded:
        assert made.__name__ == name and made(completions=["a", "b"]) == [1.0, 1.0]


def test_a_finished_run_is_not_overwritten_by_other_settings(finished, monkeypatch, capfd):
    for step in (1, 2):
        shutil.rmtree(finished / f"run/checkpoint-{step}")
    before = listing(finished)
    status, _, said = attempt([*TRAIN, "--learning_rate", "1e-3"], finished, monkeypatch, capfd)
    assert status == 2 and "run: holds a run of other settings (learning_rate:" in said, said
    assert listing(finished) == before


def test_what_left_nothing_behind_is_begun_anew(finished, monkeypatch, capfd):
    shutil.rmtree(finished / "run/checkpoint-final")
    identity = (finished / "run/tracking.json").read_text()
    for step in (1, 2):
        shutil.rmtree(finished / f"run/checkpoint-{step}")
    status, _, said = attempt([*TRAIN, "--learning_rate", "1e-3", "--max_steps", 1], finished, monkeypatch, capfd)
    assert status == 0, said
    assert (finished / "run/tracking.json").read_text() != identity
    assert len(list((finished / "run/completions").iterdir())) == 1


@pytest.mark.slow
def test_wandb_that_cannot_be_reached_does_not_end_a_run(place):
    online = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0123456789" * 4}
    done = script([*TRAIN, "--report_to", "wandb"], place, **online)
    assert done.returncode == 0 and "W&B: http://127.0.0.1:9 cannot be reached" in done.stdout, done.stderr
    assert "0123456789" * 4 not in done.stdout + done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of so many MiB, or changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a small file system cannot be mounted here ({done.stderr.strip()})")
        return folder

    yield mount
    subprocess.run(["umount", "-l", folder], capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1m", "5m", "12m"])
def test_a_full_disk_keeps_what_was_saved(size, place, small_disk):
    disk = small_disk(f"size={size}")
    command = [*TRAIN, "--output_dir", disk / "run", "--max_steps", 3]
    done = script(command, place)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "No space left" in done.stderr.splitlines()[-1] or "make room" in done.stderr.splitlines()[-1]
    small_disk("size=200m,remount")
    done = script(command, place)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in read_rows(disk / "run/metrics.jsonl") if "reward" in row] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("command", [EVALUATE, ["prepare_arithmetic.py", "--num_problems", 50_000]], ids=lambda c: c[0])
def test_a_full_disk_under_the_other_scripts(command, place, small_disk):
    disk = small_disk("size=100k")
    (disk / "filler").write_bytes(b"x" * 94_000)
    command = [*command, "--output_dir", disk / "out"]
    done = script(command, place)
    assert done.returncode == 2 and "No space left" in done.stderr and "Traceback" not in done.stderr, done.stderr
    small_disk("size=50m,remount")
    done = script(command, place)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_hub_cache_that_cannot_be_written_to(place, small_disk):
    disk = small_disk("size=10m")
    small_disk("ro,remount")
    done = script([*EVALUATE, "--output_dir", place / "evals"], place, HF_HOME=str(disk))
    assert done.returncode == 0, done.stderr
    done = script(["download_model.py", "nobody/nothing"], place, HF_HOME=str(disk))
    assert done.returncode == 2 and "cannot be downloaded" in done.stderr and "Traceback" not in done.stderr
