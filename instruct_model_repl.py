"""Talk with one or several models: one prompt, their answers side by side, streamed as they come.

    python instruct_model_repl.py starter_model outputs/quickstart
    python instruct_model_repl.py Qwen/Qwen2.5-0.5B-Instruct --conversation --temperature 0.7
    python instruct_model_repl.py starter_model -p "What is 4 plus 5?"
    python instruct_model_repl.py MODEL --input questions.jsonl --output answers.jsonl
    python instruct_model_repl.py MODEL --backend openai --base_url http://127.0.0.1:8000/v1

/help lists the commands; Ctrl-C stops the answers, Ctrl-D leaves. Questions can be piped in, a line each. Models may
be named here, in a YAML file (--models), or in MODELS at the top of this file. Each has a process of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_math.errors import UsageError, run

MODELS = ["starter_model"]  # talked with when none is named: edit me


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        metavar="MODEL",
        help="Hub id, model folder, checkpoint, a run's folder, a server's model",
    )
    add(
        "--models",
        metavar="YAML",
        help="list of models: names, or `model:` with `name:`, `backend:`, `style:` ...",
    )
    add(
        "--backend",
        default="transformers",
        help="transformers, vllm or openai (default: transformers)",
    )
    add(
        "--base_url",
        help="of an OpenAI-compatible server (default: $OPENAI_BASE_URL); its key: $OPENAI_API_KEY",
    )
    add("-p", "--question", help="answer this one and leave")
    add(
        "--input",
        metavar="JSONL",
        help="answer the questions of this file and leave; needs --output",
    )
    add("--output", type=Path, metavar="JSONL", help="append every answer to this file")
    add(
        "--conversation",
        action="store_true",
        help="questions follow on each other (default: each is a new one)",
    )
    add("--style", help="prompt style of all models (default: each one's own, from its run)")
    add("--system", help="system prompt, in place of the style's; '' is none")
    add("--temperature", default="0", help="0 is greedy (default: 0)")
    add("--max_tokens", default="512", help="of an answer (default: 512)")
    add("--seed", help="of sampling (default: a new one for every question; 0 with --input)")
    add("--dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"])
    add("--trust_remote_code", action="store_true", help="run code that comes with the model")
    add(
        "--max_model_len",
        type=int,
        default=4096,
        help="vLLM: tokens of prompt and answer (default: 4096)",
    )
    add(
        "--gpu_memory_utilization",
        type=float,
        default=0.9,
        help="vLLM: of the GPU, shared by the models (default: 0.9)",
    )
    return parser.parse_args()


def model_entries(args: argparse.Namespace) -> list[dict[str, str]]:
    """The models to load, from the command line, the YAML file, or MODELS."""
    if not args.models:
        return [{"model": name} for name in args.names or MODELS]
    import yaml

    try:
        listed = yaml.safe_load(Path(args.models).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--models {args.models}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--models {args.models}: not a YAML file ({' '.join(str(error).split())[:200]})"
        ) from error
    entries = [{"model": item} if isinstance(item, str) else item for item in listed or []]
    known = {"model", "name", "backend", "base_url", "style"}
    for place, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or "model" not in entry or not entry.keys() <= known:
            raise UsageError(
                f"--models {args.models}: entry {place} must be a name, or `model:` with any of "
                f"{', '.join(sorted(known - {'model'}))}"
            )
    return [{"model": name} for name in args.names] + [
        {k: str(v) for k, v in entry.items()} for entry in entries
    ]


def line_reader() -> Callable[[], str]:
    """What gives the next line: a prompt with history and editing, or standard input where that is no terminal."""
    if not sys.stdin.isatty():

        def read() -> str:
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line

        return read
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from grpo_math.chat.commands import COMMANDS

    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "grpo_math"
    history: Any = InMemoryHistory()
    try:
        state.mkdir(parents=True, exist_ok=True)
        (state / "history").open("a").close()
        history = FileHistory(state / "history")
    except OSError:
        pass  # a home that cannot be written to is no reason not to talk
    commands = WordCompleter([f"/{name}" for name in COMMANDS], sentence=True)
    prompt: PromptSession[str] = PromptSession(
        history=history, completer=commands, complete_while_typing=False
    )
    return lambda: prompt.prompt(">>> ")


def talk(session: Any, screen: Any) -> None:
    """Answer questions and do commands until the end of the input."""
    from grpo_math.chat.commands import run_command
    from grpo_math.chat.screen import notice

    read = line_reader()
    while True:
        try:
            line = read().strip()
        except KeyboardInterrupt:  # at the prompt it takes back the line
            continue
        except EOFError:
            return
        try:
            if line.startswith("/"):
                if run_command(session, line):
                    return
            elif line:
                session.ask(line, screen)
        except UsageError as error:
            notice(f"error: {error}")


def main() -> None:
    args = parse_args()
    if args.input and (args.output is None or args.question):
        raise UsageError("--input: needs --output, where the answers go, and no -p")
    entries = model_entries(args)

    from grpo_math.chat.batch import load_questions, run_file
    from grpo_math.chat.screen import Screen
    from grpo_math.chat.session import Session, Settings, number
    from grpo_math.chat.workers import ModelSpec

    seed = args.seed or ("0" if args.input else None)
    settings = Settings(
        conversation=args.conversation,
        style=args.style,
        system=args.system,
        temperature=number("temperature", args.temperature),
        max_tokens=number("max_tokens", args.max_tokens),
        seed=None if seed is None else number("seed", seed),
    )
    template = ModelSpec(
        model="",
        name="",
        backend=args.backend,
        base_url=args.base_url or os.environ.get("OPENAI_BASE_URL"),
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
        context=args.max_model_len,
        gpu_share=args.gpu_memory_utilization,
    )
    if args.input:
        load_questions(args.input)  # mistakes in it show before models are loaded
    session = Session(settings, template, args.output)
    try:
        session.add(entries)
        if not session.workers:
            raise UsageError("none of the models could be loaded")
        if args.input:
            run_file(session, args.input, args.output)
        elif args.question is not None:
            failed = [
                answer for answer in session.ask(args.question, Screen()) if answer.end == "error"
            ]
            if failed:
                raise UsageError("; ".join(f"{answer.name}: {answer.error}" for answer in failed))
        else:
            talk(session, Screen())
    finally:
        session.close()


if __name__ == "__main__":
    run(main)
