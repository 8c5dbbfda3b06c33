"""Prompt styles: how a question becomes a prompt, how the answer is marked, where generation stops.

A style is chosen with `--prompt NAME`. A run records it, and whoever asks the run's model reads it
there. Models with a chat template get messages; models without one (most base models) get the same
words as plain text, with stop strings. `r1_zero` and `hash_raw` are plain text for every model.
Where a chat template has no system role, the system text stands at the head of the user's turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from grpo_math.errors import UsageError

Messages = list[dict[str, str]]
Prompt = Messages | str  # of a model with a chat template, or of one without

# What plain text looks like, and where a model that invents the next question is cut.
PLAIN_TEXT = "{system}\n\n{shot}Question: {question}\nAnswer:"
SHOT = "Question: {question}\nAnswer: {answer}\n\n"
PLAIN_TEXT_STOP = ("\nQuestion:", "\n\n\n")


@dataclass(frozen=True)
class PromptStyle:
    r"""One way to ask.

    system: tells the model how to mark its answer.
    mark: the rule in `grpo_math.grading.extraction` that finds a strictly formatted answer.
    example: a well-formed completion that answers 72.
    pattern: what a completion fits as a whole (`re.S`) when it keeps to the style to the letter.
    tags: the names of the tags that it consists of, in their order.
    opening: the part of the completion that the prompt has written already; `pattern` and `tags`
        are about the completion with it.
    chat: False for a style that is always plain text.
    text, stop: what plain text looks like, and the strings that cut it.
    shot: a question with its answer, shown before the real one.
    """

    name: str
    system: str
    mark: str
    example: str
    pattern: str
    tags: tuple[str, ...] = ()
    opening: str = ""
    chat: bool = True
    text: str = PLAIN_TEXT
    stop: tuple[str, ...] = PLAIN_TEXT_STOP
    shot: tuple[str, str] | None = None


# What may stand between two tags: anything but a tag of the answer.
_INSIDE = r"(?:(?!</?(?:think|reasoning|answer)>).)+"
_WORKING = "In May she sold 48 / 2 = 24, so 48 + 24 = 72."
_HASH = PromptStyle(
    name="hash",
    system="Think step by step, then end with the final number on a line of its own, "
    "as #### number",
    mark="hash",
    example="48 + 24 = 72\n#### 72",
    pattern=r".*\n#### [^\n#]+\n?",
)
_XML = PromptStyle(
    name="xml",
    system="Answer in this form:\n<reasoning>\nyour reasoning\n</reasoning>\n"
    "<answer>\nthe final answer\n</answer>",
    mark="answer_tag",
    example=f"<reasoning>\n{_WORKING}\n</reasoning>\n<answer>\n72\n</answer>",
    pattern=rf"<reasoning>\n{_INSIDE}\n</reasoning>\n<answer>\n{_INSIDE}\n</answer>\n?",
    tags=("reasoning", "answer"),
    stop=("</answer>", *PLAIN_TEXT_STOP),
)
_STYLES = (
    _HASH,
    # For comparison with results that were measured without a chat template.
    replace(
        _HASH,
        name="hash_raw",
        system="Think step by step. If the answer is 8, your last line should be #### 8",
        chat=False,
        text="{question}\n{system}\n",
    ),
    PromptStyle(
        name="answer_tag",
        system="Think step by step, then give the final number as <answer>number</answer>",
        mark="answer_tag",
        example="48 + 24 = 72\n<answer>72</answer>",
        pattern=rf".*<answer>{_INSIDE}</answer>\s*",
        tags=("answer",),
        stop=("</answer>", *PLAIN_TEXT_STOP),
    ),
    PromptStyle(
        name="think_answer",
        system="Reason first, then give the final answer: "
        "<think>your reasoning</think><answer>the answer</answer>",
        mark="answer_tag",
        example=f"<think>{_WORKING}</think><answer>72</answer>",
        pattern=rf"\s*<think>{_INSIDE}</think>\s*<answer>{_INSIDE}</answer>\s*",
        tags=("think", "answer"),
        stop=("</answer>", *PLAIN_TEXT_STOP),
    ),
    _XML,
    replace(
        _XML,
        name="xml_one_shot",
        shot=(
            "A box holds 6 eggs. How many eggs are in 4 boxes?",
            "<reasoning>\nEach box holds 6 eggs, and there are 4 boxes: 6 * 4 = 24.\n</reasoning>"
            "\n<answer>\n24\n</answer>",
        ),
    ),
    PromptStyle(
        name="boxed",
        system="Think step by step, then put the final answer within \\boxed{}",
        mark="boxed",
        example="48 + 24 = 72, so the answer is \\boxed{72}",
        pattern=r".*\\boxed\{.+\}[\s.$)\]\\*]*",
    ),
    # The template of DeepSeek-R1-Zero (arXiv 2501.12948, table 1), its first tag written already.
    PromptStyle(
        name="r1_zero",
        system="A conversation between User and Assistant. The user asks a question, and the "
        "Assistant solves it. The assistant first thinks about the reasoning process in the mind "
        "and then provides the user with the answer. The reasoning process and answer are enclosed "
        "within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> "
        "reasoning process here </think> <answer> answer here </answer>.",
        mark="answer_tag",
        example=f" {_WORKING} </think> <answer> 72 </answer>",
        pattern=rf"<think>{_INSIDE}</think>\s*<answer>{_INSIDE}</answer>\s*",
        tags=("think", "answer"),
        opening="<think>",
        chat=False,
        text="{system}\nUser: {question}\nAssistant: <think>",
        stop=("</answer>",),
    ),
    PromptStyle(
        name="plain",
        system="Think step by step, then end with a sentence of this form: The answer is ANSWER.",
        mark="phrase",
        example="48 + 24 = 72. The answer is 72.",
        pattern=r"(?:.*\s)?The answer is [^\n]+\n?",
    ),
)
STYLES = {style.name: style for style in _STYLES}


def get_style(name: str) -> PromptStyle:
    """Give the style called `name`; a `UsageError` lists the known ones when there is none."""
    if name not in STYLES:
        raise UsageError(f"unknown prompt style {name!r}: known styles are {', '.join(STYLES)}")
    return STYLES[name]


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


def build_prompt(style: PromptStyle, question: str, chat: bool, system_role: bool = True) -> Prompt:
    """Build the prompt for a question: messages when `chat`, else plain text."""
    if not chat:
        shot = ""
        if style.shot:
            shot = SHOT.format(question=style.shot[0], answer=style.shot[1])
        return style.text.format(system=style.system, shot=shot, question=question)
    turns = [("user", question)]
    if style.shot:
        turns = [("user", style.shot[0]), ("assistant", style.shot[1]), *turns]
    if system_role:
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
        text = start if style.system else start.lstrip("\n")
        for turn in turns[1:]:
            content = turn["content"]
            if turn["role"] == "user":
                content = style.text.format(system="", shot="", question=content)
            text += content
        return text
    if not style.system:
        start = [turn for turn in start if turn["role"] != "system"]
        for turn in start:
            turn["content"] = turn["content"].lstrip("\n")
    return [*start, *turns[1:]]


def stop_strings(chat: bool, style: PromptStyle | None = None) -> tuple[str, ...]:
    """Give the strings that end a completion; a chat model has its own end-of-turn token."""
    if chat:
        return ()
    return style.stop if style else PLAIN_TEXT_STOP


@dataclass(frozen=True)
class Asking:
    """All that shapes a prompt: a run records it, and whoever asks its model reads it there.

    `template` are arguments of the chat template, such as `enable_thinking`.
    """

    style: PromptStyle
    template: Mapping[str, object] = field(default_factory=dict)

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
    arguments = record.get("arguments") or {}
    return record.get("prompt"), dict(arguments.get("chat_template_kwargs") or {})
