"""Files are read whole or refused by name and line; they are written whole or not at all. Scripts end in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from grpo_math import files
from grpo_math.errors import UsageError

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "content, expected",
    [
        (b'{"a": 1}\n{"b": 2}\n', [(1, {"a": 1}), (2, {"b": 2})]),
        (b'{"a": 1}\n{"b": 2}', [(1, {"a": 1}), (2, {"b": 2})]),
        (b'{"a": 1}\r\n{"b": 2}\r\n', [(1, {"a": 1}), (2, {"b": 2})]),
        (b'\xef\xbb\xbf{"a": 1}\n', [(1, {"a": 1})]),
        (b'\n{"a": 1}\n  \n\t\r\n{"b": 2}\n\n', [(2, {"a": 1}), (5, {"b": 2})]),
        ('{"a": "x\u2028y\x85z"}\n'.encode(), [(1, {"a": "x\u2028y\x85z"})]),
    ],
    ids=["plain", "no_last_newline", "crlf", "byte_order_mark", "blank_lines", "unicode_line_separators"],
)
def test_read_jsonl_accepts(tmp_path: Path, content: bytes, expected: list) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert files.read_jsonl(path) == expected


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["no rows"]),
        (b"\xef\xbb\xbf\n \n", ["no rows"]),
        (b'{"a": 1}\n{"b": \n', ["line 2", "not valid JSON"]),
        (b'{"a": 1}\n\n{"b": 2} {"c": 3}\n', ["line 3", "not valid JSON"]),
        (b'{"a": 1}\n{"b": "caf', ["line 2", "not valid JSON", "ends within this line", "delete"]),
        ('{"a": 1}\n{"b": "é'.encode()[:-1], ["line 2", "not UTF-8", "ends within this line"]),
        (b"[1, 2]\n", ["line 1", "expected a JSON object", "list"]),
        (b'{"a": 1}\nnull\n', ["line 2", "NoneType"]),
        (b'{"a": "caf\xe9"}\n', ["line 1", "UTF-8"]),
        (b'{"a": ' + b"1" * 5_000 + b"}\n", ["line 1", "not valid JSON"]),
        (b'{"a": ' + b"[" * 100_000 + b"\n", ["line 1", "not valid JSON"]),
    ],
    ids=[
        "empty",
        "only_blank",
        "malformed",
        "torn",
        "torn_in_a_character",
        "two_on_a_line",
        "array",
        "null",
        "latin1",
        "long_number",
        "deep",
    ],
)
def test_read_jsonl_refuses(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        files.read_jsonl(path)
    message = str(caught.value)
    assert all(word in message for word in [str(path), *words]) and "\n" not in message


def test_read_jsonl_names_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        files.read_jsonl(tmp_path / "absent.jsonl")
    with pytest.raises(UsageError, match="is a folder"):
        files.read_jsonl(tmp_path)


def test_write_makes_folders_and_keeps_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "é.txt"
    files.write_text_atomic(path, "één\r\ntwo\n")
    assert path.read_bytes() == "één\r\ntwo\n".encode()
    assert [each.name for each in path.parent.iterdir()] == ["é.txt"]


def test_write_keeps_the_mode_of_a_file_and_honours_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    before = os.umask(0o027)
    try:
        files.write_text_atomic(path, "one")
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o604)
        files.write_text_atomic(path, "two")
        assert path.stat().st_mode & 0o777 == 0o604 and path.read_text() == "two"
    finally:
        os.umask(before)


def test_write_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.write_text_atomic(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "text"


@pytest.mark.parametrize("owner, call", [(files.os, "fsync"), (files.Path, "replace")])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, call: str, error: BaseException
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(owner, call, fail)
    with pytest.raises(UsageError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        files.write_text_atomic(path, "new")
    assert path.read_text() == "old" and [each.name for each in tmp_path.iterdir()] == ["file.txt"]
    if isinstance(error, OSError):
        assert str(path) in str(caught.value) and "No space left" in str(caught.value)


def test_write_says_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "below.txt", tmp_path / "folder"):
        with pytest.raises(UsageError, match="could not be written") as caught:
            files.write_text_atomic(path, "text")
        assert str(path) in str(caught.value)
    with pytest.raises(UsageError, match="not a plain file"):
        files.write_text_atomic(os.devnull, "text")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    "body, status, stderr",
    [
        ("raise UsageError('x.jsonl, line 3: no field \"gold\"')", 2, 'error: x.jsonl, line 3: no field "gold"\n'),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("raise SystemExit(5)", 5, ""),
        ("pass", 0, ""),
        ("raise BrokenPipeError", 141, ""),
    ],
)
def test_run_ends_in_one_line_and_a_status(body: str, status: int, stderr: str) -> None:
    program = f"from grpo_math.errors import UsageError, run\ndef main():\n    {body}\nrun(main)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (status, stderr)


def test_a_terminal_without_a_letter_gets_an_escape() -> None:
    program = "from grpo_math.errors import run\ndef main():\n    print('\\u2026 \\ud800')\nrun(main)"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    assert done.stdout == "\\u2026 \\ud800\n"


def test_a_bug_keeps_its_traceback() -> None:
    program = "from grpo_math.errors import run\ndef main():\n    1 / 0\nrun(main)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
