"""Prompt styles of a user's own, and how styles read in the chat templates of five families of models."""

import json

import pytest
from grpo_math.data.prompts import Asking, recorded_asking
from grpo_math.data.styles import STYLES, get_style, style_record
from grpo_math.data.tasks import grade
from grpo_math.errors import UsageError

VERL = """\
system: ""
user: '{question} Let''s think step by step and output the final answer after "####".'
mark: hash
"""
QUESTION = "What is {a} in \\boxed{}?"  # braces of its own stay as they are

# Templates of the kinds that the families have, of my own writing.
TEMPLATES = {
    "ChatML": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "Llama 3": (
        "<|begin|>{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
    ),
    "Gemma": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "<bos>{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}</turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
    ),
    "Mistral": (
        "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}"
    ),
    "Qwen 3": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
}
HASH = STYLES["hash"].system
ASKED = QUESTION + ' Let\'s think step by step and output the final answer after "####".'
RENDERED = {
    ("ChatML", "hash"): f"<|im_start|>system\n{HASH}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n"
    "<|im_start|>assistant\n",
    ("ChatML", "own"): f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n",
    ("Llama 3", "hash"): f"<|begin|><|head|>system<|/head|>\n\n{HASH}<|eot|><|head|>user<|/head|>\n\n{QUESTION}<|eot|>"
    "<|head|>assistant<|/head|>\n\n",
    ("Llama 3", "own"): f"<|begin|><|head|>user<|/head|>\n\n{ASKED}<|eot|><|head|>assistant<|/head|>\n\n",
    ("Gemma", "hash"): f"<bos><turn>user\n{HASH}\n\n{QUESTION}</turn>\n<turn>model\n",
    ("Gemma", "own"): f"<bos><turn>user\n{ASKED}</turn>\n<turn>model\n",
    ("Mistral", "hash"): f"<s>[INST] {HASH}\n\n{QUESTION} [/INST]",
    ("Mistral", "own"): f"<s>[INST] {ASKED} [/INST]",
    ("Qwen 3", "hash"): f"<|im_start|>system\n{HASH}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ("Qwen 3", "own"): f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
}


def tokenizer_with(template):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template)


@pytest.fixture(autouse=True)
def styles_of_the_project():
    """Styles of a user's own are known from then on; other tests are to see the project's alone."""
    known = dict(STYLES)
    yield
    STYLES.clear()
    STYLES.update(known)


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "verl.yaml"
    path.write_text(VERL)
    return get_style(str(path))


@pytest.mark.parametrize(("family", "name"), RENDERED, ids=" ".join)
def test_a_style_reads_as_expected_in_each_familys_template(family, name, own):
    asking = Asking(own if name == "own" else STYLES[name], {"enable_thinking": False})
    tokenizer = tokenizer_with(TEMPLATES[family])
    (ids,) = asking.token_ids(asking.prompts([QUESTION], tokenizer), tokenizer)
    assert tokenizer.decode(ids) == RENDERED[family, name]


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("family", TEMPLATES)
def test_every_style_asks_the_whole_question_once_in_every_template(family, name):
    tokenizer = tokenizer_with(TEMPLATES[family])
    asking = Asking(STYLES[name])
    (ids,) = asking.token_ids(asking.prompts([QUESTION], tokenizer), tokenizer)
    text = tokenizer.decode(ids)
    assert text.count(QUESTION) == 1 and STYLES[name].system in text


def test_a_published_raw_prompt_is_three_lines(tmp_path):
    path = tmp_path / "raw.yaml"
    path.write_text('system: ""\nchat: false\ntext: "Q: {question}\\nA:"\nmark: hash\nstop: ["Q:"]\n')
    style = get_style(str(path))
    tokenizer = tokenizer_with(TEMPLATES["ChatML"])
    assert Asking(style).prompts(["2 + 2?"], tokenizer) == ["Q: 2 + 2?\nA:"]
    assert Asking(style).stop(tokenizer) == ("Q:",)


def test_a_style_is_known_from_its_record_and_named_by_its_content(own, monkeypatch):
    record = json.loads(json.dumps({**style_record(own), "arguments": {}}))
    monkeypatch.delitem(STYLES, own.name)
    name, template = recorded_asking(record)
    assert (get_style(name), template) == (own, {})
    assert grade({"question": "q", "answer": "72", "task": "gsm8k"}, own.example, own).strict
    assert style_record(STYLES["hash"]) == {"prompt": "hash"}


def test_two_styles_of_one_name_do_not_pass_for_each_other(tmp_path):
    names = set()
    for system in ("Think.", "Think hard."):
        (tmp_path / "mine.yaml").write_text(f"system: {system}\nmark: boxed\n")
        names.add(get_style(str(tmp_path / "mine.yaml")).name)
    assert len(names) == 2 and all(name.startswith("mine-") for name in names)


def test_a_style_at_a_dotted_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_styles.py").write_text(
        "from dataclasses import replace\nfrom grpo_math.public import get_style\n"
        "brief = replace(get_style('plain'), name='brief', system='Be brief.')\nnone = 3\n"
    )
    assert get_style("my_styles.brief").system == "Be brief."
    with pytest.raises(UsageError, match=r"is not a grpo_math\.public\.PromptStyle"):
        get_style("my_styles.none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mark: [", "cannot be read"),
        ("- a", "must be fields of a style"),
        ("system: x", "'mark' must be one of answer_tag, boxed, hash, phrase, got None"),
        ("mark: hash\ncolour: red", "unknown field 'colour'"),
        ("mark: hash\nsystem: 3", "'system' cannot be 3"),
        ("mark: hash\nstop: 'x'", "'stop' cannot be 'x'"),
        ("mark: hash\nuser: no place", "no place for {question}"),
        ("mark: hash\nshot: [one]", "'shot' must be a question and its answer"),
        ("mark: hash\nexample: so 72", "'example' must be a completion that answers 72"),
        ("mark: hash\npattern: 'x+'", "'example' does not fit 'pattern'"),
    ],
)
def test_what_is_wrong_in_a_style_file_is_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        get_style(str(path))
    assert message in str(error.value) and str(path) in str(error.value)


def test_a_style_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        get_style(str(tmp_path / "none.yaml"))
