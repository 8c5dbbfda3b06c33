"""Exports of real checkpoints: the same answers elsewhere, a card that tells the truth, a token that is never shown."""

import json
import shlex
import shutil
import zipfile

import pytest
import yaml
from grpo_math.data.problems import sum_problems
from grpo_math.data.prompts import Asking, build_prompt
from grpo_math.data.rows import load_rows
from grpo_math.data.styles import STYLES
from grpo_math.generation.backend import EngineOptions, Sampling
from grpo_math.generation.transformers_backend import TransformersBackend
from grpo_math.launch.resume import differences
from grpo_math.models.loading import Loading, load_tokenizer
from grpo_math.models.source import resolve_model
from grpo_math.publish.command import differing_flags, training_command
from grpo_math.publish.export import find_results
from grpo_math.publish.measured import training_note
from grpo_math.publish.model_card import hub_id
from grpo_math.run_folder import read_record

from conftest import STARTER, read_rows, script, write_jsonl
from hub import TOKEN, Hub, Repository

QUESTIONS = 200
# The stand-in has the Hub's older storage of large files (git-lfs), and not Xet.
ONLINE = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
# Flags of every kind: of data and rewards, numbers, lists, objects and truths.
ODD = [
    *("--difficulty", "hard.jsonl", "--min_pass", 0.2, "--max_pass", 0.7, "--advantage", "no_baseline"),
    *("--top_k", 40, "--epsilon_high", 0.28, "--adam_beta2", 0.99, "--lr_scheduler_type", "linear", "--seed", 7),
    *("--mask_truncated_completions", "true", "--lora_target_modules", "q_proj", "v_proj", "--num_iterations", 2),
    *("--chat_template_kwargs", '{"enable_thinking": false}', "--eval_size", 20, "--save_steps", 2),
]
TRAIN = [
    *("train_grpo.py", "starter_model", "--train_data", "train.jsonl", "--output_dir", "outputs/lora"),
    *("--use_peft", "true", "--lora_r", 8, "--max_steps", 2, "--learning_rate", "3e-2", "--report_to", "none"),
    *("--per_device_train_batch_size", 32, "--gradient_accumulation_steps", 1, "--num_generations", 8),
    *("--max_completion_length", 12, "--gradient_checkpointing", "false", "--reward_funcs", "accuracy", "format"),
    *("--reward_weights", 1, 0.25, "--warmup_steps", 0),
]


def rows(count, seed):
    problems = sum_problems(count, -99, 99, seed=seed)
    return [{"question": p.question, "answer": str(p.answer), "task": "arithmetic"} for p in problems]


def greedy(folder, questions):
    """What the evaluator would have a model write."""
    source = resolve_model(str(folder))
    tokenizer = load_tokenizer(source, Loading())
    backend = TransformersBackend(source, Loading(), tokenizer, 512, EngineOptions())
    prompts = [build_prompt(STYLES["answer_tag"], question, chat=True) for question in questions]
    sampling = Sampling(n=1, temperature=0, top_p=1, top_k=0, max_tokens=16, seed=0, stop=())
    return [
        found[0].text
        for found in backend.generate(Asking(STYLES["answer_tag"]).token_ids(prompts, tokenizer), sampling)
    ]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with two real LoRA steps on the starter model, evaluated like their base model."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(STARTER, folder / "starter_model", ignore=shutil.ignore_patterns("*.py"))
    write_jsonl(folder / "train.jsonl", rows(300, 1))
    write_jsonl(folder / "test.jsonl", rows(QUESTIONS, 2))
    asked = enumerate(load_rows(folder / "train.jsonl", None))
    write_jsonl(
        folder / "hard.jsonl", [{"id": row["id"], "strict": turn < i % 2} for i, row in asked for turn in (0, 1)]
    )
    trained = script([*TRAIN, *ODD], folder)
    assert trained.returncode == 0, trained.stderr
    for model in ("starter_model", "outputs/lora"):
        scored = ["evaluate_gsm8k_no_vllm.py", model, "--data", "test.jsonl", "--max_tokens", 16]
        assert script(scored, folder).returncode == 0
    return folder


