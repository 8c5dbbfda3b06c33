"""Rows of JSONL, checked when they are read and whole when they are written."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from grpo_math.data.tasks import TASKS, use_task
from grpo_math.errors import UsageError
from grpo_math.files import read_jsonl, write_text_atomic


def load_rows(path: str | Path, task: str | None = None) -> list[dict[str, Any]]:
    """The rows of a JSONL file, each with a `task`, a canonical `answer` and an `id` of its own.

    `task` overrides what the rows say. The id is made from the question's text, so the same question has the same id
    in every file and every evaluation of it.

    Raises:
        UsageError: the file or a row cannot be used; the message names the file, line and field.
    """
    if task:
        use_task(task)
    rows = []
    seen: Counter[str] = Counter()
    for line, raw in read_jsonl(Path(path)):
        row = _checked_row(raw, f"{path}, line {line}", task)
        digest = hashlib.sha256(row["question"].encode("utf-8", "surrogatepass")).hexdigest()[:12]
        seen[digest] += 1
        row["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        rows.append(row)
    return rows


def _checked_row(raw: dict[str, Any], where: str, task: str | None) -> dict[str, Any]:
    for field in ("question", "answer"):
        if field not in raw:
            raise UsageError(f"{where}: no field {field!r}; a row needs 'question' and 'answer'")
    question, answer = raw["question"], raw["answer"]
    if not isinstance(question, str) or not question.strip():
        raise UsageError(
            f"{where}: 'question' must be a text that is not empty, got {json.dumps(question)[:60]}"
        )
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise UsageError(
            f"{where}: 'answer' must be a text or a number, got {json.dumps(answer)[:60]}"
        )
    name = task or raw.get("task", "custom")
    if not isinstance(name, str) or name not in TASKS:
        raise UsageError(
            f"{where}: unknown task {name!r}: known tasks are {', '.join(TASKS)}; or pass --task"
        )
    canonical = TASKS[name].canonical(str(answer))
    if canonical is None:
        hint = "; for GSM8K's own files run prepare_gsm8k.py first" if "####" in str(answer) else ""
        if name == "custom" and not hint:
            hint = " (numbers); for LaTeX pass --task math, for polynomials --task polynomial"
        raise UsageError(
            f"{where}: 'answer' {str(answer)[:60]!r} is not an answer to task {name!r}{hint}"
        )
    return {**raw, "question": question, "answer": canonical, "task": name}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSONL, all or nothing."""
    write_text_atomic(path, encode_rows(rows))


def encode_rows(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as the text of a JSONL file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def fingerprint(path: str | Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
