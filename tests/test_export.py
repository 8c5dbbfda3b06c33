"""Exports of real checkpoints: the same answers elsewhere, a card that tells the truth, a token that is never shown."""

import json
import shlex
import shutil
import zipfile

import pytest
import yaml
from grpo_math.data.problems import sum_problems
from grpo_math.data.prompts import Asking, build_prompt
from grpo_math.data.styles import STYLES
from grpo_math.generation.backend import EngineOptions, Sampling
from grpo_math.generation.transformers_backend import TransformersBackend
from grpo_math.launch.arguments import parse_options, parse_trl_arguments
from grpo_math.launch.processes import machine_defaults
from grpo_math.launch.resume import differences
from grpo_math.launch.settle import Facts, settle_arguments
from grpo_math.models.loading import Loading, load_tokenizer
from grpo_math.models.source import resolve_model
from grpo_math.run_folder import build_record, read_record

from conftest import STARTER, read_rows, script, write_jsonl
from hub import TOKEN, Hub, Repository

QUESTIONS = 200
# The stand-in has the Hub's older storage of large files (git-lfs), and not Xet.
ONLINE = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
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
    trained = script(TRAIN, folder)
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

    # The command in it asks for the very run that was made.
    command = text.split("```bash\n")[1].split("```")[0].replace("\\\n", " ")
    python, name, *argv = shlex.split(command)
    assert (python, name) == ("python", "train_grpo.py")
    options = parse_options(argv, "")
    assert (options.model, options.task, options.prompt) == ("starter_model", "arithmetic", "answer_tag")
    given = parse_trl_arguments(options, machine_defaults()[0])
    args, model_args = settle_arguments(options, given, Facts(name="x", path=options.model))
    record = read_record(work / "outputs/lora/checkpoint-final")
    own = {key: record[key] for key in ("model", "model_sha256", "task", "prompt", "chat", "train_data")}
    rebuilt = build_record(args, model_args, {**own, "reward_funcs": options.reward_funcs})
    rebuilt["arguments"]["model_init_kwargs"] = given.model_init_kwargs
    assert differences(record, rebuilt) == []


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
