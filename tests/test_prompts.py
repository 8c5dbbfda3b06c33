"""Prompt styles: what each asks and accepts, where a chat template lacks a role, and stop strings in training."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from grpo_math.data.prompts import Asking, asks_in_chat, build_prompt, stop_strings, takes_system_role
from grpo_math.data.styles import STYLES
from grpo_math.errors import UsageError
from grpo_math.grading.graders import grade_number
from grpo_math.launch.settle import stop_arguments
from grpo_math.rewards.completion import Sample
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import STARTER

# As in the models' own tokenizer_config.json, shortened to what they do with roles.
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
OLD_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
DROPS_IT = (
    "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['role'] }}] {{ m['content'] }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(STARTER)


def with_template(template):
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("template", [GEMMA_2, OLD_MISTRAL, DROPS_IT], ids=["gemma", "mistral", "drops"])
@pytest.mark.parametrize("style", [style for style in STYLES.values() if style.chat], ids=lambda style: style.name)
def test_where_there_is_no_system_role_the_user_says_it(style, template):
    tokenizer = with_template(template)
    assert not takes_system_role(tokenizer, {})
    (prompt,) = Asking(style).prompts(["How many?"], tokenizer)
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    assert text.count(style.system) == 1 and text.count("How many?") == 1
    assert [turn["role"] for turn in prompt] == (["user", "assistant", "user"] if style.shot else ["user"])


def test_a_template_with_a_system_role_keeps_it(tokenizer):
    assert takes_system_role(tokenizer, {})
    (prompt,) = Asking(STYLES["hash"]).prompts(["How many?"], tokenizer)
    assert prompt == build_prompt(STYLES["hash"], "How many?", chat=True)
    assert [turn["role"] for turn in prompt] == ["system", "user"]


@pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))
def test_plain_text_prompts(style):
    base = with_template(None)
    (prompt,) = Asking(style).prompts(["How many {braces}?"], base)
    assert isinstance(prompt, str) and style.system in prompt and "How many {braces}?" in prompt
    assert prompt.endswith((style.opening or "Answer:", style.system + "\n"))
    assert "{" not in prompt.replace("{braces}", "").replace("\\boxed{}", "")
    stop = stop_strings(False, style)
    assert stop and not stop_strings(True, style)
    # An answer of the style is cut off by none of its stop strings but at its own end.
    assert all(style.example.find(string) in (-1, len(style.example) - len(string)) for string in stop)
    if style.shot:
        assert prompt.index(style.shot[1]) < prompt.index("{braces}")


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("r1_zero", "\nUser: How many?\nAssistant: <think>"),
        ("hash_raw", "How many?\nThink step by step. If the answer is 8, your last line should be #### 8\n"),
    ],
)
def test_some_styles_are_plain_text_for_every_model(name, end, tokenizer):
    assert not asks_in_chat(STYLES[name], tokenizer) and asks_in_chat(STYLES["xml"], tokenizer)
    (prompt,) = Asking(STYLES[name]).prompts(["How many?"], tokenizer)
    assert prompt.endswith(end)


# A completion, and whether it answers 72 rightly in the style, fits it in substance, and fits it to the letter.
FORMS = [
    ("hash", "24 + 48 = 72\n#### 72", True, True, True),
    ("hash", "#### 72\n", True, True, False),
    ("hash", "24 + 48 = 72\n#### 72 clips", True, True, True),
    ("hash", "#### Step 1\n24 + 48 = 72\n#### 72", True, True, True),
    ("hash", "24 + 48\n#### 72\nas 24 + 48 is 72", True, False, False),
    ("hash", "24\n#### 24\n48\n#### 72", True, False, False),
    ("hash", "24 + 48 = 72\n**72**", False, False, False),
    ("answer_tag", "48 + 24 = 72, so <answer>72</answer>", True, True, True),
    ("answer_tag", "<answer>72</answer>.", True, True, False),
    ("answer_tag", "<answer>72</answer> because 48 + 24 = 72", True, False, False),
    ("answer_tag", "<answer>24</answer><answer>72</answer>", True, False, False),
    ("answer_tag", "<answer>number</answer>", False, False, False),
    ("answer_tag", "<answer>72 or 73</answer>", False, False, False),
    ("think_answer", "<think>24 in May and 48 in June.</think>\n<answer>72</answer>\n", True, True, True),
    ("think_answer", "So: <think>24 in May and 48 in June.</think> Then <answer>72</answer>", True, True, False),
    ("think_answer", "24 in May and 48 in June. <answer>72</answer>", True, False, False),
    ("think_answer", "<think></think><answer>72</answer>", True, False, False),
    ("think_answer", "<think>your reasoning</think><answer>72</answer>", True, False, False),
    ("think_answer", "<answer>72</answer><think>24 in May and 48 in June.</think>", True, False, False),
    ("think_answer", "<think>24 in May and 48 in June.<answer>72</answer></think>", False, False, False),
    ("xml", "<reasoning>\n24 in May and 48 in June.\n</reasoning>\n<answer>\n72\n</answer>\n", True, True, True),
    ("xml", "<reasoning>24 in May and 48 in June.</reasoning><answer>72</answer>", True, True, False),
    ("xml", "<reasoning>\n\n</reasoning>\n<answer>\n72\n</answer>", True, False, False),
    ("xml", "<think>24 in May and 48 in June.</think><answer>72</answer>", True, False, False),
    ("boxed", r"So 24 + 48 is $\boxed{72}$.", True, True, True),
    ("boxed", r"So 24 + 48 is $\boxed{72}$ clips in all.", True, True, False),
    ("boxed", r"It is \boxed{72}, as 24 clips in May and 48 in June make 72.", True, False, False),
    ("boxed", r"\boxed{24} and \boxed{72}", True, False, False),
    ("r1_zero", " 24 in May and 48 in June. </think> <answer> 72 </answer>", True, True, True),
    ("r1_zero", "<think> 24 in May and 48 in June. </think> <answer> 72 </answer>", True, False, False),
    ("r1_zero", " </think> <answer> 72 </answer>", True, False, False),
    ("r1_zero", " reasoning process here </think> <answer> 72 </answer>", True, False, False),
    ("plain", "24 + 48 = 72. The answer is 72.", True, True, True),
    ("plain", "24 + 48 = 72, so the final answer is: 72", True, True, False),
    ("plain", "The answer is 24. Then the answer is 72.", True, False, False),
    ("plain", "24 + 48 = 72", False, False, False),
]


@pytest.mark.parametrize(("name", "text", "right", "fits", "exactly"), FORMS)
def test_forms(name, text, right, fits, exactly):
    style = STYLES[name]
    sample = Sample(text, "She sold clips. How many?", "72", "gsm8k", style)
    assert grade_number(text, "72", style.mark).strict == right
    assert (sample.fits, sample.fits_exactly) == (fits, exactly)


def test_stop_arguments():
    arguments = SimpleNamespace(generation_kwargs=None, use_vllm=False, use_transformers_continuous_batching=False)
    assert stop_arguments((), arguments) is None
    assert stop_arguments(("a", "b"), arguments) == {"stop_strings": ["a", "b"]}
    arguments.generation_kwargs = {"stop_strings": ["mine"], "no_repeat_ngram_size": 3}
    assert stop_arguments(("a",), arguments) == arguments.generation_kwargs
    arguments.use_vllm, arguments.generation_kwargs = True, None
    assert stop_arguments(("a",), arguments) == {"stop": ["a"], "include_stop_str_in_output": True}
    arguments.use_transformers_continuous_batching = True
    with pytest.raises(UsageError, match="--use_transformers_continuous_batching: has no stop strings"):
        stop_arguments(("a",), arguments)


@pytest.fixture(scope="module", params=["own padding token", "padding is the end token"])
def trainer(request, tmp_path_factory):
    """A trainer on the starter model without its end token, which therefore goes on to the stop string or the cap."""
    from datasets import Dataset
    from grpo_math.training.trainer import MathGRPOTrainer
    from trl import GRPOConfig

    folder = tmp_path_factory.mktemp("stop")
    shutil.copytree(STARTER, folder / "base", ignore=shutil.ignore_patterns("*.py", "chat_template*"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    if request.param.startswith("padding"):
        tokenizer.pad_token = tokenizer.eos_token
    args = GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=16,
        num_generations=4,
        max_completion_length=12,
        generation_kwargs={"stop_strings": ["-"], "suppress_tokens": [tokenizer.eos_token_id]},
        gradient_checkpointing=False,
        mask_truncated_completions=True,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    questions = [f"Question: What is {n} minus 50?\nAnswer:" for n in range(8)]
    trainer = MathGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "base"),
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": question} for question in questions]),
        processing_class=tokenizer,
    )
    torch.manual_seed(0)
    batch = [{"prompt": question} for question in questions[:4] for _ in range(4)]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by train()
    return trainer, trainer._generate_and_score_completions(batch)


def test_a_stop_string_ends_a_completion_and_it_counts_as_whole(trainer):
    trainer, batch = trainer
    tokenizer = trainer.processing_class
    loss_mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    texts = [tokenizer.decode(ids[mask]) for ids, mask in zip(batch["completion_ids"], loss_mask, strict=True)]
    whole = [text for text in texts if "-" in text]
    assert 2 <= len(whole) < len(texts), texts
    assert all(text.endswith("-") and text.count("-") == 1 for text in whole)
    # Cut at the cap: masked out as a whole, as mask_truncated_completions asks; the others are not.
    assert all(text == "" for text in texts if text not in whole)
    clipped = trainer._metrics["train"]["completions/clipped_ratio"][-1]
    assert clipped == pytest.approx(1 - len(whole) / len(texts))


def test_the_loss_is_about_what_the_model_wrote_and_nothing_else(trainer):
    """Every token of the loss is one of the completion's, and an end token behind it is in the attention, not in it."""
    trainer, batch = trainer
    rows = zip(batch["completion_ids"], batch["completion_mask"], batch["tool_mask"], strict=True)
    for ids, attended, mine in rows:
        if not attended.any():
            continue
        length = int(attended.sum())
        assert int(ids[length - 1]) == trainer.eos_token_ids[0]
        assert mine[: length - 1].all() and not mine[length - 1]


