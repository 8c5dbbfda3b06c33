"""Rows of JSONL: checked when they are read, whole when they are written."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from grpo_math.data.tasks import TASKS, Row, use_task
from grpo_math.errors import UsageError
from grpo_math.files import read_jsonl, write_text_atomic

RawRow = Mapping[str, object]


def load_rows(path: str | Path, task: str | None = None) -> list[Row]:
    """Read a JSONL file's rows, each with a `task`, a canonical `answer` and an `id` of its own.

    `task` overrides what the rows say; a row that says none is of the task `custom`. The id is made
    from the question's text, so a question has the same id in every file and evaluation. One that
    the file gives is kept as `row_id`.

    Raises:
        UsageError: the file or a row cannot be used; the message names the file, line and field.
    """
    if task:
        use_task(task)
    rows = []
    seen: Counter[str] = Counter()
    for line, raw in read_jsonl(Path(path)):
        row = _checked_row(raw, f"{path}, line {line}", task)
        text = row["question"].encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(text).hexdigest()[:12]
        seen[digest] += 1
        row["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if raw.get("id") not in (None, row["id"]):
            row["row_id"] = raw["id"]
        rows.append(row)
    return rows


def _checked_row(raw: RawRow, where: str, task: str | None) -> Row:
    for field in ("question", "answer"):
        if field not in raw:
            raise UsageError(f"{where}: no field {field!r}; a row needs 'question' and 'answer'")
    question, answer = raw["question"], raw["answer"]
    if not isinstance(question, str) or not question.strip():
        said = json.dumps(question)[:60]
        raise UsageError(f"{where}: 'question' must be a text that is not empty, got {said}")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        said = json.dumps(answer)[:60]
        raise UsageError(f"{where}: 'answer' must be a text or a number, got {said}")
    name = task or raw.get("task", "custom")
    if not isinstance(name, str) or name not in TASKS:
        known = ", ".join(TASKS)
        raise UsageError(f"{where}: unknown task {name!r}: known tasks are {known}; or pass --task")
    canonical = TASKS[name].canonical(str(answer))
    if canonical is None:
        said = repr(str(answer)[:60])
        hint = _hint(str(answer), name)
        raise UsageError(f"{where}: 'answer' {said} is not an answer to task {name!r}{hint}")
    return cast(Row, {**raw, "question": question, "answer": canonical, "task": name})


def _hint(answer: str, task: str) -> str:
    """Say what may have been meant by an answer that the task cannot read."""
    if "####" in answer:
        return "; for GSM8K's own files run prepare_gsm8k.py first"
    if task == "custom":
        return " (numbers); for LaTeX pass --task math, for polynomials --task polynomial"
    return ""


def write_rows(path: Path, rows: Iterable[RawRow | Row]) -> None:
    """Write rows as JSONL, all or nothing."""
    write_text_atomic(path, encode_rows(rows))


def encode_rows(rows: Iterable[RawRow | Row]) -> str:
    """Give rows as the text of a JSONL file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def fingerprint(path: str | Path) -> str:
    """Give the first 16 hexadecimal digits of the SHA-256 of a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
