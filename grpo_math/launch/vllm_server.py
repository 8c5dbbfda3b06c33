"""Train with a vLLM server (`--vllm_mode server`): wait until it is there, end when it is gone."""

from __future__ import annotations

import os
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING

from grpo_math.errors import UsageError, tell_job

if TYPE_CHECKING:
    from trl import GRPOConfig
    from trl.generation.vllm_generation import VLLMGeneration

POLL = 5.0  # seconds between two questions


def server_url(args: GRPOConfig) -> str:
    """Give the server's address, as TRL derives it from its arguments."""
    return args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=POLL) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait_for_server(url: str, timeout: float, say: Callable[[str], None]) -> None:
    """Return once the server answers.

    Raises:
        UsageError: it did not within `timeout` seconds.
    """
    deadline, said = time.monotonic() + timeout, False
    while not is_healthy(url):
        if time.monotonic() > deadline:
            raise UsageError(
                f"no vLLM server answers at {url} after {timeout:.0f} s (--vllm_server_timeout): "
                "start it with python serve_vllm.py MODEL, and look into its log"
            )
        if not said:
            say(f"waiting for the vLLM server at {url}")
            said = True
        time.sleep(min(POLL, timeout))


class ServerWatch:
    """End this process when the server, or a transfer of weights to it, hangs for `limit` seconds.

    Without it, a trainer whose server dies within a transfer would wait for ever. The end is a hard
    one, as the main thread sits in a call that cannot be interrupted; the launcher ends the others.
    """

    def __init__(self, url: str, limit: float) -> None:
        self.url, self.limit = url, limit
        self.last_answer = time.monotonic()
        self.transfer_began: float | None = None

    def start(self, generation: VLLMGeneration) -> None:
        """Watch from a thread of its own, and time the transfers of `generation`."""
        transfer = generation.sync_weights

        def timed() -> None:
            self.transfer_began = time.monotonic()
            try:
                transfer()
            finally:
                self.transfer_began = None

        generation.sync_weights = timed
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(min(POLL, self.limit / 4))
            if is_healthy(self.url):
                self.last_answer = time.monotonic()
            if problem := self._problem():
                print(f"error: {problem}", file=sys.stderr, flush=True)
                tell_job(f"error: {problem}")
                os._exit(1)

    def _problem(self) -> str | None:
        now, began = time.monotonic(), self.transfer_began
        if now - self.last_answer > self.limit:
            silence = f"has been silent for {self.limit:.0f} s"
            return f"the vLLM server at {self.url} {silence}: look into its log"
        if began is not None and now - began > self.limit:
            taken = f"has taken over {self.limit:.0f} s (--vllm_server_timeout)"
            return f"giving weights to {self.url} {taken}: it hangs"
        return None
