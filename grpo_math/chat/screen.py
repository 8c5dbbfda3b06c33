"""Answers on the screen: columns where the terminal is wide, one under the other where it is not.

What is still being written is drawn again and again in place, the last lines of each answer; what is finished is
printed once, whole. Where the output is no terminal, only that.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from grpo_math.terminal import printable

NARROWEST_COLUMN = 38
GAP = 2  # between columns
REST = 4  # lines of the terminal that an answer in the making leaves free


@dataclass
class Answer:
    """What a model has said so far; `end` is "" until it is "stop", "length", "interrupted" or "error"."""

    name: str
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    end: str = ""
    error: str = ""

    def foot(self) -> str:
        """The line under an answer."""
        if self.end == "error":
            return self.error
        words = {"": "...", "length": "cut at max_tokens", "interrupted": "interrupted"}
        parts = [
            words.get(self.end, ""),
            f"{self.tokens} tokens, {self.seconds:.1f} s" if self.end else "",
        ]
        return ", ".join(filter(None, parts))


def notice(line: str) -> None:
    """A line for the person, beside the answers."""
    print(printable(line), file=sys.stderr, flush=True)


class Screen:
    """Where answers are shown."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False, markup=False, emoji=False)
        self.drawn = (
            sys.stdout.isatty()
        )  # rich's own idea of it can be overruled by the environment

    @contextlib.contextmanager
    def watching(self, answers: list[Answer]) -> Iterator[Callable[[], None]]:
        """Show answers while they grow: call what is yielded after each change. They are printed whole at the end."""
        if not self.drawn:
            yield lambda: None
            print(self._plain(answers), flush=True)
            return
        from rich.live import Live

        with (
            _no_echo(),
            Live(
                console=self.console, auto_refresh=False, transient=True, vertical_overflow="crop"
            ) as live,
        ):
            yield lambda: live.update(self._draw(answers, self.console.height - REST), refresh=True)
        self.console.print(self._draw(answers))

    def _plain(self, answers: list[Answer]) -> str:
        if len(answers) == 1:
            return printable(answers[0].text)
        return "\n".join(
            f"[{printable(answer.name)}]\n{printable(answer.text)}\n" for answer in answers
        )

    def _draw(self, answers: list[Answer], height: int | None = None) -> Any:
        """Everything, or what fits into `height` lines: the end of each text."""
        from rich.table import Table

        width = (self.console.width - GAP * (len(answers) - 1)) // len(answers)
        if width >= NARROWEST_COLUMN:
            rows = [
                list(row)
                for row in zip(*(self._parts(a, width, height) for a in answers), strict=True)
            ]
        else:
            each = None if height is None else height // len(answers)
            rows = [
                [part]
                for answer in answers
                for part in self._parts(answer, self.console.width, each)
            ]
        table = Table.grid(expand=True, padding=(0, GAP, 0, 0), pad_edge=False)
        for _ in rows[0]:
            table.add_column(ratio=1, overflow="fold")
        for row in rows:
            table.add_row(*row)
        return table

    def _parts(self, answer: Answer, width: int, height: int | None) -> tuple[Any, Any, Any]:
        from rich.text import Text

        body = Text(printable(answer.text).strip("\n"))
        if height is not None:
            lines = body.wrap(self.console, width, overflow="fold")
            body = Text("\n").join(lines[-max(1, height - 2) :])
        foot = Text(printable(answer.foot()), style="red" if answer.end == "error" else "dim")
        return Text(printable(answer.name), style="bold"), body, foot


@contextlib.contextmanager
def _no_echo() -> Iterator[None]:
    """Keys that are pressed meanwhile are kept for the next prompt and not written into the drawing."""
    if not sys.stdin.isatty():
        yield
        return
    import termios

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
