"""Prompt styles: in which words a question is asked, how its answer is marked, where it stops.

A style is chosen with `--prompt NAME`, or given as a YAML file or as the dotted path of a
`PromptStyle`. A run records it, and whoever asks the run's model reads it there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from grpo_math.data.plugins import import_dotted
from grpo_math.errors import UsageError, first_line
from grpo_math.grading.graders import grade_number

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
    user: the user's turn, around `{question}`.
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
    user: str = "{question}"
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


BUILT_IN = tuple(STYLES)


def get_style(name: str) -> PromptStyle:
    """Give the style called `name`, of a YAML file, or at a dotted path.

    Raises:
        UsageError: there is none, or it cannot work. The message lists the known ones.
    """
    if name in STYLES:
        return STYLES[name]
    if name.endswith((".yaml", ".yml")):
        return _register(_read_style(name), name)
    if "." in name:
        style = import_dotted(name, "--prompt")
        if not isinstance(style, PromptStyle):
            raise UsageError(f"--prompt: {name!r} is not a grpo_math.public.PromptStyle")
        return _register(style, name)
    known = ", ".join(STYLES)
    raise UsageError(
        f"unknown prompt style {name!r}: known styles are {known}; or give a .yaml file of your own"
    )


def _read_style(path: str) -> PromptStyle:
    """Read a style from YAML; what it leaves out is as in the built-in style of its mark."""
    import yaml

    try:
        said = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--prompt {path}: cannot be read ({first_line(error)})") from error
    if not isinstance(said, dict):
        raise UsageError(f"--prompt {path}: must be fields of a style, such as 'mark: hash'")
    model = {style.mark: style for style in reversed(_STYLES)}.get(said.get("mark", ""))
    if model is None:
        marks, got = ", ".join(sorted({style.mark for style in _STYLES})), said.get("mark")
        raise UsageError(f"--prompt {path}: 'mark' must be one of {marks}, got {got!r}")
    kinds = {field.name: type(getattr(model, field.name)) for field in fields(PromptStyle)}
    del kinds["name"]
    values: dict[str, Any] = {"shot": None}
    for key, value in said.items():
        if key not in kinds:
            raise UsageError(
                f"--prompt {path}: unknown field {key!r}; known are {', '.join(kinds)}"
            )
        is_text_list = isinstance(value, list) and all(isinstance(each, str) for each in value)
        if key in ("tags", "stop", "shot") and is_text_list:
            values[key] = tuple(value)
        elif key not in ("tags", "stop", "shot") and isinstance(value, kinds[key]):
            values[key] = value
        else:
            raise UsageError(f"--prompt {path}: {key!r} cannot be {value!r}")
    return replace(model, **values, name=Path(path).stem)


def _register(style: PromptStyle, path: str) -> PromptStyle:
    """Check a style of the user's own and make it known under a name that says its content."""
    shown = style.text if not style.chat else style.user
    if "{question}" not in style.user or "{question}" not in style.text:
        raise UsageError(f"--prompt {path}: no place for {{question}} in {shown!r}")
    if style.shot is not None and len(style.shot) != 2:
        raise UsageError(f"--prompt {path}: 'shot' must be a question and its answer")
    if not grade_number(style.example, "72", style.mark).strict:
        raise UsageError(
            f"--prompt {path}: 'example' must be a completion that answers 72 behind the mark "
            f"{style.mark!r}, got {style.example!r}"
        )
    if not re.fullmatch(style.pattern, style.opening + style.example, re.S):
        raise UsageError(f"--prompt {path}: 'example' does not fit 'pattern' {style.pattern!r}")
    content = json.dumps(asdict(replace(style, name="")), sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:6]
    style = replace(style, name=f"{style.name}-{digest}")
    return STYLES.setdefault(style.name, style)


def style_record(style: PromptStyle) -> dict[str, object]:
    """Give what a run records of its style: the name, and of a user's own all fields."""
    if style.name in BUILT_IN:
        return {"prompt": style.name}
    return {"prompt": style.name, "prompt_style": asdict(style)}


def know(own: Mapping[str, Any]) -> None:
    """Make a style known that a run has recorded as its user's own."""
    values = dict(own)
    for key in ("tags", "stop", "shot"):
        if values[key] is not None:
            values[key] = tuple(values[key])
    STYLES.setdefault(own["name"], PromptStyle(**values))