def test_a_merged_adapter_is_exported_zipped_pushed_and_evaluated_by_name(work, tmp_path, monkeypatch):
    login = {"HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf"), **ONLINE}
    with Hub() as hub:
        command = ["export_model.py", "outputs/lora", "--output_dir", "exports/mine", "--zip", "--push_to_hub", "mine"]
        done = script(command, work, HF_ENDPOINT=hub.url, **login)
        assert done.returncode == 0, done.stderr
        assert "exported exports/mine\nzipped   exports/mine.zip\npushed   " in done.stdout
        repository = hub.repositories["tester/mine"]
        assert repository.private and repository.commits == 1
        exported = {path.name: path.read_bytes() for path in (work / "exports/mine").iterdir()}
        assert repository.files == exported and {"model.safetensors", "README.md", "run.json"} <= exported.keys()
        assert not any(name.startswith("adapter") or name.endswith(".bin") for name in exported)

        evaluate = ["evaluate_gsm8k_no_vllm.py", "tester/mine", "--data", "test.jsonl", "--max_tokens", 16]
        scored = script(evaluate, work, HF_ENDPOINT=hub.url, **login)
        assert scored.returncode == 0, scored.stderr
        assert any(request.endswith("/model.safetensors") for request in hub.requests if request.startswith("GET"))

    adapter = read_rows(work / f"evals/lora-checkpoint-final--{work.name}-test.jsonl")
    base = read_rows(work / f"evals/starter_model--{work.name}-test.jsonl")
    pushed = read_rows(work / f"evals/mine--{work.name}-test.jsonl")
    wanted = [row["completion"] for row in adapter]
    assert [row["completion"] for row in pushed] == wanted
    assert "prompt style answer_tag" in scored.stdout
    assert sum(row["completion"] != text for row, text in zip(base, wanted, strict=True)) > QUESTIONS / 20
    with zipfile.ZipFile(work / "exports/mine.zip") as archive:
        archive.extractall(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert greedy("elsewhere/mine", [row["question"] for row in adapter]) == wanted

    files = [path for root in (work, tmp_path) for path in root.rglob("*") if path.is_file()]
    everything = "".join(part for run in (done, scored) for part in (run.stdout, run.stderr))
    assert TOKEN not in everything and not any(TOKEN.encode() in path.read_bytes() for path in files)


def test_the_card_says_what_was_measured_and_how_to_do_it_again(work):
    assert script(["export_model.py", "outputs/lora", "--output_dir", "exports/mine"], work).returncode == 0
    _, front, text = (work / "exports/mine/README.md").read_text().split("---\n", 2)
    info = json.loads((work / f"evals/lora-checkpoint-final--{work.name}-test.json").read_text())
    strict = info["results"]["strict"]
    shown = f"{strict['accuracy']:.1%} [{strict['low'] * 100:.1f}, {strict['high'] * 100:.1f}]"
    assert f"| mine | `test.jsonl` | 200 x 1 | 0 | {shown} |" in text
    assert "| `starter_model`, before | `test.jsonl` | 200 x 1 | 0 | " in text
    assert yaml.safe_load(front)["model-index"][0]["results"][0]["metrics"][0]["value"] == strict["accuracy"]
    assert "A LoRA adapter was trained and is merged" in text and STYLES["answer_tag"].system in text


def command_of(card):
    """The command that a card gives, as its words."""
    return shlex.split(card.split("```bash\n")[1].split("```")[0].replace("\\\n", " "))


def test_the_cards_command_trains_the_same_weights_again(work):
    assert script(["export_model.py", "outputs/lora", "--output_dir", "exports/mine"], work).returncode == 0
    card = (work / "exports/mine/README.md").read_text()
    python, *command = command_of(card)
    assert python == "python" and "--learning_rate" in command and "--save_steps" not in command
    assert "300 questions, of which 150 were chosen by their difficulty" in card
    again = script(command, work)
    assert again.returncode == 0, again.stderr
    name = "checkpoint-final/adapter_model.safetensors"
    first, second = ((work / folder / name).read_bytes() for folder in ("outputs/lora", command[-1]))
    assert first == second
    records = [read_record(work / folder) for folder in ("outputs/lora", command[-1])]
    assert differences(*records) == []


def test_training_writes_no_card_of_its_own(work):
    assert not list(work.rglob("outputs/**/README.md"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"learning_rate": 1e-4}, ["--learning_rate 0.0001"]),
        ({"learning_rate": 1e-6}, []),
        (
            {"top_k": 5, "epsilon_high": 0.28, "mask_truncated_completions": True},
            [
                *("--epsilon_high 0.28", "--mask_truncated_completions true", "--top_k 5"),
            ],
        ),
        ({"reward_weights": [1.0, 0.5]}, ["--reward_weights 1.0 0.5"]),
        (
            {"chat_template_kwargs": {"enable_thinking": False}},
            ["--chat_template_kwargs '{\"enable_thinking\": false}'"],
        ),
        ({"save_steps": 7, "run_name": "x", "logging_steps": 3, "output_dir": "/home/me/x"}, []),
        ({"generation_batch_size": 96, "steps_per_generation": 12}, ["--steps_per_generation 12"]),
        ({"generation_batch_size": 32, "steps_per_generation": 4}, []),
        ({"max_steps": 10, "num_train_epochs": 3.0}, ["--max_steps 10"]),
        ({"num_train_epochs": 1.5}, ["--num_train_epochs 1.5"]),
        ({"generation_kwargs": {"stop_strings": list(STYLES["hash"].stop)}}, []),
        ({"generation_kwargs": {"stop_strings": ["END"]}}, ['--generation_kwargs \'{"stop_strings": ["END"]}\'']),
        ({"bf16": False, "use_vllm": False}, ["--bf16 false", "--use_vllm false"]),  # which machines choose
    ],
)
def test_flags_that_differ_from_the_defaults(given, said):
    defaults = {"learning_rate": 1e-6, "gradient_accumulation_steps": 4, "max_steps": -1, "num_train_epochs": 3.0}
    defaults |= {"bf16": False, "use_vllm": False, "mask_truncated_completions": False, "top_k": 0}
    record = {"prompt": "hash", "arguments": {"gradient_accumulation_steps": 4} | given}
    assert sorted(map(shlex.join, differing_flags(record, defaults))) == said


