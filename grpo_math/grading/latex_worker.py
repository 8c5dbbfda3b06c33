"""Compare LaTeX expressions with math-verify in a process that is killed when it takes too long.

Simplifying what a model writes can take for ever, fill the memory or end the process, so it happens
in a worker that is killed after `LIMIT_SECONDS` and started again when it is next needed. Text
reaches it as JSON and is only ever parsed as LaTeX: sympy's parse_expr, which evaluates Python,
gets single numbers and names and nothing else.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 1.0  # of CPU time per comparison, from when the worker starts on it
WALL_SECONDS = 10.0  # the same on the clock, for a machine so busy that CPU time hardly passes
START_SECONDS = 120.0  # to import sympy, from a cold network disk
MEMORY_BYTES = 2 * 2**30  # of address space

_NUMBER_OR_NAME = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?|[A-Za-z]{1,20}")

# --- The side that asks --------------------------------------------------------------------------


class _Worker:
    """The worker of this process: started at the first question, and again after it was killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()

    def ask(self, gold: str, answer: str) -> bool | None:
        """The worker's verdict; None when it had none to give, or gave none in time."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self._start()
            reply = self._exchange(json.dumps([gold, answer, LIMIT_SECONDS]) + "\n", WALL_SECONDS)
            return {"true": True, "false": False}.get(reply)

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        # Not multiprocessing, which would import the user's script again; -P: and nothing from
        # the current folder.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import _serve; _serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
            env={**os.environ, "PYTHONPATH": path},
        )
        if not self._exchange("", START_SECONDS):
            raise RuntimeError(
                "the process that grades symbolic answers does not start; "
                f"`{sys.executable} -c 'import math_verify'` says why (pip install math-verify)"
            )

    def _exchange(self, question: str, seconds: float) -> str:
        """Send a line and wait for one; "" and no worker any more when it is late, or dead."""
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(question)
            process.stdin.flush()
            reply = process.stdout.readline()
        except OSError:  # it died before it could read
            reply = ""
        timer.cancel()
        timer.join()  # from here on it either has killed the worker, or never will
        if not reply.endswith("\n") or process.poll() is not None:
            self.stop()
            return ""
        return reply.strip()

    def stop(self) -> None:
        """End the process, if there is one."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError):
                process.communicate()


_worker = _Worker()


def ask(gold: str, answer: str) -> bool | None:
    """Tell whether two answers are equal; None when that could not be found out."""
    return _worker.ask(gold, answer)


def close() -> None:
    """End the worker, if there is one; the next question starts another. Runs at exit."""
    with _worker.lock:
        _worker.stop()


def _after_fork() -> None:
    global _worker
    _worker = _Worker()  # the other one answers to the parent


atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

# --- The side that answers -----------------------------------------------------------------------


def _serve() -> None:
    """Answer questions until there are no more. Runs in the worker process, and nowhere else."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever prints, does not print among the replies
    for gold, answer in _WARM_UP:
        _compare(gold, answer)
    _lock_down()
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        gold, answer, limit = json.loads(line)
        _set_timer(limit)
        try:
            verdict = _compare(gold, answer)
        except Exception:  # out of memory, or a bug in sympy: no verdict
            verdict = None
        _set_timer(0)
        print(json.dumps(verdict), file=replies, flush=True)


def _set_timer(seconds: float) -> None:
    """Have the kernel end this process after so much CPU time; 0 calls that off."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _compare(gold: str, answer: str) -> bool | None:
    """Whether two LaTeX expressions are equal; None when the first cannot be read."""
    from math_verify import verify

    golds = _parse(gold)
    if not golds:
        return None
    return verify(golds, _parse(answer), timeout_seconds=None)


def _parse(latex: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    # math-verify's own search would make a set of two boxes; here there is one, and no more.
    return parse(
        f"\\boxed{{{latex}}}",
        extraction_config=[LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        # Its own time limit works in the main thread only, and not while C code runs.
        parsing_timeout=None,
    )


def _lock_down() -> None:
    """Take away what comparing does not need: memory, files, programs, the network, eval."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import latex2sympy2_extended.latex2sympy2
    import math_verify.parser
    import sympy.parsing.sympy_parser

    evaluate = sympy.parsing.sympy_parser.parse_expr

    def parse_harmless(text: str, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(text, str) or not _NUMBER_OR_NAME.fullmatch(text):
            raise ValueError("neither a number nor a name")
        return evaluate(text, *args, **kwargs)

    for module in (sympy.parsing, sympy.parsing.sympy_parser):
        module.parse_expr = parse_harmless
    for module in (math_verify.parser, latex2sympy2_extended.latex2sympy2):
        module.parse_expr = parse_harmless
    sys.dont_write_bytecode = True
    sys.addaudithook(_refuse)


# The first comparison of a kind imports modules and builds tables: not at a question's cost.
_WARM_UP = [
    (r"(x+1)^2", r"x^2+2x+1"),
    (r"\frac{\sqrt{8}}{2}", r"1.5"),
    (r"\sin(x)", r"\cos(x)"),
    (r"x+y=1", r"y=1-x"),
    (r"x<1", r"x>1"),
    (r"(0,1]", r"[0,1)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
]
_REFUSED_EVENTS = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "webbrowser.")
_HARMLESS_EVENTS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk")


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        raise PermissionError("this process opens no file to write to it")
    if event.startswith((*_REFUSED_EVENTS, "tempfile.")) and event not in _HARMLESS_EVENTS:
        raise PermissionError(f"this process is not for {event}")
