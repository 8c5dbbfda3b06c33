"""The starter model is small, loads the usual way, and every loader splits text alike."""

import sys

import pytest
from grpo_math.data.problems import sum_problems
from grpo_math.data.prompts import Asking, build_prompt
from grpo_math.data.styles import STYLES
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import STARTER

TEXTS = [
    "Take -45 away from 9. What is left?",
    "<answer>-102</answer>",
    "The answer is 7.\n#### 1,234",
    "Añadir ½ — 數字 \U0001f600 \x00",
    "<|im_start|>user\nhi<|im_end|>\n",
]


def test_it_is_small():
    assert sum(path.stat().st_size for path in STARTER.iterdir() if path.is_file()) < 3_000_000
    assert 500_000 <= AutoModelForCausalLM.from_pretrained(STARTER).num_parameters() <= 1_000_000


@pytest.mark.parametrize("text", TEXTS)
def test_auto_tokenizer_splits_like_the_file_itself(text):
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    ids = tokenizer(text)["input_ids"]
    assert ids == Tokenizer.from_file(str(STARTER / "tokenizer.json")).encode(text).ids
    assert tokenizer.decode(ids) == text


def test_tokenizer_is_the_one_that_its_script_makes(tmp_path):
    sys.path.insert(0, str(STARTER))
    from make_starter_model import make_tokenizer

    made, kept = make_tokenizer(), AutoTokenizer.from_pretrained(STARTER)
    assert made.get_vocab() == kept.get_vocab()
    assert all(made(text)["input_ids"] == kept(text)["input_ids"] for text in TEXTS)
    assert made.chat_template == kept.chat_template


def test_digits_are_single_tokens_and_prompts_end_where_the_answer_begins():
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    assert [len(tokenizer(digit)["input_ids"]) for digit in "0123456789"] == [1] * 10
    prompt = build_prompt(STYLES["answer_tag"], sum_problems(1, -9, 9, 0)[0].question, chat=True)
    (ids,) = Asking(STYLES["answer_tag"]).token_ids([prompt], tokenizer)
    assert tokenizer.decode(ids).endswith("<|im_end|>\n<|im_start|>assistant\n")