def test_several_processes_are_launched_and_all_own_flags_said():
    record = {"model": "m", "world_size": 2, "arguments": {"use_cpu": True}, "task": "t", "prompt": "hash"}
    record |= {"train_data": {"path": "t.jsonl"}, "reward_funcs": ["a:wrong=-1", "b"], "advantage": "no_baseline"}
    record |= {"eval_data": {"path": "e.jsonl", "questions": 9}}
    record |= {"difficulty": {"path": "d.jsonl", "min_pass": 0.2, "max_pass": 0.8}}
    assert training_command(record, {}, "n").replace(" \\\n   ", "") == (
        "accelerate launch --config_file accelerate_configs/cpu.yaml --num_processes 2 train_grpo.py m "
        "--train_data t.jsonl --eval_size 9 --eval_data e.jsonl --difficulty d.jsonl --min_pass 0.2 --max_pass 0.8 "
        "--task t --prompt hash --reward_funcs a:wrong=-1 b --advantage no_baseline --output_dir outputs/n-again"
    )


def test_nothing_that_is_exported_names_a_folder_of_this_machine(work, tmp_path):
    """A run whose every path is absolute, exported from another folder."""
    run = tmp_path / "somewhere/run"
    shutil.copytree(work / "outputs/lora", run)
    for path in run.rglob("run.json"):
        record = json.loads(path.read_text())
        record["model"] = record["arguments"]["model_name_or_path"] = str(work / "starter_model")
        record["difficulty"]["path"] = record["train_data"]["path"] = str(work / "train.jsonl")
        record["arguments"]["chat_template_path"] = str(tmp_path / "deleted/template.jinja")
        path.write_text(json.dumps(record))
    config = run / "checkpoint-final/adapter_config.json"
    settings = json.loads(config.read_text()) | {"base_model_name_or_path": str(work / "starter_model")}
    config.write_text(json.dumps(settings))
    (tmp_path / "cwd").mkdir()
    scored = ["evaluate_gsm8k_no_vllm.py", run, "--data", work / "test.jsonl", "--max_tokens", 4, "--num_samples", 5]
    assert script(scored, tmp_path / "cwd").returncode == 0
    done = script(["export_model.py", run, "--output_dir", tmp_path / "out/x"], tmp_path / "cwd")
    assert done.returncode == 0, done.stderr
    files = {path.name: path.read_bytes() for path in (tmp_path / "out/x").iterdir()}
    root = str(tmp_path.parent).encode()
    assert [name for name, content in files.items() if root in content] == []
    card = files["README.md"].decode()
    assert "base_model" not in card and "made from `starter_model` (a model in a folder" in card
    assert "| x | `test.jsonl` | 5 x 1 |" in card and "train_grpo.py starter_model" in card
    kept = json.loads(files["run.json"])
    assert kept["arguments"]["chat_template_path"] == "template.jinja" and kept["prompt"] == "answer_tag"


