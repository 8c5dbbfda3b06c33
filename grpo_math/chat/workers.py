"""One process for each model that is talked with, so that a dropped model gives back its memory.

The processes are spawned and speak over a pipe. To a worker go `Request`s, STOP and QUIT. From it
come lists of `Answer`s: none once it is loaded, one while it grows, all when they have ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

import yaml

from grpo_math.chat.screen import Answer
from grpo_math.data.prompts import (
    Asking,
    Messages,
    asks_in_chat,
    build_conversation,
    takes_system_role,
)
from grpo_math.errors import UsageError
from grpo_math.generation.backend import Backend, EngineOptions, Sampling, Watch, check_context
from grpo_math.generation.openai_client import OpenAIServer
from grpo_math.generation.transformers_backend import TransformersBackend
from grpo_math.generation.vllm_backend import VllmBackend
from grpo_math.models.fingerprint import model_identity
from grpo_math.models.loading import Loading, load_config, load_tokenizer
from grpo_math.models.source import resolve_model

STOP, QUIT = "stop", "quit"
SECONDS_BETWEEN_TEXTS = 0.04
SECONDS_TO_QUIT = 3.0
REQUESTS_AT_ONCE = 8  # to a server, of a batch
OWN = {"model", "name", "backend", "base_url", "style", "chat_template_kwargs"}  # of one model


@dataclass(frozen=True)
class ModelSpec:
    """A model to talk with: where it is, what it is called here, how it is asked and loaded.

    `style` and `chat_template_kwargs` are those of the run that made it. `context` is vLLM's limit
    on prompt and answer together, in tokens; `gpu_share` its share of the GPU's memory.
    """

    model: str
    name: str = ""
    backend: str = "transformers"
    base_url: str = ""
    style: str | None = None
    chat_template_kwargs: dict | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False
    context: int = 4096
    gpu_share: float = 0.9
    threads: int = 1  # of a CPU


def listed_models(path: str, common: ModelSpec) -> list[ModelSpec]:
    """Read a YAML file that lists models: names, or `model:` with what is its own."""
    try:
        listed = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or []
    except OSError as error:
        raise UsageError(f"--models {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"--models {path}: not a YAML file ({reason})") from error
    specs = []
    for place, entry in enumerate(listed, start=1):
        if isinstance(entry, str):
            entry = {"model": entry}
        if not isinstance(entry, dict) or "model" not in entry or not entry.keys() <= OWN:
            wanted = f"a name, or `model:` with any of {', '.join(sorted(OWN - {'model'}))}"
            raise UsageError(f"--models {path}: entry {place} must be {wanted}")
        texts = {key: str(value) for key, value in entry.items() if not isinstance(value, dict)}
        specs.append(replace(common, **{**entry, **texts}))
    return specs


@dataclass(frozen=True)
class Request:
    """Conversations to complete. With `stream` the text of a single one is sent while it grows.

    With `identify` nothing is generated: texts are digests of all that an answer depends on.
    """

    conversations: list[Messages]
    asking: Asking
    sampling: Sampling
    stream: bool = False
    identify: bool = False


class LocalModel:
    """A backend of the evaluators, asked in messages instead of token ids."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.source = spec, resolve_model(spec.model)
        loading = Loading(spec.dtype, trust_remote_code=spec.trust_remote_code)
        self.config = load_config(self.source, loading)
        self.tokenizer = load_tokenizer(self.source, loading)
        self.context = getattr(self.config, "max_position_embeddings", None)
        backend: type[Backend] = TransformersBackend
        if spec.backend == "vllm":
            backend = VllmBackend
            self.context = min(self.context or spec.context, spec.context)
        options = EngineOptions(gpu_memory_utilization=spec.gpu_share)
        length = self.context or spec.context
        self.backend = backend(self.source, loading, self.tokenizer, length, options)

    def answer(self, request: Request, watch: Watch) -> list[Answer]:
        """Complete the conversations. Raises UsageError where one leaves no room for an answer."""
        style, template = request.asking.style, request.asking.template
        chat = asks_in_chat(style, self.tokenizer)
        role = chat and takes_system_role(self.tokenizer, template)
        texts = [build_conversation(style, turns, chat, role) for turns in request.conversations]
        prompts = request.asking.token_ids(texts, self.tokenizer)
        longest = max(map(len, prompts))
        check_context(longest, request.sampling.max_tokens, self.context, "max_tokens")
        sampling = replace(request.sampling, stop=request.asking.stop(self.tokenizer))
        if request.identify:
            model = model_identity(self.source, self.config)
            return [_digest(self.spec, sampling, model, prompt) for prompt in prompts]
        if request.stream:
            done = [self.backend.stream(prompts[0], sampling, watch)]
        else:
            done = list(itertools.chain(*self.backend.generate(prompts, sampling)))
        name = self.spec.name
        return [Answer(name, each.text, each.tokens, end=each.finish_reason) for each in done]


