"""What is settled before the weights are loaded: the model, how it is asked, and what reaches the rewards."""

import ast
import json
import shutil

import pytest
from grpo_math.data.prompts import Asking
from grpo_math.data.styles import get_style
from grpo_math.errors import UsageError
from grpo_math.launch.arguments import parse_options, parse_trl_arguments
from grpo_math.launch.plan import Model, build_dataset, build_questions, choose_asking, collect_facts
from grpo_math.launch.settle import Facts, settle_arguments
from grpo_math.launch.training_data import TrainingData
from grpo_math.models.loading import Loading, load_tokenizer
from grpo_math.models.source import ModelSource
from transformers import AutoConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from conftest import ROOT, STARTER, script, write_jsonl

ROWS = [
    {"question": f"What is {n} plus 1?", "answer": str(n + 1), "task": "arithmetic", "id": str(n)} for n in range(9)
]
# A template with a mode that is on unless told otherwise, as Qwen3's has.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
MACHINE = {"bf16": False, "attn_implementation": "sdpa"}


@pytest.mark.parametrize(
    ("words", "model"),
    [
        ("--config r.yaml", "of/recipe"),
        ("mine --config r.yaml", "mine"),
        ("--config r.yaml --model_name_or_path mine", "mine"),
        ("--model_name_or_path=mine --config r.yaml", "mine"),
        ("--model_name_or_path mine", "mine"),
        ("--model-name-or-path=mine --config r.yaml", "mine"),
        ("mine --model_name_or_path mine --config r.yaml", "mine"),
        ("--model_name_or_path one --model_name_or_path two", "two"),
        ("--max_steps 3", None),
    ],
)
def test_the_model_that_the_command_line_names_is_the_one_that_is_trained(tmp_path, monkeypatch, words, model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("model_name_or_path: of/recipe\n")
    options = parse_options([*words.split(), "--output_dir", "x"], "")
    _, model_args = settle_arguments(options, parse_trl_arguments(options, MACHINE), Facts())
    assert options.model == model_args.model_name_or_path == model


@pytest.mark.parametrize(
    "words",
    [
        "mine --model_name_or_path other",
        "mine --config r.yaml --model_name_or_path=other",
        "mine --max_steps 1 --model-name-or-path other",
    ],
)
def test_two_models_are_refused(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("model_name_or_path: other\n")
    with pytest.raises(UsageError, match="MODEL mine and --model_name_or_path other: give one of the two"):
        parse_options(words.split(), "")


def test_a_model_that_is_named_by_its_flag_is_looked_for(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    command = ["train_grpo.py", "--config", "r.yaml", "--train_data", "train.jsonl", "--dry_run"]
    (tmp_path / "r.yaml").write_text(f"model_name_or_path: {STARTER}\n")
    done = script([*command, "--model_name_or_path", "/does/not/exist"], tmp_path)
    assert done.returncode == 2 and "/does/not/exist: no such folder" in done.stderr


def test_nothing_changes_the_arguments_once_they_are_settled():
    """But for the run's name, which its folder keeps from the first time on."""
    changed = []
    library = [path for path in (ROOT / "grpo_math").rglob("*.py") if path.stem != "settle"]
    for path in [ROOT / "train_grpo.py", *library]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                owner = ast.unparse(target.value) if isinstance(target, ast.Attribute) else ""
                if owner in ("args", "model_args", "given", "plan.args", "trainer.args", "self.args", "options"):
                    changed.append((path.name, ast.unparse(target)))
    assert changed == [("tracking.py", "args.run_name")]


def recorded(**record):
    return ModelSource("models/first", "first", record or None)


@pytest.mark.parametrize(
    ("flags", "source", "style", "template", "origin"),
    [
        ("", recorded(), "answer_tag", {}, "prompt style answer_tag, the default of task arithmetic"),
        ("", recorded(prompt="xml"), "xml", {}, "prompt style xml, the one that first was trained in"),
        ("--prompt hash", recorded(prompt="xml"), "hash", {}, "prompt style hash, as chosen"),
        (
            "",
            recorded(prompt="xml", arguments={"chat_template_kwargs": {"thinking": 1}}),
            "xml",
            {"thinking": 1},
            "was trained in; chat template with {'thinking': 1}",
        ),
        (
            """--chat_template_kwargs {"thinking":2}""",
            recorded(prompt="xml", arguments={"chat_template_kwargs": {"thinking": 1}}),
            "xml",
            {"thinking": 2},
            "chat template with {'thinking': 2}",
        ),
        ("""--chat-template-kwargs={"a-b":2}""", recorded(), "answer_tag", {"a-b": 2}, "with {'a-b': 2}"),
        ("--chat_template_kwargs {}", recorded(arguments={"chat_template_kwargs": {"a": 1}}), "answer_tag", {}, "task"),
    ],
)
def test_a_model_is_trained_on_as_it_was_trained(flags, source, style, template, origin):
    asking, line = choose_asking(parse_options(["m", *flags.split()], ""), ROWS, source)
    assert (asking.style.name, asking.template) == (style, template)
    assert origin in line


def test_a_style_and_its_origin_are_named_in_the_first_lines_and_recorded(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    shutil.copytree(STARTER, tmp_path / "first", ignore=shutil.ignore_patterns("*.py"))
    (tmp_path / "first/run.json").write_text('{"prompt": "xml", "reward_funcs": ["accuracy"]}')
    done = script(["train_grpo.py", "first", "--train_data", "train.jsonl", "--dry_run"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "asked        prompt style xml, the one that first was trained in\n" in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be a JSON object"),
        ("[1]", "must be a JSON object"),
        ("yes", "must be a JSON object"),
        ('{"tools": []}', "tools is no argument of a template"),
        ('{"chat_template": "x", "a": 1}', "chat_template is no argument of a template"),
        ('{"add_generation_prompt": false}', "add_generation_prompt is no argument of a template"),
    ],
)
def test_template_arguments_that_are_none_are_refused(text, message):
    with pytest.raises(UsageError, match=f"chat_template_kwargs.*: {message}"):
        choose_asking(parse_options(["m", "--chat_template_kwargs", text], ""), ROWS, recorded())


@pytest.fixture(scope="module")
def thinks(tmp_path_factory):
    """The starter model's tokenizer with such a template."""
    folder = tmp_path_factory.mktemp("thinks") / "model"
    shutil.copytree(STARTER, folder, ignore=shutil.ignore_patterns("*.py"))
    (folder / "chat_template.jinja").write_text(THINKS)
    return load_tokenizer(ModelSource(str(folder), "model", None), Loading())


@pytest.mark.parametrize("template", [{}, {"enable_thinking": False}])
def test_every_prompt_is_made_with_the_template_arguments(thinks, template):
    data = TrainingData(ROWS[:8], ROWS[8:])
    asking, model = (
        Asking(get_style("answer_tag"), template),
        Model(recorded(), AutoConfig.from_pretrained(STARTER), thinks),
    )
    questions = build_questions(data, asking, model)
    options = parse_options(["m", "--use_vllm", "true", "--max_completion_length", "10"], "")
    facts = collect_facts(model, asking, questions, "arithmetic")
    args, _ = settle_arguments(options, parse_trl_arguments(options, MACHINE), facts)

    trainer = GRPOTrainer.__new__(GRPOTrainer)  # TRL's own way from a prompt to its token ids
    trainer.processing_class, trainer.tools, trainer.chat_template = thinks, [], None
    trainer.environment_factories, trainer._is_vlm = None, False
    trainer.chat_template_kwargs = args.chat_template_kwargs or {}
    trained = trainer._tokenize_prompts(list(questions.dataset["prompt"]))[0]
    assert ("<think>" in thinks.decode(trained[0])) == bool(template)
    held_out = asking.prompts([ROWS[8]["question"]], thinks)
    assert questions.held_out_prompts == trainer._tokenize_prompts(held_out)[0]
    assert questions.longest_prompt == max(map(len, trained + questions.held_out_prompts))
    assert args.vllm_max_model_length == questions.longest_prompt + 10
    assert args.chat_template_kwargs == (template or None)


def test_rewards_get_every_field_that_a_row_has():
    rows = [dict(row) for row in ROWS[:3]]
    rows[0] |= {"solution": "so", "prompt": "mine", "images": None, "completions": "x"}
    rows[1] |= {"level": 3, "trainer_state": "y", "completion_ids": [1]}
    rows[2] |= {"level": 4, "image": "z.png", "tags": {"a": 1}}
    dataset = build_dataset(rows, [[{"role": "user", "content": row["question"]}] for row in rows])
    assert dataset["prompt"][1] == [{"role": "user", "content": "What is 1 plus 1?"}]
    assert dataset["id"] == ["0", "1", "2"] and dataset["solution"] == ["so", None, None]
    assert dataset["level"] == [None, 3, 4] and dataset["tags"] == [None, None, {"a": 1}]
    assert dataset["row_prompt"] == ["mine", None, None] and dataset["row_completions"] == ["x", None, None]
    assert dataset["row_image"] == [None, None, "z.png"] and dataset["row_trainer_state"] == [None, "y", None]
    assert dataset["row_completion_ids"] == [None, [1], None]
    assert {"images", "image", "completions", "completion_ids", "trainer_state"}.isdisjoint(dataset.column_names)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([{"level": 1}, {"level": "hard"}], "field 'level' of the rows: not of one type"),
        ([{"prompt": "a", "row_prompt": "b"}, {}], "fields 'prompt' and 'row_prompt' of the rows: give one"),
    ],
)
def test_fields_that_cannot_be_columns_are_named(fields, message):
    with pytest.raises(UsageError, match=message):
        build_dataset([{**ROWS[0], **each} for each in fields], ["a", "b"])


def test_rewards_are_called_with_them(tmp_path):
    own = [row | {"id": f"mine-{n}", "prompt": "p", "image": None} for n, row in enumerate(ROWS[:8])]
    own[5] |= {"solution": "s", "level": 5}
    write_jsonl(tmp_path / "train.jsonl", own)
    (tmp_path / "my.py").write_text(
        "import json\n"
        "def seen(completions, prompts, id, row_id, row_prompt, row_image, solution, level, question, **more):\n"
        "    rows = zip(prompts, id, row_id, row_prompt, row_image, solution, level, question, strict=True)\n"
        "    open('seen', 'a').write(''.join(json.dumps(row) + '\\n' for row in rows))\n"
        "    return [0.5 * (i % 2) for i in range(len(completions))]\n"
    )
    command = ["train_grpo.py", STARTER, "--train_data", "train.jsonl", "--output_dir", "run", "--report_to", "none"]
    command += ["--max_steps", 2, "--per_device_train_batch_size", 8, "--num_generations", 2]
    command += ["--gradient_accumulation_steps", 1, "--max_completion_length", 4, "--reward_funcs", "my.seen"]
    done = script(command, tmp_path)
    assert done.returncode == 0, done.stderr
    seen = {line[2]: line for line in map(json.loads, (tmp_path / "seen").read_text().splitlines())}
    assert seen.keys() == {f"mine-{n}" for n in range(8)}
    for name, (prompt, digest, _, row_prompt, image, solution, level, question) in seen.items():
        assert prompt[-1]["content"].endswith(question) and len(digest) == 12
        assert (row_prompt, image) == ("p", None)
        assert (solution, level) == (("s", 5) if name == "mine-5" else (None, None))
