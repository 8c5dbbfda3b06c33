"""Reward functions and their registry.

Each takes TRL's call, `f(prompts=..., completions=..., answer=..., task=..., **columns)`, and returns one number per
completion. Those of the project are made from the functions below, which judge one `Sample`; their keyword arguments
are set on the command line: `--reward_funcs accuracy:wrong=-1 length:short=50,near=0.1`. Whether an answer is right is
asked of the task, never decided here. A reward of one's own is named by its dotted path,
`--reward_funcs accuracy my_module.my_reward`; it gets the same call.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from grpo_math.data.plugins import guarded_reward, import_dotted
from grpo_math.data.prompts import STYLES, PromptStyle
from grpo_math.data.tasks import TASKS
from grpo_math.errors import UsageError
from grpo_math.grading.numbers import canonical_number
from grpo_math.rewards.completion import Sample, own_length, repeated_share

RewardFunction = Callable[..., list[float | None]]


def accuracy(sample: Sample, wrong: float = 0.0) -> float:
    """1 for a right answer in the style's own format, else `wrong`."""
    return 1.0 if sample.verdict.strict else wrong


def accuracy_lenient(sample: Sample, wrong: float = 0.0) -> float:
    """1 for a right answer in any recognisable form, else `wrong`."""
    return 1.0 if sample.verdict.lenient else wrong


def format_soft(sample: Sample) -> float:
    """1 for one answer in the style's format at the end, after reasoning in tags where the style has them, else 0."""
    return float(sample.fits)


def format_strict(sample: Sample) -> float:
    """1 for a completion that as a whole has the style's form to the letter, else 0."""
    return float(sample.fits_exactly)


def xml_count(sample: Sample) -> float:
    """The share of the style's tags in their places with something in them, less 0.001 for each character after all."""
    last = f"</{sample.style.tags[-1]}>"
    after = len(sample.text.rpartition(last)[2].strip()) if last in sample.text else 0
    return max(0.0, sample.tag_share - 0.001 * after)


def integer(sample: Sample) -> float:
    """1 when the one answer in the style's format is a whole number, else 0."""
    number = canonical_number(sample.answer or "")
    return float(number is not None and number.lstrip("-").isdigit())


def length(sample: Sample, short: float = 30.0, near: float = 0.2) -> float:
    """-1 for under `short` characters of text of its own; down to -1 in the last part, `near`, of the tokens allowed.

    The second is the soft overlong punishment of DAPO (arXiv 2503.14476, equation 13), with `near` its cache.
    """
    if own_length(sample.text, sample.question, sample.style.system) < short:
        return -1.0
    if not sample.max_tokens or not near:
        return 0.0
    return -min(1.0, max(0.0, sample.tokens / sample.max_tokens - (1 - near)) / near)


def cosine(
    sample: Sample,
    right_short: float = 1.0,
    right_long: float = 0.5,
    wrong_short: float = -1.0,
    wrong_long: float = -0.5,
) -> float:
    """Between two values along a half cosine from no tokens to all allowed (arXiv 2502.03373, section 4.1).

    Right answers should be short, and wrong ones are worth some searching: but neither repetition nor running into the
    limit counts as that.
    """
    share = min(1.0, sample.tokens / sample.max_tokens) if sample.max_tokens else 0.0
    if sample.verdict.strict:
        start, end = right_short, right_long
    else:
        start, end = wrong_short, wrong_long
        share = 0.0 if share == 1 else share * (1 - repeated_share(sample.text))
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def repetition(sample: Sample) -> float:
    """Minus the share of the text that has stood in it before: 0 to -1."""
    return -repeated_share(sample.text)


def closeness(sample: Sample) -> float:
    """1 for a right answer, at most 0.5 for one near it: by relative error, of polynomials by terms that are right."""
    if sample.verdict.strict:
        return 1.0
    return (
        0.0
        if sample.answer is None
        else TASKS[sample.task].closeness(sample.answer, sample.gold) / 2
    )


GRADED = {"accuracy": "strict", "accuracy_lenient": "lenient"}  # the verdict that each goes by
REGISTRY: dict[str, Callable[..., float]] = {
    "accuracy": accuracy,
    "accuracy_lenient": accuracy_lenient,
    "format": format_soft,
    "format_strict": format_strict,
    "xml_count": xml_count,
    "integer": integer,
    "length": length,
    "cosine": cosine,
    "repetition": repetition,
    "closeness": closeness,
}


