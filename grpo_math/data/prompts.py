"""How a question becomes a prompt, in a style's words.

Models with a chat template get messages; models without one (most base models) get the same words
as plain text, with stop strings. `r1_zero` and `hash_raw` are plain text for every model. Where a
chat template has no system role, the system text stands at the head of the user's turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grpo_math.data.styles import PLAIN_TEXT_STOP, SHOT, PromptStyle, know
from grpo_math.errors import UsageError

Messages = list[dict[str, str]]
Prompt = Messages | str  # of a model with a chat template, or of one without


def asks_in_chat(style: PromptStyle, tokenizer: Any) -> bool:
    """Tell whether a model with this tokenizer is asked in messages, and not in plain text."""
    return style.chat and tokenizer.chat_template is not None


def takes_system_role(tokenizer: Any, template: Mapping[str, object]) -> bool:
    """Tell whether the chat template shows a system message; Gemma 2's refuses, others drop it."""
    probe = "the system message"
    messages = [{"role": "system", "content": probe}, {"role": "user", "content": "Hello"}]
    options = {**template, "tokenize": False, "add_generation_prompt": True}
    try:
        return probe in tokenizer.apply_chat_template(messages, **options)
    except Exception:  # a template raises what it likes
        return False


def fill(template: str, **values: str) -> str:
    """Put values into their `{places}`; other braces stay as they are."""
    places = "|".join(values)
    return re.sub(rf"\{{({places})\}}", lambda match: values[match[1]], template)


def build_prompt(style: PromptStyle, question: str, chat: bool, system_role: bool = True) -> Prompt:
    """Build the prompt for a question: messages when `chat`, else plain text."""
    asked = fill(style.user, question=question)
    if not chat:
        shot = ""
        if style.shot:
            shot = fill(SHOT, question=style.shot[0], answer=style.shot[1])
        text = fill(style.text, system=style.system, shot=shot, question=asked)
        without_system = not style.system and style.text.startswith("{system}")
        return text.lstrip("\n") if without_system else text
    turns = [("user", asked)]
    if style.shot:
        shown = fill(style.user, question=style.shot[0])
        turns = [("user", shown), ("assistant", style.shot[1]), *turns]
    if not style.system:
        pass
    elif system_role:
        turns.insert(0, ("system", style.system))
    else:
        turns[0] = ("user", f"{style.system}\n\n{turns[0][1]}")
    return [{"role": role, "content": content} for role, content in turns]


def build_conversation(
    style: PromptStyle, turns: Messages, chat: bool, system_role: bool = True
) -> Prompt:
    """Build the prompt for a conversation: the user's and the model's messages, the user's last.

    A single turn reads as `build_prompt` has it. A style whose `system` is empty has no system
    message.
    """
    start = build_prompt(style, turns[0]["content"], chat, system_role)
    if isinstance(start, str):
        text = start
        for turn in turns[1:]:
            content = turn["content"]
            if turn["role"] == "user":
                asked = fill(style.user, question=content)
                content = fill(style.text, system="", shot="", question=asked)
            text += content
        return text
    return [*start, *turns[1:]]


def stop_strings(chat: bool, style: PromptStyle | None = None) -> tuple[str, ...]:
    """Give the strings that end a completion; a chat model has its own end-of-turn token."""
    if chat:
        return ()
    return style.stop if style else PLAIN_TEXT_STOP


# What `apply_chat_template` takes for itself.
CALL_ARGUMENTS = {
    *("conversation", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "return_dict", "return_tensors", "padding", "truncation"),
    *("max_length", "return_assistant_tokens_mask", "tokenizer_kwargs"),
}


@dataclass(frozen=True)
class Asking:
    """All that shapes a prompt: a run records it, and whoever asks its model reads it there.

    `template` are arguments of the chat template, such as `enable_thinking`.
    """

    style: PromptStyle
    template: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taken := sorted(self.template.keys() & CALL_ARGUMENTS):
            raise UsageError(
                f"chat_template_kwargs: {', '.join(taken)} is no argument of a template, but of "
                "the call that fills it in; leave it out"
            )

    def stop(self, tokenizer: Any) -> tuple[str, ...]:
        """Give the strings that end a completion, for a model with this tokenizer."""
        return stop_strings(asks_in_chat(self.style, tokenizer), self.style)

    def prompts(self, questions: list[str], tokenizer: Any) -> list[Prompt]:
        """Build the prompts in the form that the tokenizer's model can be asked in."""
        chat = asks_in_chat(self.style, tokenizer)
        system_role = chat and takes_system_role(tokenizer, self.template)
        return [build_prompt(self.style, question, chat, system_role) for question in questions]

    def token_ids(self, prompts: list[Prompt], tokenizer: Any) -> list[list[int]]:
        """Give each prompt's token ids as TRL makes them: rendered text is not tokenized again."""
        if not prompts:
            return []
        if isinstance(prompts[0], str):
            return tokenizer(text=prompts)["input_ids"]
        options = {**self.template, "tokenize": True, "return_dict": True}
        return tokenizer.apply_chat_template(prompts, add_generation_prompt=True, **options)[
            "input_ids"
        ]


def recorded_asking(record: Mapping[str, Any] | None) -> tuple[str | None, dict[str, object]]:
    """Give the style's name and the chat template's arguments that a run's record says."""
    record = record or {}
    if "prompt_style" in record:
        know(record["prompt_style"])
    arguments = record.get("arguments") or {}
    return record.get("prompt"), dict(arguments.get("chat_template_kwargs") or {})
