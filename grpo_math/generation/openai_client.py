"""Ask a server that speaks OpenAI's API, such as `vllm serve`, for one completion at a time.

The key comes from OPENAI_API_KEY alone. It is neither shown nor stored, and cut out of what a
server says.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from grpo_math.data.prompts import Messages
from grpo_math.errors import UsageError
from grpo_math.generation.backend import Sampling, Watch

TIMEOUT = httpx.Timeout(None, connect=10.0)  # seconds; an answer may take its time
SECONDS_BETWEEN_LOOKS = 0.05  # how soon a stop is noticed while the server is silent
# How servers say that an answer has ended; to be filtered or to fail is no end.
ENDS = {"stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "length": "length"}


@dataclass
class Served:
    """What has come of a completion. `tokens` is None until, and unless, the server counts them."""

    text: str = ""
    tokens: int | None = None
    finish_reason: str = "none"
    error: str = ""
    stopped: bool = False
    thinking: bool = False  # in reasoning that comes apart

    def add(self, event: Any) -> None:
        """Take in one event of the stream. Reasoning that comes apart stands in <think> tags."""
        if not isinstance(event, dict) or "choices" not in event or event.get("error"):
            raise UsageError(f"the answer broke off ({_words(event)})")
        for choice in event["choices"] or []:
            delta = choice.get("delta") or {}
            if thought := delta.get("reasoning_content") or delta.get("reasoning"):
                self.text += thought if self.thinking else f"<think>{thought}"
                self.thinking = True
            if said := delta.get("content"):
                self.text += f"</think>{said}" if self.thinking else said
                self.thinking = False
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.tokens = (event.get("usage") or {}).get("completion_tokens", self.tokens)


class OpenAIServer:
    """One model of a server. `base_url` ends in /v1, as in http://127.0.0.1:8000/v1."""

    def __init__(self, model: str, base_url: str) -> None:
        """Ask for the server's models. Raises UsageError where it does not answer or lacks it."""
        self.model, self.base_url = model, base_url.rstrip("/")
        self.key = os.environ.get("OPENAI_API_KEY", "")
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            self.client = httpx.Client(headers=headers, timeout=TIMEOUT)
            response = self.client.get(f"{self.base_url}/models")
            listed = response.status_code != 404 and self._json(response).get("data")
        except UsageError as error:
            raise self._error(str(error)) from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise self._error(f"no server answers ({error}); check --base_url") from None
        known = [str(entry.get("id")) for entry in listed or []]
        if known and model not in known:
            raise self._error(f"has no model {model!r}: it has {', '.join(known)}")

    def complete(
        self, messages: Messages, sampling: Sampling, template: dict, watch: Watch
    ) -> Served:
        """Give one completion; `watch` sees its text as it comes, and what it stops ends there.

        `template` holds arguments of the chat template. Raises UsageError where the server
        refuses, fails, or does not say that the answer has ended.
        """
        body = {"model": self.model, "messages": messages, "stream": True}
        body |= {name: getattr(sampling, name) for name in ("temperature", "top_p", "max_tokens")}
        body |= {"seed": sampling.seed, "stream_options": {"include_usage": True}}
        if template:
            body["chat_template_kwargs"] = template
        served = Served()
        # In a thread, for a server may be silent for long, and is to be stopped then, too.
        reader = threading.Thread(target=self._read, args=(body, served), daemon=True)
        reader.start()
        while reader.is_alive():
            reader.join(SECONDS_BETWEEN_LOOKS)
            if reader.is_alive() and not watch(served.text):
                served.stopped = True
                return Served(served.text, served.tokens, "stop")
        if not served.error and served.finish_reason not in ENDS:
            after = f"after {len(served.text)} characters, finish_reason {served.finish_reason}"
            served.error = f"the answer broke off ({after})"
        if served.error:
            raise self._error(served.error)
        return Served(served.text, served.tokens, ENDS[served.finish_reason])

    def _read(self, body: dict, served: Served) -> None:
        """Read the whole answer into `served`; what goes wrong is left there, for who waits."""
        url = f"{self.base_url}/chat/completions"
        try:
            with self.client.stream("POST", url, json=body) as response:
                if response.status_code != 200:
                    response.read()
                    self._json(response)
                for event in _events(response.iter_lines()):
                    if served.stopped:
                        return
                    served.add(event)
        except UsageError as error:
            served.error = str(error)
        except Exception as error:  # the network and the server fail in many ways
            served.error = f"the answer broke off ({type(error).__name__}: {error})"

    def _json(self, response: httpx.Response) -> dict:
        try:
            content = response.json()
        except ValueError:
            content = response.text
        if response.status_code == 200 and isinstance(content, dict):
            return content
        said = f"status {response.status_code} ({_words(content)})"
        if response.status_code in (401, 403) and not self.key:
            said += "; set OPENAI_API_KEY"
        raise UsageError(said)

    def _error(self, text: str) -> UsageError:
        """Make one line of at most 300 characters, without the key."""
        text = " ".join(text.split()).replace(self.key or "\0", "[key]")
        return UsageError(f"{self.base_url}: {text[:300]}")


def _events(lines: Iterable[str]) -> Iterator[object]:
    """Give the events of a stream (server-sent events, each with JSON on one line) up to [DONE]."""
    for line in lines:
        name, _, data = line.partition(":")
        if name not in ("data", "event", "id", "retry", ""):  # a page of HTML, say
            raise UsageError(f"sent no stream of events but {line.strip()[:100]!r}")
        if data.strip() == "[DONE]":
            return
        if name == "data":
            yield json.loads(data)


def _words(content: Any) -> str:
    """Give what a server says of an error, in whatever form it says it."""
    for key in ("error", "message", "detail"):
        if isinstance(content, dict):
            content = content.get(key, content)
    return str(content)
