"""A talk with several models at once: settings, models, conversations, and the rows kept of it.

A row of the output is one answer:

    {"question", "model", "name", "reasoning", "answer", "completion", "tokens", "finish_reason",
     "settings"}

`answer` is what the grader would judge, `reasoning` what stands before it, `completion` all of it;
`tokens` is null where a server does not count them. A conversation adds `history`; a known right
answer adds `gold`, `strict` and `lenient`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from grpo_math.chat.screen import Answer, Screen, notice
from grpo_math.chat.workers import BACKENDS, ModelSpec, Request, Worker, attend
from grpo_math.data.prompts import Asking, Messages, recorded_asking
from grpo_math.data.styles import get_style
from grpo_math.data.tasks import TASKS, Row, get_task, grade
from grpo_math.errors import UsageError
from grpo_math.files import append_jsonl
from grpo_math.generation.backend import Sampling
from grpo_math.grading.extraction import extract_lenient, marked
from grpo_math.grading.graders import Verdict
from grpo_math.grading.numbers import canonical_number
from grpo_math.models.source import resolve_model

# What a number may be: its type, its least and greatest value, and these in words.
LIMITS = {
    "temperature": (float, 0, 100, "a number from 0 on, at most 100"),
    "top_p": (float, 1e-6, 1, "a number above 0, at most 1"),
    "max_tokens": (int, 1, 1 << 30, "a whole number from 1 on"),
    "seed": (int, 0, 1 << 32, "a whole number from 0 on"),
}


def number(name: str, text: str) -> float | None:
    """Give the value of a setting from its text. Raises UsageError where it cannot be."""
    kind, least, most, words = LIMITS[name]
    if name == "seed" and text == "off":
        return None
    with contextlib.suppress(ValueError):
        if least <= (value := kind(text)) <= most:
            return value
    raise UsageError(f"{name} {text!r}: must be {words}")


def _template(text: str) -> dict | None:
    if text == "own":
        return None
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict | None):
            return value
    example = '{"enable_thinking": false}'
    raise UsageError(f"chat_template_kwargs {text!r}: must be JSON, as {example}")


READERS: dict[str, Callable[[str], object]] = {
    "style": lambda text: None if text == "own" else get_style(text).name,
    "system": lambda text: {"off": "", "style": None}.get(text, text),
    "chat_template_kwargs": _template,
    **{name: partial(number, name) for name in LIMITS},
}


@dataclass
class Settings:
    """What holds for all models.

    None is each model's own `style` and `chat_template_kwargs`, the style's own `system`, and a new
    `seed` for every question.
    """

    style: str | None = None
    system: str | None = None
    chat_template_kwargs: dict | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int | None = None
    conversation: bool = False

    def change(self, name: str, text: str | None) -> None:
        """Take over a value from its text, if there is one. Raises UsageError for no such value."""
        if text is not None:
            setattr(self, name, READERS[name](text))

    def sampling(self) -> Sampling:
        """Give how the next answers are sampled."""
        seed = random.SystemRandom().randrange(1 << 31) if self.seed is None else self.seed
        return Sampling(1, self.temperature, self.top_p, 0, self.max_tokens, seed, ())


class Session:
    """The models that are there, and what was said. `common` is what the models have in common."""

    def __init__(self, settings: Settings, common: ModelSpec, output: Path | None = None) -> None:
        """Start without models. Raises UsageError where `output` cannot be written."""
        self.settings, self.common, self.output = settings, common, output
        self.workers: list[Worker] = []
        self.history: dict[str, Messages] = {}
        self.rows: list[dict] = []
        self.last: list[dict] = []
        self.save([])

    def add(self, wanted: list[ModelSpec]) -> None:
        """Load models at the same time. One that fails says why, and the others go on."""
        specs: list[ModelSpec] = []
        for spec in wanted:
            try:
                specs.append(self.settled(spec, specs))
            except UsageError as error:
                notice(f"error: {error}")
        started, new = time.monotonic(), []
        # Shared among the models, so that they do not fight for the processors.
        affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
        threads = len(affinity(0)) // max(1, len(self.workers) + len(specs)) or 1
        for spec in specs:
            notice(f"loading {spec.name} ...")
            share = spec.gpu_share / len(specs)
            new.append(Worker(replace(spec, threads=threads, gpu_share=share)))
        self.workers += new
        for worker, answers in attend(new):
            name = worker.spec.name
            if answers is None:
                worker.close()
                notice(f"{name}: interrupted, not loaded")
            elif answers:
                said = answers[0].error.removeprefix(f"{worker.spec.model}: ")
                notice(f"error: {name}: not loaded: {said}")
            else:
                notice(f"{name} is ready ({time.monotonic() - started:.0f} s)")
        self._leave_out_the_gone()

    def settled(self, spec: ModelSpec, others: list[ModelSpec]) -> ModelSpec:
        """Find the model, how its run asked, and a name that no other has."""
        if spec.backend not in BACKENDS:
            unknown = f"{spec.model}: unknown backend {spec.backend!r}"
            raise UsageError(f"{unknown}: known ones are {', '.join(BACKENDS)}")
        record, last_part = None, spec.model.rstrip("/").rpartition("/")[2]
        if spec.backend != "openai":
            source = resolve_model(spec.model)
            record, last_part = source.record, source.name
        style, recorded = recorded_asking(record)
        template = spec.chat_template_kwargs
        if template is None and style:
            template = recorded
        style = spec.style or style
        if style:
            get_style(style)
        there = [worker.spec for worker in self.workers]
        taken = {each.name for each in [*there, *others]}
        first = name = spec.name or last_part
        copies = itertools.count(2)
        while name in taken:
            name = f"{first}-{next(copies)}"
        return replace(spec, name=name, style=style, chat_template_kwargs=template)

    def drop(self, worker: Worker) -> None:
        """End a model's process and forget its conversation."""
        worker.close()
        self.workers.remove(worker)
        self.history.pop(worker.spec.name, None)

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.close()

    def asking(self, spec: ModelSpec) -> Asking:
        """Give how a model is asked: as chosen for all, else as in its run.

        A model that no run made is asked as the first run's, for comparison.
        """
        specs = [spec, *(worker.spec for worker in self.workers)]
        run = next((each for each in specs if each.style), spec)
        style = get_style(self.settings.style or run.style or TASKS["custom"].prompt)
        if self.settings.system is not None:
            style = replace(style, system=self.settings.system)
        for each in (self.settings, spec, run):
            if each.chat_template_kwargs is not None:
                return Asking(style, each.chat_template_kwargs)
        return Asking(style)

    def request(self, spec: ModelSpec, questions: list[str], sampling: Sampling) -> Request:
        """Give what a model is asked: each question at the end of its conversation so far."""
        before = self.history.get(spec.name, [])
        conversations = [[*before, {"role": "user", "content": question}] for question in questions]
        return Request(conversations, self.asking(spec), sampling)

    def ask(self, question: str, screen: Screen) -> list[Answer]:
        """Ask all models at the same time, show and keep their answers.

        Ctrl-C stops them; pressed twice it drops those that do not stop.
        """
        if not self.workers:
            raise UsageError("no model is loaded: /add MODEL")
        sampling, workers = self.settings.sampling(), self.workers
        answers = [Answer(worker.spec.name) for worker in workers]
        for worker in workers:
            request = self.request(worker.spec, [question], sampling)
            worker.ask(replace(request, stream=True))
        with screen.watching(answers) as changed:
            for worker, new in attend(workers):
                place = workers.index(worker)
                if new is None:
                    new = worker.stop()
                for answer in new:
                    # What an answer that broke off had said so far is with the one before.
                    answers[place] = replace(answer, text=answer.text or answers[place].text)
                    changed()
        self._keep(question, sampling, answers)
        self._leave_out_the_gone()
        return answers

    def _leave_out_the_gone(self) -> None:
        self.workers = [worker for worker in self.workers if worker.state != "gone"]

    def _keep(self, question: str, sampling: Sampling, answers: list[Answer]) -> None:
        """Save the answers, but for those that broke off."""
        self.last = []
        for worker, answer in zip(self.workers, answers, strict=True):
            if answer.end == "error":
                continue
            row = self.row(worker.spec, question, sampling, answer)
            if self.settings.conversation:
                history = self.history.setdefault(answer.name, [])
                row["history"] = list(history)
                history.append({"role": "user", "content": question})
                history.append({"role": "assistant", "content": answer.text})
            self.last.append(row)
        self.rows += self.last
        self.save(self.last)

    def row(self, spec: ModelSpec, question: str, sampling: Sampling, answer: Answer) -> dict:
        """Give an answer as it is saved."""
        asking = self.asking(spec)
        settings = {"backend": spec.backend} | asdict(self.settings)
        settings |= {"style": asking.style.name, "chat_template_kwargs": dict(asking.template)}
        settings["seed"] = sampling.seed
        return {
            "question": question,
            "model": spec.model,
            "name": spec.name,
            "reasoning": reasoning(answer.text),
            "answer": extract_lenient(answer.text).text,
            "completion": answer.text,
            "tokens": answer.tokens,
            "finish_reason": answer.end,
            "settings": settings,
        }

    def grade(self, gold: str) -> list[tuple[str, Verdict]]:
        """Judge the last answers, and note it in their rows: each model's name and the verdict."""
        task = get_task("math" if canonical_number(gold) is None else "custom")
        right = {"answer": task.canonical(gold) or gold, "task": task.name}
        return [(row["name"], judge(row, right)) for row in self.last]

    def save(self, rows: list[dict]) -> None:
        """Add rows to the output, if there is one."""
        if self.output is None:
            return
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            append_jsonl(self.output, rows)
        except OSError as error:
            said = error.strerror or error
            raise UsageError(f"{self.output}: cannot be written ({said})") from error


def judge(saved: dict, right: Mapping[str, Any]) -> Verdict:
    """Grade a saved answer in the style that it was asked in, and note the verdict in it."""
    row = Row(question=saved["question"], answer=right["answer"], task=right["task"])
    verdict = grade(row, saved["completion"], get_style(saved["settings"]["style"]))
    saved |= {"gold": right["answer"], "strict": verdict.strict, "lenient": verdict.lenient}
    return verdict


def reasoning(completion: str) -> str:
    """Give what stands before the answer.

    That is the thinking between tags, else the text up to the last mark, else all of it.
    """
    thought, end, _ = completion.rpartition("</think>")
    if end:
        return thought.replace("<think>", "", 1).strip()
    starts = [start for start, mark, _ in marked(completion) if mark != "phrase"]
    return completion[: max(starts, default=len(completion))].strip()