class ServedModel:
    """A model behind an OpenAI-compatible server, asked in messages whatever the style."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.server = spec, OpenAIServer(spec.model, spec.base_url)

    def answer(self, request: Request, watch: Watch) -> list[Answer]:
        """Complete the conversations. One that fails says so, and those beside it go on."""
        spec, sampling, template = self.spec, request.sampling, dict(request.asking.template)

        def answer(turns: Messages) -> Answer:
            messages = build_conversation(request.asking.style, turns, chat=True)
            assert isinstance(messages, list)
            if request.identify:
                model = [self.server.base_url, spec.model]
                return _digest(spec, sampling, model, [messages, template])
            seen = watch if request.stream else lambda _: True
            try:
                served = self.server.complete(messages, sampling, template, seen)
            except UsageError as error:
                return Answer(spec.name, end="error", error=str(error))
            return Answer(spec.name, served.text, served.tokens, end=served.finish_reason)

        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            return list(pool.map(answer, request.conversations))


def _digest(spec: ModelSpec, sampling: Sampling, model: object, prompt: object) -> Answer:
    parts = [spec.backend, spec.dtype, asdict(sampling), model, prompt]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Answer(spec.name, digest[:16], end="stop")


Model = LocalModel | ServedModel
Models = dict[str, type[Model]]
BACKENDS: Models = {"transformers": LocalModel, "vllm": LocalModel, "openai": ServedModel}


def work(connection: Connection, spec: ModelSpec, log: str) -> None:
    """Load a model and answer, until told to quit or the other end of the pipe is gone."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):  # libraries talk; the terminal is not theirs
        os.dup2(descriptor, stream)
    os.environ.setdefault("OMP_NUM_THREADS", str(spec.threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        model = BACKENDS[spec.backend](spec)
    except Exception as error:  # whatever a library raises is one line, and other models go on
        connection.send([_failure(spec, error)])
        return
    connection.send([])
    with contextlib.suppress(EOFError, BrokenPipeError):
        while (request := connection.recv()) != QUIT:
            if isinstance(request, Request):  # a STOP that came too late is nothing
                connection.send(_attempt(model, request, connection))
    os._exit(0)  # the threads and processes of libraries may not end by themselves


def _attempt(model: Model, request: Request, connection: Connection) -> list[Answer]:
    """Give the answers that end a request; before them, send a streamed one while it grows."""
    started, sent, stopped = time.monotonic(), 0.0, False

    def watch(text: str) -> bool:
        nonlocal sent, stopped
        now = time.monotonic()
        if now - sent >= SECONDS_BETWEEN_TEXTS:
            text = text.rstrip("\ufffd")  # the first bytes of a character that is not complete yet
            connection.send([Answer(model.spec.name, text, seconds=now - started)])
            sent = now
        stopped = stopped or (connection.poll() and connection.recv() in (STOP, QUIT))
        return not stopped

    try:
        answers = model.answer(request, watch)
    except Exception as error:  # as above
        answers = [_failure(model.spec, error)]
    if stopped and not answers[0].error:
        answers = [replace(answers[0], end="interrupted")]
    return [replace(answer, seconds=time.monotonic() - started) for answer in answers]


def _failure(spec: ModelSpec, error: Exception) -> Answer:
    text = " ".join(str(error).split())[:500]
    if not isinstance(error, UsageError):
        text = f"{type(error).__name__}: {text}"
    return Answer(spec.name, end="error", error=text)


class Worker:
    """This end of a worker. `state` is "loading", "ready", "busy" or "gone"."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.state, self.told_to_stop = spec, "loading", False
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.log = tempfile.NamedTemporaryFile(prefix="chat-worker-", suffix=".log")  # noqa: SIM115
        self.process = context.Process(target=work, args=(theirs, spec, self.log.name))
        # Inherited: Ctrl-C is for this end to pass on.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        theirs.close()

    def ask(self, request: Request) -> None:
        """Begin to answer; `receive` gives what comes of it."""
        self.state, self.told_to_stop = "busy", False
        self._send(request)

    def stop(self) -> list[Answer]:
        """Tell it to stop. Told twice, it is dropped, and a last answer says so."""
        if self.told_to_stop:
            self.close()
            return [Answer(self.spec.name, end="error", error="did not stop, and was dropped")]
        self.told_to_stop = True
        self._send(STOP)
        return []

    def receive(self) -> list[Answer]:
        """Give the next answers; a last one says that the process has ended, or loads nothing."""
        try:
            answers = self.connection.recv()
        except (EOFError, OSError):
            answers = [Answer(self.spec.name, end="error", error=self._epitaph())]
            self.close()
        if self.state == "loading" and answers:
            self.close()
        elif self.state != "gone" and (not answers or answers[0].end):
            self.state = "ready"
        return answers

    def close(self) -> None:
        """End the process, by force where it does not go."""
        if self.state == "ready":
            self._send(QUIT)
            self.process.join(SECONDS_TO_QUIT)
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.log.close()
        self.state = "gone"

    def _send(self, what: Request | str) -> None:
        with contextlib.suppress(OSError):  # a process that has ended is noticed by receive()
            self.connection.send(what)

    def _epitaph(self) -> str:
        self.process.join(SECONDS_TO_QUIT)
        said = f"its process ended with status {self.process.exitcode}"
        if self.process.exitcode == -signal.SIGKILL:
            said += "; killed, perhaps for lack of memory"
        words = self.log.read().decode(errors="replace").strip().rpartition("\n")[2]
        if words:
            said += f"; its last words: {words[:200]}"
        return said


def attend(workers: list[Worker]) -> Iterator[tuple[Worker, list[Answer] | None]]:
    """Give the workers' answers as they come, until none of them is loading or busy.

    Ctrl-C does not break in anywhere: it gives None for each worker that is still waited for.
    """
    presses: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: presses.append(number))
    try:
        while waiting := [each for each in workers if each.state in ("loading", "busy")]:
            ready = wait([worker.connection for worker in waiting], timeout=0.1)
            pressed = bool(presses)
            presses.clear()
            for worker in waiting:
                if worker.connection in ready:
                    yield worker, worker.receive()
                if pressed and worker.state in ("loading", "busy"):
                    yield worker, None
    finally:
        signal.signal(signal.SIGINT, before)
