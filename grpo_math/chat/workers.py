"""One process per model that is talked with, so that a model which is dropped gives all of its memory back.

The processes are spawned and speak over a pipe. To a worker go `Request`s, STOP and QUIT; from it come

    ("ready",)                           loaded
    ("failed", line)                     not loaded, and why
    ("text", so_far)                     while a single completion grows
    ("done", [Completion, ...], stopped)
    ("error", line)                      a request that could not be answered; the worker goes on
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

from grpo_math.data.prompts import (
    Asking,
    asks_in_chat,
    build_conversation,
    stop_strings,
    takes_system_role,
)
from grpo_math.data.styles import PromptStyle
from grpo_math.errors import UsageError
from grpo_math.generation.backend import Completion, EngineOptions, Sampling, Watch
from grpo_math.generation.openai_client import OpenAIServer
from grpo_math.generation.transformers_backend import TransformersBackend
from grpo_math.generation.vllm_backend import VllmBackend
from grpo_math.models.loading import Loading, load_config, load_tokenizer
from grpo_math.models.source import resolve_model

BACKENDS = ("transformers", "vllm", "openai")
STOP, QUIT = "stop", "quit"
SECONDS_BETWEEN_TEXTS = 0.04
SECONDS_TO_QUIT = 3.0
REQUESTS_AT_ONCE = 8  # to a server, of a batch
Message = tuple[Any, ...]
Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class ModelSpec:
    """A model to talk with: where it is, what it is called here, and how to load it.

    `style` is the prompt style of the run that made it. `context` is vLLM's limit on prompt and completion together,
    in tokens; `gpu_share` its share of the GPU's memory (0 to 1); `threads` are those of a CPU.
    """

    model: str
    name: str
    backend: str
    base_url: str | None = None
    style: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False
    context: int = 4096
    gpu_share: float = 0.9
    threads: int = 1


@dataclass(frozen=True)
class Request:
    """Conversations to be completed in a style; a single one that is `streamed` sends its text as it grows."""

    conversations: list[Conversation]
    style: PromptStyle
    sampling: Sampling
    streamed: bool = False


class LocalModel:
    """A backend of the evaluators behind messages instead of token ids."""

    def __init__(self, spec: ModelSpec) -> None:
        source, loading = (
            resolve_model(spec.model),
            Loading(spec.dtype, trust_remote_code=spec.trust_remote_code),
        )
        self.context = getattr(load_config(source, loading), "max_position_embeddings", None)
        self.tokenizer = load_tokenizer(source, loading)
        self.system_role = self.tokenizer.chat_template is not None and takes_system_role(
            self.tokenizer, {}
        )
        backend: type[TransformersBackend] | type[VllmBackend] = TransformersBackend
        if spec.backend == "vllm":
            backend = VllmBackend
            self.context = min(self.context or spec.context, spec.context)
        options = EngineOptions(gpu_memory_utilization=spec.gpu_share)
        length = self.context or spec.context
        self.backend = backend(source, loading, self.tokenizer, length, options)

    def stream(self, request: Request, watch: Watch) -> Completion:
        prompts, sampling = self._prompts(request)
        return self.backend.stream(prompts[0], sampling, watch)

    def generate(self, request: Request) -> list[Completion]:
        return [completions[0] for completions in self.backend.generate(*self._prompts(request))]

    def _prompts(self, request: Request) -> tuple[list[list[int]], Sampling]:
        style, most = request.style, request.sampling.max_tokens
        chat = asks_in_chat(style, self.tokenizer)
        texts = [
            build_conversation(style, turns, chat, self.system_role)
            for turns in request.conversations
        ]
        prompts = Asking(style).token_ids(texts, self.tokenizer)
        longest = max(map(len, prompts))
        if self.context and longest + most > self.context:
            raise UsageError(
                f"the prompt has {longest} tokens and the answer may have {most}, together more than the context of "
                f"{self.context}: lower max_tokens, or begin a new conversation"
            )
        return prompts, replace(request.sampling, stop=stop_strings(chat, style))


class ServedModel:
    """A model behind an OpenAI-compatible server, which is asked in messages whatever the style."""

    def __init__(self, spec: ModelSpec) -> None:
        self.server = OpenAIServer(spec.model, spec.base_url or "")

    def stream(self, request: Request, watch: Watch) -> Completion:
        return self._complete(request, request.conversations[0], watch)

    def generate(self, request: Request) -> list[Completion]:
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            return list(
                pool.map(
                    lambda turns: self._complete(request, turns, lambda _: True),
                    request.conversations,
                )
            )

    def _complete(self, request: Request, turns: Conversation, watch: Watch) -> Completion:
        messages = build_conversation(request.style, turns, chat=True)
        return self.server.stream(cast(Conversation, messages), request.sampling, watch)


def work(connection: Connection, spec: ModelSpec, log: str) -> None:
    """What a worker does: load, answer, until it is told to quit or the other end of the pipe is gone."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):  # libraries talk; the terminal is not theirs
        os.dup2(descriptor, stream)
    os.environ.setdefault("OMP_NUM_THREADS", str(spec.threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        model = ServedModel(spec) if spec.backend == "openai" else LocalModel(spec)
    except (
        Exception
    ) as error:  # whatever a library raises is one line for the user, and the other models go on
        connection.send(("failed", one_line(error)))
        return
    connection.send(("ready",))
    with contextlib.suppress(EOFError, BrokenPipeError):
        while (request := connection.recv()) != QUIT:
            if isinstance(request, Request):  # a STOP that came too late is nothing
                connection.send(answer(model, request, connection))
    os._exit(0)  # the threads and processes of libraries may not end by themselves


def answer(model: Any, request: Request, connection: Connection) -> Message:
    """The message that ends a request."""
    last, stopped = 0.0, False

    def watch(text: str) -> bool:
        nonlocal last, stopped
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_TEXTS:
            connection.send(
                ("text", text.rstrip("\ufffd"))
            )  # the first bytes of a character that is not whole yet
            last = now
        stopped = stopped or (connection.poll() and connection.recv() in (STOP, QUIT))
        return not stopped

    try:
        completions = (
            [model.stream(request, watch)] if request.streamed else model.generate(request)
        )
    except Exception as error:  # as above
        return ("error", one_line(error))
    return ("done", completions, stopped)


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:500] if isinstance(error, UsageError) else f"{type(error).__name__}: {text[:300]}"


@dataclass
class Worker:
    """This end of a worker. `state` is "loading", "ready", "busy" or "gone"."""

    spec: ModelSpec
    state: str = "loading"
    connection: Connection = field(init=False)
    process: Any = field(init=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        descriptor, self.log = tempfile.mkstemp(prefix="chat-worker-", suffix=".log")
        os.close(descriptor)
        self.process = context.Process(target=work, args=(theirs, self.spec, self.log))
        before = signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # inherited: Ctrl-C is for this end to pass on
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        theirs.close()

    def ask(self, request: Request) -> None:
        self.state = "busy"
        self._send(request)

    def stop(self) -> None:
        self._send(STOP)

    def receive(self) -> Message:
        """The next message. A process that has ended sends a last one: it failed, or could not answer."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            kind = "failed" if self.state == "loading" else "error"
            message = (kind, self._epitaph())
            self.close()
        if message[0] == "failed":
            self.close()
        elif message[0] != "text" and self.state != "gone":
            self.state = "ready"
        return message

    def close(self) -> None:
        """End the process, by force where it does not go."""
        if self.state == "gone":
            return
        if self.state == "ready":
            self._send(QUIT)
            self.process.join(SECONDS_TO_QUIT)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()
        Path(self.log).unlink(missing_ok=True)
        self.state = "gone"

    def _send(self, what: Any) -> None:
        with contextlib.suppress(OSError):  # a process that has ended is noticed by receive()
            self.connection.send(what)

    def _epitaph(self) -> str:
        self.process.join(SECONDS_TO_QUIT)
        lines = Path(self.log).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        killed = (
            "; killed, perhaps for lack of memory"
            if self.process.exitcode == -signal.SIGKILL
            else ""
        )
        said = f"; its last words: {lines[-1][:200]}" if lines else ""
        return f"its process ended with status {self.process.exitcode}{killed}{said}"


def attend(
    workers: list[Worker],
    handle: Callable[[Worker, Message], None],
    interrupt: Callable[[list[Worker], int], None],
) -> None:
    """Pass on messages until none of the workers is loading or busy.

    Ctrl-C does not break in anywhere: `interrupt` is called between messages, with those still waited for and how often
    it was pressed.
    """
    presses: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: presses.append(number))
    seen = 0
    try:
        while waiting := [worker for worker in workers if worker.state in ("loading", "busy")]:
            ready = wait([worker.connection for worker in waiting], timeout=0.1)
            for worker in [worker for worker in waiting if worker.connection in ready]:
                handle(worker, worker.receive())
            if len(presses) > seen:
                seen = len(presses)
                interrupt(
                    [worker for worker in waiting if worker.state in ("loading", "busy")], seen
                )
    finally:
        signal.signal(signal.SIGINT, before)


def cpu_threads(models: int) -> int:
    """Threads for each of several models, so that they do not fight for the processors."""
    processors = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, processors // max(1, models))
