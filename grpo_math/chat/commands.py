"""What a person types: questions, and the commands that begin with a slash."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from grpo_math.chat.screen import Said, Screen, notice
from grpo_math.chat.session import Session
from grpo_math.data.rows import write_rows
from grpo_math.data.styles import STYLES
from grpo_math.errors import UsageError

Command = Callable[[Session, str], Said]


def talk(session: Session, screen: Screen) -> None:
    """Answer questions and do commands until the end of the input."""
    read = line_reader()
    while True:
        try:
            line = read().strip()
        except KeyboardInterrupt:  # at the prompt it takes back the line
            continue
        except EOFError:
            return
        if line.removeprefix("/") in ("quit", "exit"):
            return
        try:
            if line.startswith("/"):
                screen.say(run_command(session, line))
            elif line:
                session.ask(line, screen)
        except UsageError as error:
            notice(f"error: {error}")


def line_reader() -> Callable[[], str]:
    """Give what reads a line: a prompt with history and editing, or `input` without a terminal."""
    if not sys.stdin.isatty():
        return input
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory

    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "grpo_math"
    history = None
    with contextlib.suppress(OSError):  # a home that cannot be written to is no reason not to talk
        state.mkdir(parents=True, exist_ok=True)
        (state / "history").open("a").close()
        history = FileHistory(state / "history")
    words = WordCompleter([f"/{name}" for name in NAMES], sentence=True)
    session = PromptSession[str](history=history, completer=words, complete_while_typing=False)
    return partial(session.prompt, ">>> ")


def run_command(session: Session, line: str) -> Said:
    """Do what a line that begins with a slash says, and give what is to be seen of it."""
    name, _, rest = line[1:].strip().partition(" ")
    if name not in COMMANDS:
        hint = "/help lists all"
        for close in difflib.get_close_matches(name, NAMES, n=1):
            hint = f"did you mean /{close}?"
        raise UsageError(f"unknown command /{name}: {hint}")
    usage, _, command = COMMANDS[name]
    if not rest and command in (_add, _drop, _grade, _save):
        raise UsageError(f"usage: /{name} {usage}")
    return command(session, rest.strip())


def _help(session: Session, rest: str) -> Said:
    rows = [(f"/{name} {usage}", purpose) for name, (usage, purpose, _) in COMMANDS.items()]
    rows.append(("quit, exit", "leave, as Ctrl-D does"))
    rows.append(("Ctrl-C", "stop the answers; pressed twice, drop who does not stop"))
    return [*rows, ("anything else", "is a question to all models")]


def _models(session: Session, rest: str) -> Said:
    lines = []
    for place, worker in enumerate(session.workers, start=1):
        spec, style = worker.spec, session.asking(worker.spec).style.name
        process = f"process {worker.process.pid}"
        asked = f"{spec.backend:13} style {style:11}"
        lines.append(f"  {place}  {spec.name:24} {asked} {process}  {spec.model}")
    return "\n".join(lines) or "no model is loaded: /add MODEL"


def _add(session: Session, rest: str) -> Said:
    model, _, backend = rest.partition(" ")
    common = session.common
    session.add([replace(common, model=model, backend=backend.strip() or common.backend)])
    return f"{len(session.workers)} models"


def _drop(session: Session, rest: str) -> Said:
    for place, worker in enumerate(session.workers, start=1):
        if rest in (worker.spec.name, str(place)):
            session.drop(worker)
            return f"dropped {worker.spec.name}"
    names = ", ".join(worker.spec.name for worker in session.workers) or "none"
    raise UsageError(f"no model {rest!r}: there are {names}; their numbers will do, too (/models)")


def _mode(session: Session, rest: str) -> Said:
    if rest not in ("", "conversation", "one_shot"):
        raise UsageError(f"/mode {rest}: is one of conversation, one_shot")
    if rest:
        session.settings.conversation = rest == "conversation"
        session.history.clear()
    goes_on = session.settings.conversation
    return "each question goes on where the last ended" if goes_on else "each question is a new one"


def _change(name: str, session: Session, rest: str) -> Said:
    """Change a setting, and say what it is now."""
    session.settings.change(name, rest or None)
    value = getattr(session.settings, name)
    if value is None:
        value = UNSET[name]
    elif value == "":
        value = "none"
    label = {"system": "system prompt:"}.get(name, name)
    return [(f"{label} {value}",)]


def _style(session: Session, rest: str) -> Said:
    session.settings.change("style", rest or None)
    rows = []
    for worker in session.workers:
        style = session.asking(worker.spec).style
        rows.append((worker.spec.name, style.name, style.system))
    return rows or "no model"


def _reset(session: Session, rest: str) -> Said:
    session.history.clear()
    return "a new conversation"


def _grade(session: Session, rest: str) -> Said:
    rows = []
    for name, verdict in session.grade(rest):
        judged, found = "wrong", "no answer found"
        if verdict.strict:
            judged = "right"
        elif verdict.lenient:
            judged = "right, but not in the style's format"
        if verdict.extracted:
            found = f"{verdict.extracted!r} by {verdict.rule}"
        rows.append((name, f"{judged} ({found})"))
    return rows or "nothing has been answered yet"


def _save(session: Session, rest: str) -> Said:
    path = Path(rest).expanduser()
    if path.exists():
        raise UsageError(f"{path}: exists already; give another name")
    write_rows(path, session.rows)
    return f"{len(session.rows)} answers in {path}"


UNSET = {"system": "the style's own", "seed": "new for every question"}
UNSET["chat_template_kwargs"] = "each model's own"
# Of each setting what may be given, and what it is for.
CHANGES = {
    "system": ("TEXT | off | style", "another system prompt, none, or the style's"),
    "chat_template_kwargs": ("JSON | own", "of the chat template, or each model's own"),
    "temperature": ("N", "0 is greedy"),
    "top_p": ("N", "sample from this share of likely tokens; 1 is all"),
    "max_tokens": ("N", "of an answer"),
    "seed": ("N | off", "of sampling; off draws one for every question"),
}
COMMANDS: dict[str, tuple[str, str, Command]] = {
    "help": ("", "this", _help),
    "models": ("", "the models that are loaded", _models),
    "add": ("MODEL [BACKEND]", "load one more", _add),
    "drop": ("NAME", "end a model's process and free its memory", _drop),
    "style": ("NAME | own", f"how all are asked ({', '.join(STYLES)}), or as in their run", _style),
    **{name: (*words, partial(_change, name)) for name, words in CHANGES.items()},
    "mode": ("conversation | one_shot", "whether questions follow on each other", _mode),
    "reset": ("", "begin a new conversation", _reset),
    "grade": ("42", "judge the last answers, as training and evaluation do", _grade),
    "save": ("FILE.jsonl", "write all answers so far, with their grades", _save),
}
NAMES = (*COMMANDS, "quit")
