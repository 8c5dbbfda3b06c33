"""Completions from a server that speaks OpenAI's API, such as `vllm serve`, one conversation at a time.

The key is taken from OPENAI_API_KEY alone and is neither shown nor stored: it is cut out of what a server says.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from typing import Any

import httpx

from grpo_math.errors import UsageError
from grpo_math.generation.backend import Completion, Sampling, Watch

SECONDS_TO_CONNECT = 10.0
SECONDS_BETWEEN_LOOKS = 0.05  # how soon a stop is noticed while the server is silent


class OpenAIServer:
    """One model of a server. `base_url` ends in /v1, as in http://127.0.0.1:8000/v1."""

    def __init__(self, model: str, base_url: str) -> None:
        """Ask the server for its models.

        Raises:
            UsageError: there is no such server, it refuses the key, or it does not have the model.
        """
        self.model, self.base_url = model, base_url.rstrip("/")
        self.key = os.environ.get("OPENAI_API_KEY", "")
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            self.client = httpx.Client(
                headers=headers, timeout=httpx.Timeout(None, connect=SECONDS_TO_CONNECT)
            )
            response = self.client.get(f"{self.base_url}/models")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise UsageError(
                f"{self.base_url}: no server answers ({self._clean(str(error))}); check --base_url"
            ) from None
        if response.status_code == 404:  # servers that list no models
            return
        known = [entry.get("id") for entry in self._json(response).get("data") or []]
        if known and model not in known:
            raise UsageError(
                f"{self.base_url} has no model {model!r}: it has {', '.join(map(str, known))}"
            )

    def stream(
        self, messages: list[dict[str, str]], sampling: Sampling, watch: Watch
    ) -> Completion:
        """One completion; `watch` sees its text as it comes, and what it stops ends there.

        Raises:
            UsageError: the server refuses or breaks off.
        """
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        events: queue.SimpleQueue[dict[str, Any] | Exception | None] = queue.SimpleQueue()
        stopped = threading.Event()
        threading.Thread(target=self._read, args=(body, events, stopped), daemon=True).start()
        text, tokens, reason, thinking = "", 0, "stop", False
        while True:
            try:
                event = events.get(timeout=SECONDS_BETWEEN_LOOKS)
            except queue.Empty:
                event = {}
            if event is None:
                return Completion(text, tokens, "length" if reason == "length" else "stop")
            if isinstance(event, Exception):
                raise UsageError(
                    f"{self.base_url}: {self._clean(str(event) or type(event).__name__)}"
                )
            for choice in event.get("choices") or []:
                delta = choice.get("delta") or {}
                thought, said = (
                    delta.get("reasoning_content") or delta.get("reasoning"),
                    delta.get("content"),
                )
                if thought:
                    text, thinking = text + ("" if thinking else "<think>") + thought, True
                if said:
                    text, thinking = text + ("</think>" if thinking else "") + said, False
                reason = choice.get("finish_reason") or reason
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            if not watch(text):
                stopped.set()
                return Completion(text, tokens, "stop")

    def _read(
        self, body: dict[str, Any], events: queue.SimpleQueue, stopped: threading.Event
    ) -> None:
        """In a thread of its own, for a server may be silent for long: put its events, then None or an error."""
        try:
            with self.client.stream(
                "POST", f"{self.base_url}/chat/completions", json=body
            ) as response:
                if response.status_code != 200:
                    response.read()
                    self._json(response)
                for line in response.iter_lines():
                    if stopped.is_set():
                        return
                    if line.startswith("data:") and line != "data: [DONE]":
                        events.put(json.loads(line.removeprefix("data:")))
            events.put(None)
        except (
            Exception
        ) as error:  # the network and the server fail in many ways; all end with the one who waits
            events.put(error)

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        try:
            content = response.json()
        except ValueError:
            content = {}
        if response.status_code == 200 and isinstance(content, dict):
            return content
        error = content.get("error", content) if isinstance(content, dict) else content
        said = error.get("message", error) if isinstance(error, dict) else error
        hint = "; set OPENAI_API_KEY" if response.status_code in (401, 403) and not self.key else ""
        raise UsageError(
            f"{self.base_url}: status {response.status_code} ({self._clean(str(said))}){hint}"
        )

    def _clean(self, text: str) -> str:
        """One line of at most 300 characters, without the key."""
        text = " ".join(text.split())
        return (text.replace(self.key, "[key]") if self.key else text)[:300]
