"""Objects of the user's own, named on the command line by their dotted path, such as `my_module.my_reward`."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpo_math.errors import UsageError, first_line


def import_dotted(path: str, flag: str) -> Any:
    """What `module.name` stands for; modules are looked for in the current folder too.

    Raises:
        UsageError: there is no such module, it fails, or it has no such name; the message names the flag.
    """
    module, _, name = path.rpartition(".")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's module may fail in any way while it is imported
        raise UsageError(f"{flag}: cannot import {path!r}: {first_line(error)}") from error


def guarded_reward(path: str, reward: Callable[..., Any]) -> Callable[..., Any]:
    """A user's reward function whose mistakes end a run in one line, and which is named while a run waits for it."""
    function = getattr(reward, "func", reward)  # of a functools.partial
    call_method = getattr(type(reward), "__call__", None)  # noqa: B004
    if any(map(inspect.iscoroutinefunction, (function, call_method))) or hasattr(
        reward, "parameters"
    ):
        return reward  # TRL awaits it, or moves it to the GPU

    def guarded(completions: list, **call: Any) -> list[float | None]:
        try:
            with announced(f"--reward_funcs {path}"):
                values = reward(completions=completions, **call)
        except Exception as error:  # a user's function fails in any way
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {first_line(error)}"
            raise UsageError(
                f"--reward_funcs {path}: {said} ({where.filename}, line {where.lineno})"
            ) from error
        return _checked(values, len(completions), f"--reward_funcs {path}")

    guarded.__name__ = getattr(
        function, "__name__", type(reward).__name__
    )  # what its metrics are called
    return guarded


def _checked(values: Any, count: int, what: str) -> list[float | None]:
    try:
        values = [None if value is None else float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{what}: must return a list of one number for each completion ({error})"
        ) from error
    if len(values) != count:
        raise UsageError(
            f"{what}: returned {len(values)} values for {count} completions; it must return one for each"
        )
    for place, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            raise UsageError(
                f"{what}: returned {value} for completion {place}; where it does not apply, return None"
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
