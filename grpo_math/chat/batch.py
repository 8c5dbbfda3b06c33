"""A file of questions through several models: synthetic data, resumed where it stopped."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo_math.chat.screen import notice
from grpo_math.chat.session import Row, Session
from grpo_math.chat.workers import Message, Worker, attend
from grpo_math.data.rows import load_rows
from grpo_math.data.styles import get_style
from grpo_math.data.tasks import grade
from grpo_math.errors import UsageError
from grpo_math.files import read_jsonl

BATCH = {
    "transformers": 64,
    "vllm": 256,
    "openai": 32,
}  # questions that are answered, and saved, together


def load_questions(path: str) -> list[Row]:
    """Rows with `question`, checked; where the first one has an `answer`, all are checked and graded like any data.

    Raises:
        UsageError: the file or a row cannot be used.
    """
    raw = read_jsonl(path)
    if "answer" in raw[0][1]:
        return load_rows(path)
    for line, row in raw:
        if not isinstance(row.get("question"), str) or not row["question"].strip():
            raise UsageError(f"{path}, line {line}: 'question' must be a text that is not empty")
    return [row for _, row in raw]


def run_file(session: Session, path: str, output: Path) -> None:
    """Answer the questions of a file with every model, and add a row for each to `output`; what is there is not redone.

    An answer counts as there when its question, its model's name and every setting are the same.

    Raises:
        UsageError: a file cannot be used, or a model could not answer.
    """
    questions, there = load_questions(path), finished(output)
    todo = {
        worker.spec.name: _missing(session, worker, questions, there) for worker in session.workers
    }
    total = len(questions) * len(session.workers)
    left = sum(map(len, todo.values()))
    if left < total:
        notice(f"{output}: {total - left} of {total} answers are there")
    asked: dict[str, list[tuple[int, Row]]] = {}
    failed: list[str] = []

    def ask(worker: Worker) -> None:
        name, size = worker.spec.name, BATCH[worker.spec.backend]
        # Batches are cut at the same places however often this is resumed, and each has a seed of its own.
        batch = todo[name][0][0] // size if todo[name] else 0
        asked[name] = [item for item in todo[name] if item[0] // size == batch]
        todo[name] = todo[name][len(asked[name]) :]
        if asked[name]:
            sampling = session.settings.sampling()
            batch_questions = [row["question"] for _, row in asked[name]]
            worker.ask(
                session.request(
                    worker.spec, batch_questions, replace(sampling, seed=sampling.seed + batch)
                )
            )

    def handle(worker: Worker, message: Message) -> None:
        nonlocal left
        if message[0] == "error":
            failed.append(f"{worker.spec.name}: {message[1]}")
            return
        session.save(
            [
                _row(session, worker, row, c)
                for (_, row), c in zip(asked[worker.spec.name], message[1], strict=True)
            ]
        )
        left -= len(message[1])
        notice(f"{total - left}/{total} answers")
        ask(worker)

    def interrupt(waiting: list[Worker], _: int) -> None:
        raise KeyboardInterrupt

    for worker in session.workers:
        ask(worker)
    attend(list(session.workers), handle, interrupt)
    if failed:
        raise UsageError(
            f"{'; '.join(failed)}; the answers so far are in {output}: run the same command again to go on"
        )


def finished(output: Path) -> Counter[str]:
    """The answers that a file holds. A row that was cut off when its writer was stopped is taken away."""
    if output.exists() and output.stat().st_size:
        data = output.read_bytes()
        with output.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
    if not output.exists() or not output.stat().st_size:
        return Counter()
    return Counter(
        _key(row.get("name"), row.get("question"), row.get("settings"))
        for _, row in read_jsonl(output)
    )


def _key(name: Any, question: Any, settings: Any) -> str:
    return json.dumps([name, question, settings], sort_keys=True)


def _missing(
    session: Session, worker: Worker, questions: list[Row], there: Counter[str]
) -> list[tuple[int, Row]]:
    settings = session.recorded_settings(worker.spec, session.settings.sampling())
    missing = []
    for place, row in enumerate(questions):
        key = _key(worker.spec.name, row["question"], settings)
        if there[key]:
            there[key] -= 1
        else:
            missing.append((place, row))
    return missing


def _row(session: Session, worker: Worker, question: Row, completion: Any) -> Row:
    """The row of an answer; the seed in it is that of the whole file."""
    sampling, spec = session.settings.sampling(), worker.spec
    row = session.row(
        spec,
        question["question"],
        sampling,
        completion.text,
        completion.tokens,
        completion.finish_reason,
    )
    if "answer" in question:
        style = get_style(row["settings"]["style"])
        verdict = grade(question, completion.text, style)
        row |= {"gold": question["answer"], "strict": verdict.strict, "lenient": verdict.lenient}
    return row
