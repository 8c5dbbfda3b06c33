"""Reward functions and their registry.

Each takes TRL's call, `f(prompts=..., completions=..., answer=..., task=..., **columns)`, and returns one number per
completion. Whether an answer is right is asked of the task, never decided here. A reward of one's own is named by its
dotted path, `--reward_funcs accuracy my_module.my_reward`; it gets the same call.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_math.answers import Verdict, extract_strict
from grpo_math.errors import UsageError
from grpo_math.prompts import PromptStyle
from grpo_math.tasks import TASKS

RewardFunction = Callable[..., list[float | None]]

SHORTEST = 30  # characters: the length reward asks for some working, not for an essay


def completion_text(completion: str | list[dict[str, str]]) -> str:
    """The text of a completion, which TRL passes as messages for a chat model and as a string for a base model."""
    return completion if isinstance(completion, str) else "".join(message["content"] or "" for message in completion)


def graded(verdict: str) -> Callable[..., RewardFunction]:
    """1 for a right answer, else 0. `verdict` is "strict" (in the style's own format) or "lenient" (in any form)."""

    def for_style(style: PromptStyle, record: bool = False) -> RewardFunction:
        def reward(completions: list, answer: list[str], task: list[str], **call: Any) -> list[float]:
            verdicts = [
                TASKS[name].grade(completion_text(completion), gold, style.mark)
                for completion, gold, name in zip(completions, answer, task, strict=True)
            ]
            scores = [float(getattr(each, verdict)) for each in verdicts]
            if record and "log_extra" in call:  # a caller other than TRL has no logs
                record_verdicts(verdicts, scores, gold=answer, **call)
            return scores

        return reward

    return for_style


def record_verdicts(
    verdicts: list[Verdict],
    scores: list[float],
    gold: list[str],
    question: list[str],
    completion_ids: list[list[int]],
    log_extra: Callable[[str, list], None],
    log_metric: Callable[[str, float], None],
    **_: Any,
) -> None:
    """Write what was judged into TRL's table of completions, and the lengths of right and wrong ones to its metrics.

    The columns are called as in an evaluation's rows. TRL averages a metric over all its values of all processes, so
    one value per completion gives exact mean lengths in tokens; a step without right completions has no such metric.
    """
    tokens = [len(ids) for ids in completion_ids]
    columns = {"question": question, "gold": gold, "tokens": tokens}
    columns |= {field: [getattr(each, field) for each in verdicts] for field in ("answer", "strict", "lenient")}
    for column, values in columns.items():
        log_extra(column, values)
    for count, score in zip(tokens, scores, strict=True):
        log_metric(f"completions/mean_length_{'right' if score else 'wrong'}", count)


def format_reward(style: PromptStyle) -> RewardFunction:
    """1 for an answer in the style's own format with something in it, right or wrong, else 0."""

    def reward(completions: list, **_: Any) -> list[float]:
        return [float(extract_strict(completion_text(c), style.mark).rule != "none") for c in completions]

    return reward


def length(style: PromptStyle) -> RewardFunction:
    """-1 for a completion under 30 characters, else 0: for models that should show their working."""

    def reward(completions: list, **_: Any) -> list[float]:
        return [-1.0 if len(completion_text(c).strip()) < SHORTEST else 0.0 for c in completions]

    return reward


GRADED = {"accuracy": graded("strict"), "accuracy_lenient": graded("lenient")}
REGISTRY: dict[str, Callable[[PromptStyle], RewardFunction]] = {
    **GRADED,
    "format": format_reward,
    "length": length,
}


def build_rewards(names: list[str], style: PromptStyle) -> list[RewardFunction]:
    """The reward functions called `names`, each carrying its name for the logs; the first that grades records.

    Raises:
        UsageError: a name is neither known nor an importable dotted path; the message lists the known ones.
    """
    rewards = []
    for name in names:
        if name in GRADED and not any(earlier in GRADED for earlier in names[: len(rewards)]):
            reward = GRADED[name](style, record=True)
        else:
            reward = REGISTRY[name](style) if name in REGISTRY else _imported(name)
        if name in REGISTRY:
            reward.__name__ = name
        rewards.append(reward)
    return rewards


def _imported(name: str) -> RewardFunction:
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise UsageError(
            f"--reward_funcs: unknown reward {name!r}: known rewards are {', '.join(REGISTRY)}, "
            "or give the dotted path of your own function"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        reward = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"--reward_funcs: cannot import {name!r}: {error}") from error
    if not callable(reward):
        raise UsageError(f"--reward_funcs: {name!r} is not a function")
    return reward
