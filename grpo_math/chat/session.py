"""A talk with several models at once: settings, models, conversations, and the rows that are kept of it.

A row of the output is one answer:

    {"question", "model", "name", "reasoning", "answer", "completion", "tokens", "finish_reason", "settings"}

`answer` is what the grader would judge, `reasoning` what stands before it, `completion` all of it. In a conversation
there is `history` too, and `gold`, `strict` and `lenient` where the right answer is known.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo_math.chat.screen import Answer, Screen, notice
from grpo_math.chat.workers import (
    BACKENDS,
    Conversation,
    Message,
    ModelSpec,
    Request,
    Worker,
    attend,
    cpu_threads,
)
from grpo_math.data.styles import PromptStyle, get_style
from grpo_math.data.tasks import TASKS, get_task
from grpo_math.data.tasks import grade as grade_row
from grpo_math.errors import UsageError
from grpo_math.files import append_jsonl
from grpo_math.generation.backend import Sampling
from grpo_math.grading.extraction import extract_lenient, marked
from grpo_math.grading.graders import Verdict
from grpo_math.grading.numbers import canonical_number
from grpo_math.models.source import resolve_model

Row = dict[str, Any]
LIMITS = {
    "temperature": (float, 0, 100),
    "max_tokens": (int, 1, 1 << 30),
    "seed": (int, 0, 1 << 32),
}


@dataclass
class Settings:
    """What holds for all models. `style` None is each model's own, `system` None the style's, `seed` None a new one
    for every question."""

    conversation: bool = False
    style: str | None = None
    system: str | None = None
    temperature: float = 0.0
    max_tokens: int = 512
    seed: int | None = None

    def sampling(self) -> Sampling:
        seed = random.SystemRandom().randrange(1 << 31) if self.seed is None else self.seed
        return Sampling(1, self.temperature, 1.0, 0, self.max_tokens, seed, ())


def number(name: str, text: str) -> Any:
    """The value of a setting from its text. Raises UsageError where it cannot be."""
    kind, least, most = LIMITS[name]
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise UsageError(
            f"{name} {text!r}: must be {'a number' if kind is float else 'a whole number'} from {least} on"
        )
    return value


class Session:
    """The models that are there, and what was said."""

    def __init__(self, settings: Settings, template: ModelSpec, output: Path | None = None) -> None:
        """`template` holds what models have in common. Raises UsageError where `output` cannot be written."""
        self.settings, self.template, self.output = settings, template, output
        self.workers: list[Worker] = []
        self.history: dict[str, Conversation] = {}
        self.rows: list[Row] = []
        self.last: list[Row] = []
        if settings.style:
            get_style(settings.style)
        if output:
            self.save([])

    def add(self, entries: list[dict[str, str]]) -> None:
        """Load models at the same time. One that cannot be loaded says why, and the others go on."""
        specs, taken = [], {worker.spec.name for worker in self.workers}
        for entry in entries:
            try:
                specs.append(self._spec(entry, taken))
            except UsageError as error:
                notice(f"error: {error}")
        threads = cpu_threads(len(self.workers) + len(specs))
        share = self.template.gpu_share / max(1, len(specs))
        started = time.monotonic()
        new = []
        for spec in specs:
            notice(f"loading {spec.name} ...")
            new.append(Worker(replace(spec, threads=threads, gpu_share=share)))
        self.workers += new

        def handle(worker: Worker, message: Message) -> None:
            if message[0] == "ready":
                notice(f"{worker.spec.name} is ready ({time.monotonic() - started:.0f} s)")
            else:
                notice(
                    f"error: {worker.spec.name}: not loaded: {message[1].removeprefix(worker.spec.model + ': ')}"
                )

        def interrupt(waiting: list[Worker], _: int) -> None:
            for worker in waiting:
                worker.close()
                notice(f"{worker.spec.name}: interrupted, not loaded")

        attend(new, handle, interrupt)
        self.workers = [worker for worker in self.workers if worker.state != "gone"]

    def _spec(self, entry: dict[str, str], taken: set[str]) -> ModelSpec:
        model, backend = entry["model"], entry.get("backend", self.template.backend)
        if backend not in BACKENDS:
            raise UsageError(
                f"{model}: unknown backend {backend!r}: known ones are {', '.join(BACKENDS)}"
            )
        source = None if backend == "openai" else resolve_model(model)
        style = entry.get("style") or ((source.record or {}).get("prompt") if source else None)
        if style:
            get_style(style)
        name = first = entry.get("name") or (
            source.name if source else model.rstrip("/").rsplit("/", 1)[-1]
        )
        copies = 1
        while name in taken:
            copies += 1
            name = f"{first}-{copies}"
        taken.add(name)
        base_url = entry.get("base_url", self.template.base_url)
        return replace(
            self.template, model=model, name=name, backend=backend, base_url=base_url, style=style
        )

    def drop(self, worker: Worker) -> None:
        worker.close()
        self.workers.remove(worker)
        self.history.pop(worker.spec.name, None)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()

    def style_of(self, spec: ModelSpec) -> PromptStyle:
        """The style chosen for all; else that of the model's run; else, for comparison, that of the first run's."""
        runs = [worker.spec.style for worker in self.workers if worker.spec.style]
        return get_style(
            self.settings.style or spec.style or next(iter(runs), TASKS["custom"].prompt)
        )

    def request(
        self, spec: ModelSpec, questions: list[str], sampling: Sampling, streamed: bool = False
    ) -> Request:
        """What a model is asked: each question at the end of its conversation so far."""
        style = self.style_of(spec)
        if self.settings.system is not None:
            style = replace(style, system=self.settings.system)
        before = self.history.get(spec.name, [])
        conversations = [[*before, {"role": "user", "content": question}] for question in questions]
        return Request(conversations, style, sampling, streamed)

    def ask(self, question: str, screen: Screen) -> list[Answer]:
        """Ask all models at the same time, show and keep their answers. Ctrl-C stops them; twice drops who does not."""
        if not self.workers:
            raise UsageError("no model is loaded: /add MODEL")
        sampling, started = self.settings.sampling(), time.monotonic()
        answers = {worker.spec.name: Answer(worker.spec.name) for worker in self.workers}
        for worker in self.workers:
            worker.ask(self.request(worker.spec, [question], sampling, streamed=True))

        with screen.watching(list(answers.values())) as changed:

            def handle(worker: Worker, message: Message) -> None:
                answer, kind = answers[worker.spec.name], message[0]
                answer.seconds = time.monotonic() - started
                if kind == "text":
                    answer.text = message[1]
                elif kind == "done":
                    (completion,), stopped = message[1:]
                    answer.text, answer.tokens = completion.text, completion.tokens
                    answer.end = "interrupted" if stopped else completion.finish_reason
                else:
                    answer.end, answer.error = "error", message[1]
                changed()

            def interrupt(waiting: list[Worker], presses: int) -> None:
                for worker in waiting:
                    if presses == 1:
                        worker.stop()
                    else:
                        worker.close()
                        handle(worker, ("error", "did not stop, and was dropped"))

            attend(self.workers, handle, interrupt)
        self._keep(question, sampling, answers)
        self.workers = [worker for worker in self.workers if worker.state != "gone"]
        return list(answers.values())

    def _keep(self, question: str, sampling: Sampling, answers: dict[str, Answer]) -> None:
        self.last = []
        for worker in self.workers:
            spec, answer = worker.spec, answers[worker.spec.name]
            if answer.end == "error":
                continue
            row = self.row(spec, question, sampling, answer.text, answer.tokens, answer.end)
            if self.settings.conversation:
                history = self.history.setdefault(spec.name, [])
                row["history"] = list(history)
                history += [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer.text},
                ]
            self.last.append(row)
        self.rows += self.last
        self.save(self.last)

    def row(
        self, spec: ModelSpec, question: str, sampling: Sampling, text: str, tokens: int, end: str
    ) -> Row:
        """One answer, as it is saved."""
        return {
            "question": question,
            "model": spec.model,
            "name": spec.name,
            "reasoning": reasoning(text),
            "answer": extract_lenient(text).text,
            "completion": text,
            "tokens": tokens,
            "finish_reason": end,
            "settings": self.recorded_settings(spec, sampling),
        }

    def recorded_settings(self, spec: ModelSpec, sampling: Sampling) -> dict[str, Any]:
        """What an answer was made with."""
        return {
            "backend": spec.backend,
            "style": self.style_of(spec).name,
            "system": self.settings.system,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
        }

    def grade(self, gold: str) -> list[tuple[Row, Verdict]]:
        """Judge the last answers, and note the verdicts in their rows."""
        verdicts = [
            grade(row["completion"], gold, get_style(row["settings"]["style"])) for row in self.last
        ]
        for row, verdict in zip(self.last, verdicts, strict=True):
            row |= {"gold": gold, "strict": verdict.strict, "lenient": verdict.lenient}
        return list(zip(self.last, verdicts, strict=True))

    def save(self, rows: list[Row]) -> None:
        """Add rows to the output, if there is one."""
        if self.output is None:
            return
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            append_jsonl(self.output, rows)
        except OSError as error:
            raise UsageError(
                f"{self.output}: cannot be written ({error.strerror or error})"
            ) from error


def reasoning(completion: str) -> str:
    """What stands before the answer: thinking between tags, else the text up to the last mark, else all of it."""
    thought, end, _ = completion.rpartition("</think>")
    if end:
        return thought.replace("<think>", "", 1).strip()
    start = next(
        (start for start, mark, _ in marked(completion) if mark != "phrase"), len(completion)
    )
    return completion[:start].strip()


def grade(completion: str, gold: str, style: PromptStyle) -> Verdict:
    """Whether a completion gives the answer `gold`: a number, or else LaTeX."""
    task = get_task("custom" if canonical_number(gold) is not None else "math")
    answer = task.canonical(gold) or gold
    return grade_row({"question": "", "answer": answer, "task": task.name}, completion, style)
