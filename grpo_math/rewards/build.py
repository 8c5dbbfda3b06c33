"""Build the reward functions that `--reward_funcs` names, each with TRL's call.

`f(prompts=..., completions=..., answer=..., task=..., **columns)` returns a number per completion,
or None where it does not apply. A reward of the user's own is named by its dotted path,
`--reward_funcs accuracy my_module.my_reward`, and gets the same call.
"""

from __future__ import annotations

import inspect
import math
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from grpo_math.data.plugins import import_dotted
from grpo_math.data.styles import STYLES, PromptStyle
from grpo_math.errors import UsageError, first_line
from grpo_math.rewards.completion import Sample, Text, completion_text
from grpo_math.rewards.functions import REGISTRY

Rewards = list[float | None]
RewardFunction = Callable[..., Rewards]

GRADED = {"accuracy": "strict", "accuracy_lenient": "lenient"}  # the verdict that each goes by


def build_rewards(
    specs: list[str], style: PromptStyle, max_tokens: int | None = None
) -> list[RewardFunction]:
    """Build the functions that `specs` name; the first that grades also records its verdicts.

    `max_tokens` is the longest completion allowed, for rewards that look at how near it is.

    Raises:
        UsageError: a name is unknown or comes twice, a setting is unknown or no number, or a
            reward does not fit the style. The message lists what is known.
    """
    rewards: list[RewardFunction] = []
    names: list[str] = []
    recorder = next((name for name in map(_name, specs) if name in GRADED), None)
    for spec in specs:
        name = _name(spec)
        if name not in REGISTRY:
            rewards.append(_own_reward(spec))
            names.append(rewards[-1].__name__)
            continue
        if name == "xml_count" and not style.tags:
            tagged = ", ".join(each.name for each in STYLES.values() if each.tags)
            raise UsageError(
                f"--reward_funcs: xml_count: prompt style {style.name!r} has no tags; {tagged} have"
            )
        if name in names:
            raise UsageError(f"--reward_funcs: {name!r} is given twice")
        names.append(name)
        settings = _settings(name, spec)
        record = GRADED[name] if name == recorder else None
        rewards.append(_reward(name, settings, style, max_tokens, record))
    return rewards


def graded_place(specs: list[str]) -> int | None:
    """Give the place, among the reward functions, of the first that says what is right."""
    places = [place for place, spec in enumerate(specs) if _name(spec) in GRADED]
    return places[0] if places else None


def _name(spec: str) -> str:
    return spec.partition(":")[0]


def _reward(
    name: str,
    settings: dict[str, float],
    style: PromptStyle,
    max_tokens: int | None,
    record: str | None,
) -> RewardFunction:
    """Make the function that TRL calls; `record` is the verdict that the logs go by."""

    def reward(
        completions: list[Text],
        answer: list[str],
        task: list[str],
        question: list[str] | None = None,
        completion_ids: list[list[int]] | None = None,
        **call: Callable[..., None],
    ) -> Rewards:
        questions = question or [""] * len(completions)
        ids = completion_ids or [[]] * len(completions)
        samples = []
        for each in zip(completions, questions, answer, task, ids, strict=True):
            text, asked, gold, of, tokens = each
            sample = Sample(completion_text(text), asked, gold, of, style, len(tokens), max_tokens)
            samples.append(sample)
        if record and "log_extra" in call:  # a caller other than TRL has no logs
            record_verdicts(samples, record, call["log_extra"], call["log_metric"])
        return [REGISTRY[name](sample, **settings) for sample in samples]

    reward.__name__ = name
    return reward


def record_verdicts(
    samples: list[Sample],
    verdict: str,
    log_extra: Callable[[str, list], None],
    log_metric: Callable[[str, float], None],
) -> None:
    """Write what was judged into TRL's table of completions, and lengths to its metrics.

    The columns are called as in an evaluation's rows. TRL averages a metric over all its values of
    all processes, so one value per completion gives exact mean lengths in tokens; a step without
    right completions has no such metric.
    """
    for column in ("question", "gold", "tokens"):
        log_extra(column, [getattr(sample, column) for sample in samples])
    for column in ("extracted", "strict", "lenient"):
        log_extra(column, [getattr(sample.verdict, column) for sample in samples])
    for sample in samples:
        right = "right" if getattr(sample.verdict, verdict) else "wrong"
        log_metric(f"completions/mean_length_{right}", sample.tokens)


def _settings(name: str, spec: str) -> dict[str, float]:
    """Read what stands behind the colon of `accuracy:wrong=-1`."""
    known = [key for key in inspect.signature(REGISTRY[name]).parameters if key != "sample"]
    settings: dict[str, float] = {}
    text = spec.partition(":")[2]
    for part in text.split(",") if text else []:
        key, _, value = part.partition("=")
        if key not in known:
            has = f"has {', '.join(known)}" if known else "has none"
            raise UsageError(f"--reward_funcs {spec}: unknown setting {key!r}; {name} {has}")
        try:
            settings[key] = float(value)
        except ValueError as error:
            message = f"--reward_funcs {spec}: {key} must be a number, got {value!r}"
            raise UsageError(message) from error
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


def guarded_reward(path: str, reward: RewardFunction) -> RewardFunction:
    """Make a user's reward end a run in one line, and name it while a run waits for it."""
    function = getattr(reward, "func", reward)  # of a functools.partial
    call_method = getattr(type(reward), "__call__", None)  # noqa: B004
    is_async = any(map(inspect.iscoroutinefunction, (function, call_method)))
    if is_async or hasattr(reward, "parameters"):
        return reward  # TRL awaits it, or moves it to the GPU

    def guarded(completions: list[Text], **call: object) -> Rewards:
        try:
            with announced(f"--reward_funcs {path}"):
                values = reward(completions=completions, **call)
        except Exception as error:  # a user's function fails in any way
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {first_line(error)}"
            place = f"{where.filename}, line {where.lineno}"
            raise UsageError(f"--reward_funcs {path}: {said} ({place})") from error
        return _checked(values, len(completions), f"--reward_funcs {path}")

    guarded.__name__ = getattr(function, "__name__", type(reward).__name__)  # for its metrics
    return guarded


def _checked(values: Rewards, count: int, what: str) -> Rewards:
    try:
        values = [None if value is None else float(value) for value in values]
    except (TypeError, ValueError) as error:
        message = f"{what}: must return a list of one number for each completion ({error})"
        raise UsageError(message) from error
    if len(values) != count:
        raise UsageError(
            f"{what}: returned {len(values)} values for {count} completions; it must return one "
            "for each"
        )
    for place, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            raise UsageError(
                f"{what}: returned {value} for completion {place}; where it does not apply, return "
                "None"
            )
    return values


@contextmanager
def announced(what: str, every: float = 60) -> Iterator[None]:
    """Say what is being waited for, once `every` so many seconds."""
    done = threading.Event()

    def announce() -> None:
        waited = 0.0
        while not done.wait(every):
            waited += every
            print(f"{what}: still at work after {waited:.0f} s", file=sys.stderr, flush=True)

    threading.Thread(target=announce, daemon=True).start()
    try:
        yield
    finally:
        done.set()
