"""A file of questions through several models: synthetic data, resumed where it stopped.

A row's `key` is a digest of all that its answer depends on: weights, prompt, sampling, and how
often the same was asked before. What is there goes by it, never by a model's name.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo_math.chat.screen import Answer, notice
from grpo_math.chat.session import Session, judge
from grpo_math.chat.workers import ModelSpec, Request, attend
from grpo_math.data.rows import load_rows
from grpo_math.errors import UsageError
from grpo_math.files import read_jsonl

# Questions that are answered, and saved, together.
BATCH = {"transformers": 64, "vllm": 256, "openai": 32}
Questions = Sequence[Mapping[str, Any]]
Pass = Generator[Request, list[Answer], None]


def load_questions(path: str) -> Questions:
    """Read rows with `question`. Where one has an `answer`, all are checked and graded as data."""
    raw = read_jsonl(path)
    if any("answer" in row for _, row in raw):
        return load_rows(path)
    questions = []
    for line, row in raw:
        if not isinstance(row.get("question"), str) or not row["question"].strip():
            raise UsageError(f"{path}, line {line}: 'question' must be a text that is not empty")
        questions.append(row)
    return questions


def run_file(session: Session, path: str, output: Path) -> None:
    """Ask every model what `output` does not hold yet, and add a row for each answer.

    Raises UsageError where a file cannot be used, or a model could not answer.
    """
    questions, there = load_questions(path), saved_keys(output)
    passes = {}
    for worker in session.workers:
        passes[worker.spec.name] = one = one_pass(session, worker.spec, questions, there)
        worker.ask(next(one))
    failed = []
    for worker, answers in attend(session.workers):
        if answers is None:
            raise KeyboardInterrupt
        name = worker.spec.name
        error = next((answer.error for answer in answers if answer.error), "")
        if error:
            failed.append(f"{name}: {error}")
        with contextlib.suppress(StopIteration):
            request = passes[name].send(answers)
            if not error:
                worker.ask(request)
    if failed:
        way_out = f"the answers so far are in {output}: run the same command again to go on"
        raise UsageError(f"{'; '.join(failed)}; {way_out}")


def one_pass(session: Session, spec: ModelSpec, questions: Questions, there: set[str]) -> Pass:
    """Give the requests of a model's way through the questions; save the answers sent for each.

    The first asks for the questions' digests. Batches are cut alike however often this is resumed,
    and each has a seed of its own. One of which something is missing is asked as a whole, for what
    is sampled depends on what stands beside it. Answers that broke off or were there are left out.
    """
    texts = [row["question"] for row in questions]
    sampling = session.settings.sampling()
    answers = yield replace(session.request(spec, texts, sampling), identify=True)
    seen: Counter[str] = Counter()
    keys = []
    for answer in answers:
        seen[answer.text] += 1
        keys.append(f"{answer.text}-{seen[answer.text]}")
    done = len(there.intersection(keys))
    if done:
        notice(f"{session.output}: {done} of {len(texts)} answers are there ({spec.name})")
    size = BATCH[spec.backend]
    for start in range(0, len(texts), size):
        batch = slice(start, start + size)
        if there.issuperset(keys[batch]):
            continue
        seeded = replace(sampling, seed=sampling.seed + start // size)
        answers = yield session.request(spec, texts[batch], seeded)
        rows = []
        for answer, key, asked in zip(answers, keys[batch], questions[batch], strict=False):
            if answer.error or key in there:
                continue
            row = session.row(spec, asked["question"], sampling, answer)
            if "answer" in asked:
                judge(row, asked)
            rows.append({**row, "key": key})
        session.save(rows)
        done += len(rows)
        notice(f"{spec.name}: {done}/{len(texts)} answers")


def saved_keys(output: Path) -> set[str]:
    """Give the keys of a file's rows. One that was cut off with its writer is taken away."""
    data = output.read_bytes()
    whole = data.rfind(b"\n") + 1
    if data[whole:].startswith(b"{"):
        with output.open("r+b") as file:
            file.truncate(whole)
    if not whole:
        return set()
    return {row["key"] for _, row in read_jsonl(output) if "key" in row}
