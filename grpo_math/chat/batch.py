"""A file of questions through several models: synthetic data, resumed where it stopped.

A row's `key` is a digest of all that its answer depends on: weights, prompt, sampling, and how
often the same was asked before. What is there goes by it, never by a model's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo_math.chat.screen import Answer, notice
from grpo_math.chat.session import Session, judge
from grpo_math.chat.workers import Worker, attend
from grpo_math.data.rows import load_rows
from grpo_math.errors import UsageError
from grpo_math.files import read_jsonl

# Questions that are answered, and saved, together.
BATCH = {"transformers": 64, "vllm": 256, "openai": 32}


def load_questions(path: str) -> Sequence[Mapping[str, Any]]:
    """Read rows with `question`. Where one has an `answer`, all are checked and graded as data.

    Raises:
        UsageError: the file or a row cannot be used.
    """
    raw = read_jsonl(path)
    if any("answer" in row for _, row in raw):
        return load_rows(path)
    for line, row in raw:
        if not isinstance(row.get("question"), str) or not row["question"].strip():
            raise UsageError(f"{path}, line {line}: 'question' must be a text that is not empty")
    return [row for _, row in raw]


def run_file(session: Session, path: str, output: Path) -> None:
    """Ask every model what `output` does not hold yet, and add a row for each answer.

    Raises:
        UsageError: a file cannot be used, or a model could not answer.
    """
    questions, there = load_questions(path), saved_keys(output)
    passes = {worker.spec.name: Pass(session, worker, questions) for worker in session.workers}
    failed = []
    for worker, answers in attend(session.workers):
        if answers is None:
            raise KeyboardInterrupt
        name, mine = worker.spec.name, passes[worker.spec.name]
        error = next((answer.error for answer in answers if answer.error), "")
        if mine.keys:
            session.save(mine.rows(answers, there))
            notice(f"{name}: {mine.done}/{len(questions)} answers")
        elif not error and (done := mine.number(answers, there)):
            notice(f"{output}: {done} of {len(questions)} answers are there ({name})")
        if error:
            failed.append(f"{name}: {error}")
        else:
            mine.ask(there)
    if failed:
        raise UsageError(
            f"{'; '.join(failed)}; the answers so far are in {output}: run the same command again "
            "to go on"
        )


class Pass:
    """One model's way through the questions, batch by batch."""

    def __init__(
        self, session: Session, worker: Worker, questions: Sequence[Mapping[str, Any]]
    ) -> None:
        """Ask for the digests of all questions: the first answers are for `number`."""
        self.session, self.worker, self.questions = session, worker, questions
        self.texts = [row["question"] for row in questions]
        self.sampling = session.settings.sampling()
        self.keys: list[str] = []
        self.done, self.next, self.asked = 0, 0, range(0)
        request = session.request(worker.spec, self.texts, self.sampling)
        worker.ask(replace(request, identify=True))

    def number(self, answers: list[Answer], there: set[str]) -> int:
        """Make the keys of the questions, and count those that are there."""
        seen: Counter[str] = Counter()
        for answer in answers:
            seen[answer.text] += 1
            self.keys.append(f"{answer.text}-{seen[answer.text]}")
        self.done = sum(key in there for key in self.keys)
        return self.done

    def ask(self, there: set[str]) -> None:
        """Ask for the next batch of which something is missing, if there is one.

        Batches are cut alike however often this is resumed, and each has a seed of its own. One is
        asked as a whole, for what is sampled depends on what stands beside it.
        """
        size = BATCH[self.worker.spec.backend]
        while self.next < len(self.texts):
            self.asked = range(len(self.texts))[self.next : self.next + size]
            seeded = replace(self.sampling, seed=self.sampling.seed + self.next // size)
            self.next += size
            if any(self.keys[place] not in there for place in self.asked):
                batch = [self.texts[place] for place in self.asked]
                self.worker.ask(self.session.request(self.worker.spec, batch, seeded))
                return

    def rows(self, answers: list[Answer], there: set[str]) -> list[dict]:
        """Give the rows of a batch, without answers that broke off or were there."""
        rows = []
        for place, answer in zip(self.asked, answers, strict=False):
            if answer.error or self.keys[place] in there:
                continue
            row = self.session.row(self.worker.spec, self.texts[place], self.sampling, answer)
            if "answer" in self.questions[place]:
                judge(row, self.questions[place])
            rows.append({**row, "key": self.keys[place]})
        self.done += len(rows)
        return rows


def saved_keys(output: Path) -> set[str]:
    """Give the keys of a file's rows. One that was cut off with its writer is taken away."""
    data = output.read_bytes() if output.exists() else b""
    whole = data.rfind(b"\n") + 1
    if data[whole:].startswith(b"{"):
        with output.open("r+b") as file:
            file.truncate(whole)
    return {row["key"] for _, row in read_jsonl(output) if "key" in row} if whole else set()