@pytest.mark.parametrize(
    ("base", "record", "expected"),
    [
        ("org/model", {"model": "org/model", "model_sha256": "commit 0a1b"}, "org/model"),
        ("models/Qwen2.5-3B-Instruct", {"model": "models/Qwen2.5-3B-Instruct", "model_sha256": "0a1b2c"}, None),
        ("models/Qwen2.5-3B-Instruct", {"model": "models/Qwen2.5-3B-Instruct"}, None),  # of an older version
        ("models/here", {"model": "models/here", "model_sha256": "commit 0a1b"}, None),  # a folder is there now
        ("/home/me/models/x", {"model": "/home/me/models/x"}, None),
        ("org/cached", {"model": "org/cached"}, "org/cached"),
        ("org/cached", None, "org/cached"),  # of an adapter
        ("gpt2", {"model": "gpt2", "model_sha256": "commit 0a1b"}, "gpt2"),
        (None, None, None),
    ],
)
def test_only_a_model_of_the_hub_is_a_base_model(tmp_path, monkeypatch, base, record, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/here").mkdir(parents=True)
    snapshot = tmp_path / "hub/models--org--cached/snapshots/0a1b/config.json"
    write_jsonl(snapshot, [{}])
    (tmp_path / "hub/models--org--cached/refs").mkdir()
    (tmp_path / "hub/models--org--cached/refs/main").write_text("0a1b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert hub_id(base, record) == expected


def test_a_card_holds_accuracies_of_this_very_model_alone(tmp_path):
    """Those of another base under the same name, of another adapter, and of training data as what they are."""
    model, base = {"model_sha256": "m", "base_sha256": "b"}, {"model": "starter_model", "model_sha256": "b"}
    models = [("mine", "m", "b"), ("other-base", "m", "x"), ("base", "b", None), ("same-name", "z", None)]
    results = {"strict": {"accuracy": 0.5, "low": 0.4, "high": 0.6}, "questions": 9, "samples_per_question": 1}
    results |= {"lenient": results["strict"], "truncated": 0.0}
    for number, (name, weights, under) in enumerate(models):
        settings = {"model": "starter_model", "model_sha256": weights, "data": "d.jsonl", "data_sha256": "d"}
        settings |= {"temperature": 0, "max_tokens": 9, **({"base_sha256": under} if under else {})}
        (tmp_path / f"{number}-{name}.json").write_text(json.dumps({"settings": settings, "results": results}))
    (tmp_path / "unfinished.json").write_text(json.dumps({"settings": settings, "results": None}))
    record = base | {"train_data": {"path": "d.jsonl", "sha256": "d", "rows": 9}}
    found = find_results(model, record, sorted(tmp_path.glob("*.json")))
    assert [(each.path.stem, before) for each, before in found] == [("2-base", True), ("0-mine", False)]
    assert training_note(found[1][0], record) == " (training data)"


def test_a_whole_model_keeps_its_answers_and_loses_the_old_sampling_settings(tmp_path):
    """One that ships a repetition penalty, as Qwen2.5-Instruct does, and has never been a run."""
    model = tmp_path / "model"
    shutil.copytree(STARTER, model, ignore=shutil.ignore_patterns("*.py"))
    settings = json.loads((model / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.1}
    (model / "generation_config.json").write_text(json.dumps(settings))
    done = script(["export_model.py", "model", "--output_dir", "out"], tmp_path)
    assert done.returncode == 0, done.stderr
    questions = [row["question"] for row in rows(QUESTIONS, 3)]
    assert greedy(tmp_path / "out", questions) == greedy(model, questions)
    kept = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert kept["do_sample"] is False and "repetition_penalty" not in kept and kept["eos_token_id"] == [507]
    card = (tmp_path / "out/README.md").read_text()
    assert "Nothing was measured" in card and "of unrecorded origin" in card
    mode = (tmp_path / "out/model.safetensors").stat().st_mode
    assert mode == (tmp_path / "out/README.md").stat().st_mode


def test_public_repositories_and_refusals_of_the_hub(work, tmp_path):
    login = {"HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf"), **ONLINE}
    with Hub() as hub:
        hub.repositories["tester/open"] = Repository(private=False)
        command = ["export_model.py", "starter_model", "--output_dir", "exports/open", "--push_to_hub"]
        kept = script([*command, "tester/open"], work, HF_ENDPOINT=hub.url, **login)
        assert kept.returncode == 2 and "tester/open exists and is public" in kept.stderr, kept.stderr
        wrong = script([*command, "tester/x"], work, HF_ENDPOINT=hub.url, **{**login, "HF_TOKEN": "hf_wrong0token"})
        assert wrong.returncode == 2 and "the Hub did not take it" in wrong.stderr
        assert "hf_wrong0token" not in wrong.stdout + wrong.stderr and "Traceback" not in wrong.stderr
        assert list(hub.repositories) == ["tester/open"] and not (work / "exports/open").exists()
        shared = script([*command, "tester/shared", "--public"], work, HF_ENDPOINT=hub.url, **login)
        assert shared.returncode == 0, shared.stderr
        assert not hub.repositories["tester/shared"].private and hub.repositories["tester/shared"].files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty: holds neither a model"),
        (["broken"], "broken: this model cannot be loaded"),
        (["model", "--output_dir", "empty"], "empty: exists and is not an export"),
        (["model", "--evals", "gone.json"], "gone.json: cannot be read"),
        (["model", "--push_to_hub", "a/b/c"], "--push_to_hub a/b/c: "),
        (["model", "--push_to_hub", "mine"], "--push_to_hub: not logged in"),
        (["model", "--public"], "--public: is for what is pushed"),
    ],
)
def test_refusals_leave_nothing_behind(tmp_path, arguments, message):
    for name in ("model", "broken"):
        shutil.copytree(STARTER, tmp_path / name, ignore=shutil.ignore_patterns("*.py"))
    (tmp_path / "broken/model.safetensors").write_bytes(b"not weights")
    (tmp_path / "empty").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    done = script(["export_model.py", *arguments], tmp_path, HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert {path.name for path in tmp_path.iterdir()} - {"hf", "exports"} == before
    assert not list(tmp_path.glob("exports/*")) and not list(tmp_path.glob("empty/*"))
