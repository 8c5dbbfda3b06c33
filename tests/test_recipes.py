"""Every recipe: short, with a source for its numbers, of valid keys, and dry-run on its model's real architecture."""

from __future__ import annotations

import re

import pytest
import yaml
from grpo_math.data.problems import make_questions
from grpo_math.launch.arguments import parse_options, trl_parser

from conftest import ROOT, STARTER, write_jsonl

RECIPES = sorted(ROOT.glob("recipes/*.yaml"))
# The models' published architectures, and how many parameters each is known to have.
QWEN = {"max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "num_key_value_heads": 2}
QWEN_1_5B = QWEN | {
    **{"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "intermediate_size": 8960},
    **{"vocab_size": 151936, "tie_word_embeddings": True},
}
MODELS = {
    "Qwen/Qwen2.5-0.5B-Instruct": (
        494_032_768,
        QWEN_1_5B | {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "intermediate_size": 4864},
    ),
    "Qwen/Qwen2.5-1.5B-Instruct": (1_543_714_304, QWEN_1_5B),
    "Qwen/Qwen2-1.5B-Instruct": (1_543_714_304, QWEN_1_5B),
    "Qwen/Qwen2.5-Math-1.5B": (1_543_714_304, QWEN_1_5B | {"max_position_embeddings": 4096, "rope_theta": 1e4}),
    "Qwen/Qwen2.5-3B-Instruct": (
        3_085_938_688,
        QWEN_1_5B
        | {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "intermediate_size": 11008},
    ),
    "Qwen/Qwen2.5-7B-Instruct": (
        7_615_616_512,
        QWEN
        | {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "intermediate_size": 18944}
        | {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
    ),
    "meta-llama/Llama-2-7b-chat-hf": (
        6_738_415_616,
        {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008}
        | {"vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": False},
    ),
    "meta-llama/Llama-3.2-1B-Instruct": (
        1_235_814_400,
        {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "intermediate_size": 8192}
        | {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 5e5}
        | {"tie_word_embeddings": True},
    ),
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def stand_in(folder, name):
    """A model's folder without weights: the real architecture's configuration, and a tokenizer of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

    kind = Qwen2Config if name.startswith("Qwen/") else LlamaConfig
    kind(**MODELS[name][1]).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of every task where the recipes look for them."""
    folder = tmp_path_factory.mktemp("recipes")
    gsm8k = [{"question": f"Tom buys {n} boxes of 7 apples. How many?", "answer": str(7 * n)} for n in range(300)]
    write_jsonl(folder / "data/gsm8k/train.jsonl", [row | {"task": "gsm8k"} for row in gsm8k])
    math = [{"question": f"What is half of ${n}$?", "answer": rf"\frac{{{n}}}{{2}}"} for n in range(1, 600, 2)]
    write_jsonl(folder / "data/math/train.jsonl", [row | {"task": "math"} for row in math])
    for kind, name in (("sum", "arithmetic"), ("mixed", "mixed")):
        problems = make_questions(kind, 300, None, None, 3, seed=1)
        rows = [{"question": p.question, "answer": str(p.answer), "task": p.task} for p in problems]
        write_jsonl(folder / f"data/{name}/train.jsonl", rows)
    for name in MODELS:
        stand_in(folder / name, name)
    return folder


def test_recipes_cover_the_models():
    named = {yaml.safe_load(path.read_text())["model_name_or_path"] for path in RECIPES}
    assert named == MODELS.keys() | {"starter_model"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_short_says_where_its_numbers_come_from_and_has_valid_keys(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 45 and max(map(len, text.splitlines())) <= 120
    head = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert re.search(r"Not measured here|Found by trial", head)
    recipe = yaml.safe_load(text)
    options = parse_options(["--config", str(path)], "")
    known = {action.dest for action in trl_parser()._actions}
    assert options.recipe.keys() <= known
    assert recipe.keys() - options.recipe.keys() <= vars(options).keys()  # the project's own
    for weight in recipe.get("reward_weights", []):
        assert weight * 4 == int(weight * 4)  # halves and quarters add up exactly in floats


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_numbers_in_a_recipes_comment_are_those_in_the_recipe(path):
    text = path.read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    head = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert "Source: " in head or path.stem == "starter_arithmetic"
    for name, value in re.findall(r"(?<![-\w])([a-z]+_[a-z0-9_]+|beta|epsilon|temperature) (\d[\d.e-]*\d|\d)", head):
        assert float(value) == float(recipe[name]), name


def test_every_recipe_passes_a_dry_run_on_its_architecture(folder, monkeypatch, capsys):
    import train_grpo

    monkeypatch.chdir(folder)
    for path in RECIPES:
        model = yaml.safe_load(path.read_text())["model_name_or_path"]
        local = STARTER if model == "starter_model" else model
        monkeypatch.setattr("sys.argv", ["train_grpo.py", str(local), "--config", str(path), "--dry_run"])
        train_grpo.main()
        said = capsys.readouterr().out
        assert "GiB for each process" in said, path.name
        total, trained = (
            int(text.replace(",", "")) for text in re.search(r"([\d,]+) parameters, ([\d,]+) of them", said).groups()
        )
        if model in MODELS:
            adapter = total - MODELS[model][0]
            assert trained == (adapter or total), path.name
            assert bool(adapter) == ("use_peft: true" in path.read_text())
    assert not (folder / "outputs").exists()


def test_the_flags_that_the_documentation_names_exist():
    """But those of other repos, in the left column of the tables about them."""
    ours = (ROOT / "docs/hyperparameters.md").read_text(encoding="utf-8")
    coming = (ROOT / "docs/coming_from.md").read_text(encoding="utf-8")
    theirs = "\n".join("|".join(line.split("|")[2:]) for line in coming.splitlines() if line.startswith("|"))
    known = {f"--{action.dest}" for action in trl_parser()._actions}
    scripts = [path.read_text(encoding="utf-8") for path in (*ROOT.glob("*.py"), *ROOT.glob("grpo_math/**/*.py"))]
    known |= {flag for script in scripts for flag in re.findall(r'"(--\w+)"', script)} | {"--min_pass", "--max_pass"}
    known |= {"--config_file", "--num_processes"}  # of accelerate launch
    named = set(re.findall(r"--[a-z]\w*", ours + theirs))
    assert len(named) > 60 and named <= known, named - known
    for path in re.findall(r"recipes/\S+?\.yaml", ours + coming):
        assert (ROOT / path).is_file(), path
    defaults = {**vars(parse_options(["m"], "")), **vars(trl_parser().parse_args([]))}
    for name, value in (("learning_rate", 1e-6), ("num_train_epochs", 3), ("num_generations", 8), ("lora_dropout", 0)):
        assert defaults[name] == value
    for name, value in (("eval_size", 0), ("eval_steps", 50), ("give_up_after", 50), ("warmup_steps", 10)):
        assert defaults[name] == value
