"""Read and write small files so that neither a crash nor a bad row goes unnoticed."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_math.errors import UsageError

if TYPE_CHECKING:
    from filelock import FileLock


def write_text_atomic(path: str | Path, text: str) -> None:
    """`write_bytes_atomic` for text: UTF-8, line ends as given."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` so that a reader sees the old file or the complete new one, never a part.

    The bytes go to a temporary name in the same folder, reach the disk, and only then take the
    place of `path`. Missing parent folders are made. A symbolic link is followed.

    Raises:
        UsageError: the system refuses (no permission, full disk, a folder in the way).
    """
    target = Path(os.path.realpath(path))
    temporary = None
    try:
        # Renaming over /dev/null would take it away from everyone.
        if target.exists() and not target.is_file():
            raise UsageError(f"{path}: could not be written (it is not a plain file)")
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".writing-", suffix=".tmp", dir=target.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(_mode_for(target))
        temporary.replace(target)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(f"{path}: could not be written ({error.strerror or error})") from error
        raise


def append_jsonl(path: Path, rows: list[dict]) -> None:
    """Add rows to a JSONL file in one write, which has reached the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


_held: dict[Path, FileLock] = {}  # locks of this process, until it ends


def hold(lock: Path, patience: float = 0) -> None:
    """Make this process the only one that holds a lock file, until it ends; make it if need be.

    Raises UsageError if it cannot be made, or if another process holds it and still does after
    `patience` seconds. On a file system without locks that is said, and nothing is held.
    """
    from filelock import FileLock, Timeout  # takes 0.1 s, which --help is to do without

    place, lock = lock.parent, lock.resolve()
    if lock in _held and lock.exists():
        return
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.open("ab").close()
    except OSError as error:
        raise UsageError(f"{place}: could not be written ({error.strerror})") from error
    held = FileLock(lock, poll_interval=1, thread_local=False, fallback_to_soft=False)
    try:
        held.acquire(timeout=patience)
    except Timeout:
        raise UsageError(
            f"{place}: another process is at work on it (it holds {lock.name}); wait for its end"
        ) from None
    except OSError:
        print(
            "note: this file system has no locks: start nothing twice in one folder",
            file=sys.stderr,
        )
    _held[lock] = held


def _mode_for(target: Path) -> int:
    """Keep the mode of a file that is replaced; give a new one what open() would give it."""
    try:
        return target.stat().st_mode & 0o777
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask


def read_jsonl(path: str | Path) -> list[tuple[int, dict]]:
    """Read [(line number from 1, row), ...] of a file with one JSON object per line.

    Accepts a UTF-8 byte order mark and CRLF line ends, and skips blank lines.

    Raises:
        UsageError: the file is missing, a folder, unreadable or without rows, or a line is no JSON
            object in UTF-8. A last line that is cut off is said to be so.
    """
    # At newlines only: str.splitlines() would also split at U+2028, which JSON allows in a string.
    lines = _read_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = _parse_row(line, f"{path}, line {number}", unfinished=number == len(lines))
            rows.append((number, row))
    if not rows:
        raise UsageError(f"{path}: has no rows; expected one JSON object per line")
    return rows


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: is a folder; give a .jsonl file in it") from None
    except OSError as error:
        raise UsageError(f"{path}: could not be read ({error.strerror or error})") from error


def _parse_row(line: bytes, where: str, unfinished: bool) -> dict:
    """Parse a line; `unfinished` if no newline follows, as where the writer was stopped."""
    hint = ""
    if unfinished:
        hint = "; the file ends within this line: finish what was writing it, or delete the line"
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8{hint}"
        ) from None
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}){hint}"
        ) from None
    except (ValueError, RecursionError):
        raise UsageError(
            f"{where}: not valid JSON (a number too long, or nested too deeply){hint}"
        ) from None
    if not isinstance(row, dict):
        raise UsageError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row
