"""Objects of the user's own, named on the command line by their dotted path."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from grpo_math.errors import UsageError, first_line


def import_dotted(path: str, flag: str) -> Any:
    """Import what `module.name` stands for; modules are looked for in the current folder too.

    Raises:
        UsageError: there is no such module, it fails, or it has no such name.
    """
    module, _, name = path.rpartition(".")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's module may fail in any way while it is imported
        raise UsageError(f"{flag}: cannot import {path!r}: {first_line(error)}") from error