def build_rewards(
    specs: list[str], style: PromptStyle, max_tokens: int | None = None
) -> list[RewardFunction]:
    """The reward functions that `specs` name, each carrying its name for the logs; the first that grades records.

    `max_tokens` is the longest completion allowed, for rewards that look at how near it is.

    Raises:
        UsageError: a name is neither known nor an importable dotted path, or comes twice; a setting is unknown or no
            number; a reward does not fit the style. The message lists what is known.
    """
    rewards: list[RewardFunction] = []
    recorded = False
    for spec in specs:
        name, _, settings = spec.partition(":")
        if name not in REGISTRY:
            rewards.append(_own_reward(spec))
            continue
        if name == "xml_count" and not style.tags:
            tagged = ", ".join(each.name for each in STYLES.values() if each.tags)
            raise UsageError(
                f"--reward_funcs: xml_count: prompt style {style.name!r} has no tags; {tagged} have"
            )
        if any(name == reward.__name__ for reward in rewards):
            raise UsageError(f"--reward_funcs: {name!r} is given twice")
        record = GRADED.get(name) if not recorded else None
        recorded = recorded or record is not None
        rewards.append(_reward(name, _settings(name, settings), style, max_tokens, record))
    return rewards


def _reward(
    name: str,
    settings: dict[str, float],
    style: PromptStyle,
    max_tokens: int | None,
    record: str | None,
) -> RewardFunction:
    """The function that TRL calls. `record` is the verdict by which the columns and lengths of the logs go."""

    def reward(
        completions: list,
        answer: list[str],
        task: list[str],
        question: list[str] | None = None,
        completion_ids: list[list[int]] | None = None,
        **call: Any,
    ) -> list[float | None]:
        samples = [
            Sample(completion_text(text), asked, gold, of, style, len(ids), max_tokens)
            for text, asked, gold, of, ids in zip(
                completions,
                question or [""] * len(completions),
                answer,
                task,
                completion_ids or [[]] * len(completions),
                strict=True,
            )
        ]
        if record and "log_extra" in call:  # a caller other than TRL has no logs
            record_verdicts(samples, record, call["log_extra"], call["log_metric"])
        return [REGISTRY[name](sample, **settings) for sample in samples]

    reward.__name__ = name
    return reward


def completion_text(completion: str | list[dict[str, str]]) -> str:
    """The text of a completion, which TRL passes as messages for a chat model and as a string for a base model."""
    return (
        completion
        if isinstance(completion, str)
        else "".join(message["content"] or "" for message in completion)
    )


def record_verdicts(
    samples: list[Sample],
    verdict: str,
    log_extra: Callable[[str, list], None],
    log_metric: Callable[[str, float], None],
) -> None:
    """Write what was judged into TRL's table of completions, and the lengths of right and wrong ones to its metrics.

    The columns are called as in an evaluation's rows. TRL averages a metric over all its values of all processes, so
    one value per completion gives exact mean lengths in tokens; a step without right completions has no such metric.
    """
    for column in ("question", "gold", "tokens"):
        log_extra(column, [getattr(sample, column) for sample in samples])
    for column in ("extracted", "strict", "lenient"):
        log_extra(column, [getattr(sample.verdict, column) for sample in samples])
    for sample in samples:
        right = getattr(sample.verdict, verdict)
        log_metric(f"completions/mean_length_{'right' if right else 'wrong'}", sample.tokens)


def _settings(name: str, text: str) -> dict[str, float]:
    """What stands behind the colon of `accuracy:wrong=-1`."""
    known = [key for key in inspect.signature(REGISTRY[name]).parameters if key != "sample"]
    settings = {}
    for part in text.split(",") if text else []:
        key, _, value = part.partition("=")
        if key not in known:
            has = f"has {', '.join(known)}" if known else "has none"
            raise UsageError(f"--reward_funcs {name}:{text}: unknown setting {key!r}; {name} {has}")
        try:
            settings[key] = float(value)
        except ValueError as error:
            raise UsageError(
                f"--reward_funcs {name}:{text}: {key} must be a number, got {value!r}"
            ) from error
    return settings


def _own_reward(path: str) -> RewardFunction:
    if "." not in path:
        raise UsageError(
            f"--reward_funcs: unknown reward {path!r}: known rewards are {', '.join(REGISTRY)}, "
            "or give the dotted path of your own function"
        )
    reward = import_dotted(path, "--reward_funcs")
    if not callable(reward):
        raise UsageError(f"--reward_funcs: {path!r} is not a function")
    return guarded_reward(path, reward)
