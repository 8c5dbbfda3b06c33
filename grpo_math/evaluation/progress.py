"""Show that an evaluation lives: a bar on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

EVERY = 10  # seconds


class Live:
    """Counts completions as they end; `total` are all, of which `before` were there already.

    A backend calls it with the completions that have ended, and their tokens.
    """

    def __init__(self, total: int, before: int) -> None:
        self.total, self.before = total, before
        self.ended = self.tokens = self.saved_tokens = 0
        self.started = time.monotonic()
        self.over = threading.Event()
        self.bar: Progress | None = None

    def __enter__(self) -> Live:
        if sys.stdout.isatty():
            self.bar = _bar(self.total)
            self.bar.start()
            self.bar.update(self.bar.task_ids[0], completed=self.before)
        else:
            threading.Thread(target=self._speak, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.bar:
            self.bar.stop()

    def __call__(self, completions: int, tokens: int) -> None:
        self._count(self.ended + completions, self.tokens + tokens)

    def saved(self, completions: int, tokens: int) -> None:
        """Count all that was saved and the last batch's tokens; a batch may have begun anew."""
        self.saved_tokens += tokens
        self._count(completions, self.saved_tokens)

    def _count(self, ended: int, tokens: int) -> None:
        self.ended, self.tokens = min(ended, self.total - self.before), tokens
        if self.bar:
            done = self.before + self.ended
            self.bar.update(self.bar.task_ids[0], completed=done, speed=self.speed())

    def seconds(self) -> float:
        """Give the time since the first completion was begun."""
        return time.monotonic() - self.started

    def speed(self) -> str:
        """Say how many tokens are written a second."""
        return f"{self.tokens / self.seconds():,.0f} tokens/s"

    def line(self) -> str:
        """Say how far it is."""
        done = self.before + self.ended
        left = "?"
        if self.ended:
            left = f"{(self.total - done) * self.seconds() / self.ended:.0f} s"
        times = f"{self.seconds():.0f} s, {left} left"
        return f"  {done}/{self.total} completions  {self.speed()}  {times}"

    def _speak(self) -> None:
        while not self.over.wait(EVERY):
            print(self.line(), flush=True)


def _bar(total: int) -> Progress:
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    count = TextColumn("{task.completed:.0f}/{task.total:.0f} completions")
    speed = TextColumn("{task.fields[speed]}")
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    bar = Progress(count, BarColumn(), speed, *times, transient=True)
    bar.add_task("", total=total, speed="")
    return bar
