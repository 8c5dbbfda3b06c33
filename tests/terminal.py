"""A program in a real pseudo-terminal, and what its screen shows (pyte reads the codes as a terminal would)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pyte

from conftest import ROOT


class Terminal:
    """`instruct_model_repl.py` and the like, as a person has them before their eyes."""

    def __init__(self, command: list, cwd: Path, columns: int = 120, lines: int = 40, **environment: str) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=2000)
        self.stream = pyte.ByteStream(self.screen)
        self.fd, theirs = pty.openpty()
        self.screen.write_process_input = lambda data: os.write(self.fd, data.encode())  # "where is the cursor?"
        self.start = 0
        self.resize(columns, lines)
        env = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "HF_"))}
        env |= {"HF_HUB_OFFLINE": "1", "TERM": "xterm-256color", "XDG_STATE_HOME": str(cwd / "state"), **environment}
        for name in ("NO_COLOR", "COLUMNS", "LINES"):  # what the terminal of these tests is like
            env.pop(name, None)
        name, *arguments = (str(part) for part in command)
        self.process = subprocess.Popen(
            [sys.executable, ROOT / name, *arguments],
            **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
            cwd=cwd,
            env=env,
            preexec_fn=self._own_terminal,
        )
        os.close(theirs)

    @staticmethod
    def _own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def resize(self, columns: int, lines: int) -> None:
        self.screen.resize(lines, columns)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def enter(self, text: str) -> None:
        """Wait for the prompt, type, and press Enter."""
        self.wait_for(r"^>>>\s*\Z")
        self.start = len(self.screen.history.top) + self.screen.cursor.y
        self.type(text + "\r")

    def rows(self) -> list[str]:
        """The lines since the last that was entered, those that have left the screen at the top included."""
        gone = ["".join(line[i].data for i in range(self.screen.columns)) for line in self.screen.history.top]
        return [line.rstrip() for line in [*gone, *self.screen.display]][self.start :]

    def read(self, seconds: float) -> bool:
        """Let the program write for so long at most; False when it has left."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return True
        try:
            self.stream.feed(os.read(self.fd, 65536))
        except OSError:
            return False
        return True

    def wait_for(self, pattern: str, count: int = 1, timeout: float = 120) -> str:
        """Wait until the screen shows a pattern so many times; the text of screen and history."""
        deadline = time.time() + timeout
        while time.time() < deadline:
            shown = "\n".join(self.rows())
            if len(re.findall(pattern, shown, re.M)) >= count:
                return shown
            if not self.read(0.2):
                break
        raise AssertionError(f"no {pattern!r} x {count} on the screen:\n" + "\n".join(self.rows()))

    def leave(self, timeout: float = 20) -> int:
        """Wait for the program's end."""
        deadline = time.time() + timeout
        while self.read(0.1) and time.time() < deadline:
            pass
        return self.process.wait(timeout=timeout)


def children(pid: int) -> set[int]:
    """The processes under a process."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found |= {int(child) for child in (task / "children").read_text().split()}
    return found.union(*map(children, found)) if found else found


def gone(processes: set[int], timeout: float = 5) -> bool:
    """Whether the processes end in time; one that nobody has asked for its status since has ended, too."""
    deadline = time.time() + timeout
    while time.time() < deadline:
        states = []
        for pid in processes:
            with contextlib.suppress(OSError):
                states.append(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
        if set(states) <= {"Z"}:
            return True
        time.sleep(0.1)
    return False
