"""What may be shown on a screen, and by which process of a launch."""

from __future__ import annotations

import os
import re
import unicodedata

# Colours, cursor: gone whole, not just their ESC.
TERMINAL_COMMAND = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")


def printable(text: str) -> str:
    """Give a model's text without anything that a terminal would obey; white space stays.

    Dropped are commands of terminals and the Unicode categories C*: control characters, invisible
    formatting (such as turning the line right to left), lone surrogates.
    """
    text = TERMINAL_COMMAND.sub("", text)
    kept = (char if char in "\n\t" or not char.isspace() else " " for char in text)
    return "".join(char for char in kept if char in "\n\t" or unicodedata.category(char)[0] != "C")


def is_main_process() -> bool:
    """Tell whether this process is the one of its launch that prints and reports."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Print a line on the main process of a launch."""
    if is_main_process():
        print(line, flush=True)
