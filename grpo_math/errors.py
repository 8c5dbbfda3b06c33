"""The one error that a user is meant to read, and how every script at the root ends.

if __name__ == "__main__":
    run(main)
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same command, run again, goes on
JOB_STATUS = "GRPO_JOB_STATUS"

# How a disk refuses to write; of libraries that write themselves, only their words are left.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
REFUSED = (
    *("No space left on device", "Disk quota exceeded", "Read-only file system"),
    "unexpected pos",  # torch.save's
)


class UsageError(Exception):
    """Something that the user can put right: file, line, field or flag, and the way out."""


class PassingError(UsageError):
    """One that the same command, run again, may not meet: a batch job is then queued again."""


def first_line(error: Exception) -> str:
    """Give the first line of what an error says; its class where it says nothing."""
    said = str(error).strip() or type(error).__name__
    return said.splitlines()[0]


def out_of_memory(error: Exception) -> bool:
    """Tell whether memory ran out; only a CUDA device's lack of it has a class of its own."""
    said = first_line(error).lower()
    return any(words in said for words in ("out of memory", "allocate memory", "not enough memory"))


def tell_job(status: str) -> bool:
    """Tell the batch script that started this how it stands; False where there is none.

    $GRPO_JOB_STATUS names its file. A launcher in between (torchrun) makes 1 of every exit status.
    """
    path = os.environ.get(JOB_STATUS)
    if path:
        Path(path).write_text(status + "\n", encoding="utf-8")
    return bool(path)


def run(main: Callable[[], None]) -> None:
    """Call main() and turn what a user can put right into one line on stderr.

    Exit status: 2 after a UsageError or when the disk refuses, 130 after Ctrl-C, 141 when the
    reader of stdout left (`... | head`), as a shell reports it. Anything else is a bug of ours and
    keeps its traceback. A SystemExit from main() passes through.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for letters that the terminal lacks
    try:
        main()
        sys.stdout.flush()  # Inside the try: a closed pipe often shows only here.
    except UsageError as error:
        fail(str(error), passing=isinstance(error, PassingError))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Python flushes stdout once more at exit, and would complain about the same pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except PermissionError as error:
        fail(f"{error.filename}: permission denied" if error.filename else str(error))
    except Exception as error:
        if not _disk_refuses(error):
            raise
        place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        fail(
            f"{place}{first_line(error)}: what was written before is complete; make room or choose "
            "another folder, and run the same command again"
        )


def _disk_refuses(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in REFUSALS
    return any(words in str(error) for words in REFUSED)


def fail(message: str, passing: bool = False) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    if not passing:
        with contextlib.suppress(OSError):  # of a full disk
            tell_job(f"error: {message}")
    raise SystemExit(2) from None
