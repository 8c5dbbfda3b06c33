"""Prompt styles: how a question becomes a prompt, how the answer is marked, where generation stops.

A style is chosen with `--prompt NAME`; a training run records it beside its checkpoints and the evaluators take it
from there, so that training and evaluation ask in the same words. Models with a chat template get messages, models
without one (most base models) get the same words as plain text with stop strings of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grpo_math.errors import UsageError


@dataclass(frozen=True)
class PromptStyle:
    """One way to ask.

    `system` tells the model how to mark its answer, `mark` names the rule in `grpo_math.answers` that a strictly
    formatted answer is found by, and `example` is a well-formed answer of 72.
    """

    name: str
    system: str
    mark: str
    example: str


STYLES = {
    style.name: style
    for style in (
        PromptStyle(
            name="hash",
            system="Think step by step, then end with the final number on a line of its own, as #### number",
            mark="hash",
            example="48 + 24 = 72\n#### 72",
        ),
        PromptStyle(
            name="answer_tag",
            system="Think step by step, then give the final number as <answer>number</answer>",
            mark="answer_tag",
            example="48 + 24 = 72\n<answer>72</answer>",
        ),
        PromptStyle(
            name="boxed",
            system="Think step by step, then put the final answer within \\boxed{}",
            mark="boxed",
            example="48 + 24 = 72, so the answer is \\boxed{72}",
        ),
    )
}

# What a plain-text prompt looks like, and where a model that goes on to invent the next question is cut.
PLAIN_TEXT = "{system}\n\nQuestion: {question}\nAnswer:"
PLAIN_TEXT_STOP = ("\nQuestion:", "\n\n\n")


def get_style(name: str) -> PromptStyle:
    """The style called `name`; a `UsageError` that lists the known ones when there is none."""
    if name not in STYLES:
        raise UsageError(f"unknown prompt style {name!r}: known styles are {', '.join(STYLES)}")
    return STYLES[name]


def build_prompt(style: PromptStyle, question: str, chat: bool) -> list[dict[str, str]] | str:
    """The prompt for `question`: chat messages when `chat`, else plain text."""
    if not chat:
        return PLAIN_TEXT.format(system=style.system, question=question)
    return [{"role": "system", "content": style.system}, {"role": "user", "content": question}]


def as_plain_text(messages: list[dict[str, str]]) -> str:
    """A conversation for a model without a chat template; a single question reads as `build_prompt` has it."""
    parts = {"system": "{}\n", "user": "Question: {}", "assistant": "Answer: {}\n"}
    return "\n".join([*(parts[m["role"]].format(m["content"]) for m in messages), "Answer:"])


def stop_strings(chat: bool) -> tuple[str, ...]:
    """Strings that end a completion; a chat model ends its turn with its own end-of-turn token."""
    return () if chat else PLAIN_TEXT_STOP


def prompt_token_ids(tokenizer: Any, prompts: list[list[dict[str, str]] | str]) -> list[list[int]]:
    """Token ids of each prompt, exactly as TRL's GRPOTrainer makes them; rendered text is never tokenized again."""
    if isinstance(prompts[0], str):
        return tokenizer(text=prompts)["input_ids"]
    return tokenizer.apply_chat_template(
        conversation=prompts, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