def test_the_gradient_does_not_depend_on_the_token_behind_the_stop_string(trainer):
    trainer, batch = trainer

    def gradient(ids):
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, {**batch, "completion_ids": ids}).backward()
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])

    ends = batch["completion_mask"].bool() & ~batch["tool_mask"].bool()
    other = batch["completion_ids"].masked_fill(ends, 7)
    first = batch["completion_ids"].clone()
    first[:, 0] = 7
    ours = gradient(batch["completion_ids"])
    assert ends.any() and ours.norm() > 0
    assert torch.equal(gradient(other), ours) and not torch.equal(gradient(first), ours)


def test_without_stop_strings_there_is_nothing_to_mask(trainer, monkeypatch):
    trainer, _ = trainer
    monkeypatch.setattr(trainer, "stop", [])
    assert trainer._generate(["Question: What is 1 minus 50?\nAnswer:"] * 4)[2] is None


@pytest.mark.parametrize("padding", ["own", "end"])
def test_evaluation_counts_what_a_stop_string_ends_as_whole(padding, tmp_path):
    """At the cap too, and without the padding behind it, which may be the end token."""
    from grpo_math.generation.backend import EngineOptions, Sampling
    from grpo_math.generation.transformers_backend import TransformersBackend
    from grpo_math.models.loading import Loading
    from grpo_math.models.source import resolve_model

    tokenizer = with_template(None)
    if padding == "end":
        tokenizer.pad_token = tokenizer.eos_token
    source = resolve_model(str(STARTER))
    backend = TransformersBackend(source, Loading(), tokenizer, 100, EngineOptions())
    prompts = tokenizer([f"Question: What is {n} minus 50?\nAnswer:" for n in range(20)])["input_ids"]
    sampling = Sampling(n=4, temperature=1.0, top_p=1.0, top_k=0, max_tokens=4, seed=0, stop=("-",))
    completions = [each for samples in backend.generate(prompts, sampling) for each in samples]
    stopped = [each for each in completions if "-" in each.text]
    assert len(stopped) >= 5 and any(each.tokens == 4 for each in stopped)
    for each in stopped:
        assert each.finish_reason == "stop" and each.text.endswith("-")
        assert each.tokens == len(tokenizer(each.text)["input_ids"])
    assert any(each.finish_reason == "length" for each in completions if each not in stopped)
