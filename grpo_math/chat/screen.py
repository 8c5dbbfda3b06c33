"""Answers on the screen: columns where the terminal is wide, one under the other where it is not.

A growing answer is drawn again and again in place, its last lines alone. A finished one is printed
once, whole. Where the output is no terminal, only that is done.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo_math.terminal import printable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

NARROWEST_COLUMN = 37
GAP = 2  # between columns
REST = 4  # lines of the terminal that an answer in the making leaves free
Said = str | Sequence[tuple[str, ...]]  # lines, or rows of cells
# By these variables one knows a terminal that wraps its lines anew when it gets narrower.
REWRAPS = {"TMUX", "VTE_VERSION", "KITTY_WINDOW_ID", "WT_SESSION", "TERM_PROGRAM"}


@dataclass(frozen=True)
class Answer:
    """What a model has said after so many seconds.

    `end` is "" until it is "stop", "length", "interrupted" or "error". `tokens` is None where a
    server does not count them.
    """

    name: str
    text: str = ""
    tokens: int | None = None
    seconds: float = 0.0
    end: str = ""
    error: str = ""

    def foot(self) -> str:
        """Give the line under an answer."""
        if self.end in ("", "error"):
            return self.error or "..."
        ended = {"length": "cut at max_tokens, ", "interrupted": "interrupted, "}.get(self.end, "")
        count = "unknown" if self.tokens is None else self.tokens
        return f"{ended}{count} tokens, {self.seconds:.1f} s"


def notice(line: str) -> None:
    """Print a line for the person, beside the answers."""
    print(printable(line), file=sys.stderr, flush=True)


class Screen:
    """Where answers are shown."""

    def __init__(self) -> None:
        from rich.console import Console

        self.drawn = sys.stdout.isatty()  # rich's idea of it can be overruled by the environment
        width = None if self.drawn else 10_000
        self.console = Console(highlight=False, markup=False, emoji=False, width=width)
        self.frame = (0, 0)  # lines and columns of the drawing that the next one replaces

    @contextlib.contextmanager
    def watching(self, answers: list[Answer]) -> Iterator[Callable[[], None]]:
        """Show answers while they grow: call what is yielded after each change of the list."""
        if not self.drawn:
            yield lambda: None
            text = answers[0].text
            if len(answers) > 1:
                text = "\n".join(f"[{each.name}]\n{each.text}\n" for each in answers)
            print(printable(text), flush=True)
            return
        _quiet(True)
        try:
            yield lambda: self._draw(answers, self.console.height - REST)
        finally:
            self._draw(answers)
            _quiet(False)

    def say(self, said: Said) -> None:
        """Print lines, or rows in columns, which a terminal has wrapped at words."""
        if isinstance(said, str):
            print(printable(said), flush=True)
            return
        with self.console.capture() as text:
            self.console.print(_grid([list(map(printable, row)) for row in said]))
        for line in text.get().splitlines():
            print(line.rstrip(), flush=True)

    def _draw(self, answers: list[Answer], height: int | None = None) -> None:
        """Draw over the last drawing what fits into `height` lines, or for good all there is."""
        width, rows = self.console.size
        with self.console.capture() as drawing:
            self.console.print(self._side_by_side(answers, height))
        lines = drawing.get().splitlines()
        end, drawn = "\x1b[?25h\n", 0
        if height is not None:
            lines = lines[: height and rows - 1]
            end, drawn = "\x1b[?25l", len(lines)  # the cursor is hidden meanwhile
        text = self._erase() + "\n".join(lines) + end
        # Ctrl-C in the middle of it would lose what the terminal has not taken yet.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        sys.stdout.write(text)
        sys.stdout.flush()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self.frame = (drawn, width)

    def _erase(self) -> str:
        """Give the codes that lead back to the first line of the drawing and clear all below."""
        (lines, width), self.frame = self.frame, (0, 0)
        if REWRAPS & os.environ.keys():
            lines *= max(1, -(-width // self.console.width))  # each line takes as many rows now
        return f"\r\x1b[{lines - 1}A\x1b[J" if lines > 1 else "\r\x1b[J"

    def _side_by_side(self, answers: list[Answer], height: int | None = None) -> Table:
        """Lay out all answers, or the ends of their texts that fit into `height` lines."""
        width = self.console.width // len(answers) - GAP
        beside = width >= NARROWEST_COLUMN
        if not beside:
            width, height = self.console.width, height and height // len(answers)
        columns = [self._parts(answer, width, height) for answer in answers]
        if not beside:
            columns = [list(itertools.chain(*columns))]
        return _grid(list(zip(*columns, strict=True)), ratio=1)

    def _parts(self, answer: Answer, width: int, height: int | None) -> list[Text]:
        """Give name, text and foot of an answer, the text cut to its last lines."""
        from rich.text import Text

        body = Text(printable(answer.text).strip("\n"))
        if height is not None:
            lines = body.wrap(self.console, width, overflow="fold")
            body = Text("\n").join(lines[-max(1, height - 2) :])
        foot = Text(printable(answer.foot()), style="red" if answer.error else "dim")
        return [Text(printable(answer.name), style="bold"), body, foot]


def _grid(rows: Sequence[Sequence[Text | str]], ratio: int | None = None) -> Table:
    """Give a table without lines; with a `ratio` its columns share the whole width."""
    from rich.table import Table

    grid = Table.grid(expand=ratio is not None, padding=(0, 0, 0, GAP), pad_edge=ratio is None)
    for _ in rows[0]:
        grid.add_column(ratio=ratio, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _quiet(on: bool) -> None:
    """Keep keys that are pressed out of the drawing (they wait for the next prompt), or show them.

    Nor does Ctrl-C throw away then what of the drawing the terminal has not taken yet.
    """
    if sys.stdin.isatty():
        import termios

        settings = termios.tcgetattr(0)
        if on:
            settings[3] = settings[3] & ~termios.ECHO | termios.NOFLSH
        else:
            settings[3] = settings[3] & ~termios.NOFLSH | termios.ECHO
        termios.tcsetattr(0, termios.TCSANOW, settings)
