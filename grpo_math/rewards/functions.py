"""Reward functions: what one completion earns, as a number, and the registry of their names.

Whether an answer is right is asked of the task, never decided here. Their keyword arguments are set
on the command line: `--reward_funcs accuracy:wrong=-1 length:short=50,near=0.1`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from grpo_math.data.tasks import get_task
from grpo_math.grading.numbers import canonical_number
from grpo_math.rewards.completion import Sample, own_length, repeated_share


def accuracy(sample: Sample, wrong: float = 0.0) -> float:
    """Give 1 for a right answer in the style's own format, else `wrong`."""
    return 1.0 if sample.verdict.strict else wrong


def accuracy_lenient(sample: Sample, wrong: float = 0.0) -> float:
    """Give 1 for a right answer in any recognisable form, else `wrong`."""
    return 1.0 if sample.verdict.lenient else wrong


def format_soft(sample: Sample) -> float:
    """Give 1 for one answer in the style's format at the end, after reasoning in tags, else 0."""
    return float(sample.fits)


def format_strict(sample: Sample) -> float:
    """Give 1 for a completion that as a whole has the style's form to the letter, else 0."""
    return float(sample.fits_exactly)


def xml_count(sample: Sample) -> float:
    """Give the share of the style's tags in place, less 0.001 for each character after the last."""
    last = f"</{sample.style.tags[-1]}>"
    after = sample.text.rpartition(last)[2].strip() if last in sample.text else ""
    return max(0.0, sample.tag_share - 0.001 * len(after))


def integer(sample: Sample) -> float:
    """Give 1 when the one answer in the style's format is a whole number, else 0."""
    number = canonical_number(sample.answer or "")
    return float(number is not None and number.lstrip("-").isdigit())


def length(sample: Sample, short: float = 30.0, near: float = 0.2) -> float:
    """Give -1 under `short` characters of its own; down to -1 in the last part, `near`, of the cap.

    The second is the soft overlong punishment of DAPO (arXiv 2503.14476, equation 13), with `near`
    its cache.
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
    """Go along a half cosine from no tokens to all allowed (arXiv 2502.03373, section 4.1).

    Right answers should be short, and wrong ones are worth some searching: but neither repetition
    nor running into the limit counts as that.
    """
    share = min(1.0, sample.tokens / sample.max_tokens) if sample.max_tokens else 0.0
    if sample.verdict.strict:
        start, end = right_short, right_long
    else:
        start, end = wrong_short, wrong_long
        searched = share if share < 1 else 0.0
        share = searched * (1 - repeated_share(sample.text))
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def repetition(sample: Sample) -> float:
    """Give minus the share of the text that has stood in it before: 0 to -1."""
    return -repeated_share(sample.text)


def closeness(sample: Sample) -> float:
    """Give 1 for a right answer, at most 0.5 for one near it: by relative error, or right terms."""
    if sample.verdict.strict:
        return 1.0
    if sample.answer is None:
        return 0.0
    return get_task(sample.task).closeness(sample.answer, sample.gold) / 2


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
