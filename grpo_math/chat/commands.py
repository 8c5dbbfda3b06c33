"""The commands of a talk: everything that begins with a slash."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path

from grpo_math.chat.session import LIMITS, Session, number
from grpo_math.chat.workers import Worker
from grpo_math.data.styles import STYLES, get_style
from grpo_math.errors import UsageError
from grpo_math.files import write_text_atomic
from grpo_math.terminal import printable


def run_command(session: Session, line: str) -> bool:
    """Do what a line that begins with a slash says, and print what is to be seen of it; True to leave.

    Raises:
        UsageError: there is no such command, or not with such a value.
    """
    name, _, rest = line[1:].strip().partition(" ")
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UsageError(
            f"unknown command /{name}: {f'did you mean /{close[0]}?' if close else '/help lists all'}"
        )
    if name == "quit":
        return True
    said = COMMANDS[name][1](session, rest.strip())
    if said:
        print(said, flush=True)
    return False


def _help(session: Session, rest: str) -> str:
    lines = [f"  {usage:27} {_FOR[name]}" for name, (usage, _) in COMMANDS.items()]
    return "\n".join(
        [
            *lines,
            "Anything else is a question to all models. Ctrl-C stops their answers, twice drops who does not stop; "
            "Ctrl-D leaves.",
        ]
    )


def _models(session: Session, rest: str) -> str:
    lines = []
    for place, worker in enumerate(session.workers, start=1):
        spec = worker.spec
        lines.append(
            f"  {place}  {printable(spec.name):24} {spec.backend:13} style {session.style_of(spec).name:11} "
            f"process {worker.process.pid}  {printable(spec.model)}"
        )
    return "\n".join(lines) or "no model is loaded: /add MODEL"


def _add(session: Session, rest: str) -> str:
    words = rest.split()
    if len(words) not in (1, 2):
        raise UsageError(f"usage: {COMMANDS['add'][0]}")
    session.add([dict(zip(("model", "backend"), words, strict=False))])
    return ""


def _drop(session: Session, rest: str) -> str:
    worker = _find(session, rest)
    session.drop(worker)
    return f"dropped {worker.spec.name}"


def _find(session: Session, rest: str) -> Worker:
    for place, worker in enumerate(session.workers, start=1):
        if rest in (worker.spec.name, str(place)):
            return worker
    names = ", ".join(worker.spec.name for worker in session.workers)
    raise UsageError(
        f"no model {rest!r}: there are {names or 'none'}; their numbers will do, too (/models)"
    )


def _system(session: Session, rest: str) -> str:
    if rest:
        session.settings.system = {"off": "", "style": None}.get(rest, rest)
    system = session.settings.system
    return (
        "the style's own system prompt" if system is None else f"system prompt: {system or 'none'}"
    )


def _style(session: Session, rest: str) -> str:
    if rest:
        session.settings.style = None if rest == "own" else get_style(rest).name
    styles = {worker.spec.name: session.style_of(worker.spec) for worker in session.workers}
    return "\n".join(
        f"  {name:24} {style.name:11} {style.system}" for name, style in styles.items()
    )


def _mode(session: Session, rest: str) -> str:
    modes = {"conversation": True, "one_shot": False}
    if rest and rest not in modes:
        raise UsageError(f"/mode {rest}: is one of {', '.join(modes)}")
    if rest:
        session.settings.conversation = modes[rest]
        session.history.clear()
    return (
        "each question goes on where the last ended"
        if session.settings.conversation
        else "each question is a new one"
    )


def _number(name: str) -> Callable[[Session, str], str]:
    def change(session: Session, rest: str) -> str:
        if rest:
            value = None if name == "seed" and rest == "off" else number(name, rest)
            setattr(session.settings, name, value)
        value = getattr(session.settings, name)
        return f"{name} {'new for every question' if value is None else value}"

    return change


def _reset(session: Session, rest: str) -> str:
    session.history.clear()
    return "a new conversation"


def _grade(session: Session, rest: str) -> str:
    if not rest:
        raise UsageError(f"usage: {COMMANDS['grade'][0]}, the right answer to the last question")
    lines, graded = [], session.grade(rest)
    width = max((len(row["name"]) for row, _ in graded), default=0)
    for row, verdict in graded:
        judged = (
            "right"
            if verdict.strict
            else "right, but not in the style's format"
            if verdict.lenient
            else "wrong"
        )
        found = (
            f"{printable(verdict.extracted)!r} by {verdict.rule}"
            if verdict.extracted
            else "no answer found"
        )
        lines.append(f"  {printable(row['name']):{width}}  {judged} ({found})")
    return "\n".join(lines) or "nothing has been answered yet"


def _save(session: Session, rest: str) -> str:
    path = Path(rest).expanduser()
    if not rest:
        raise UsageError(f"usage: {COMMANDS['save'][0]}")
    if path.exists():
        raise UsageError(f"{path}: exists already; give another name")
    write_text_atomic(
        path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in session.rows)
    )
    return f"{len(session.rows)} answers in {path}"


COMMANDS: dict[str, tuple[str, Callable[[Session, str], str]]] = {
    "help": ("/help", _help),
    "models": ("/models", _models),
    "add": ("/add MODEL [BACKEND]", _add),
    "drop": ("/drop NAME", _drop),
    "system": ("/system TEXT | off | style", _system),
    "style": (f"/style {' | '.join(STYLES)} | own", _style),
    "mode": ("/mode conversation | one_shot", _mode),
    **{name: (f"/{name} N{' | off' if name == 'seed' else ''}", _number(name)) for name in LIMITS},
    "reset": ("/reset", _reset),
    "grade": ("/grade 42", _grade),
    "save": ("/save FILE.jsonl", _save),
    "quit": ("/quit", lambda session, rest: ""),
}
_FOR = {
    "help": "this",
    "models": "the models that are loaded",
    "add": "load one more",
    "drop": "end a model's process and free its memory",
    "system": "another system prompt, none, or the style's",
    "style": "how all are asked, or each as its run was",
    "mode": "whether questions follow on each other",
    "temperature": "0 is greedy",
    "max_tokens": "of an answer",
    "seed": "of sampling; off draws one for every question",
    "reset": "begin a new conversation",
    "grade": "judge the last answers, as training and evaluation do",
    "save": "write all answers so far, with their grades",
    "quit": "leave",
}
