"""`report.html` of a run: curves, settings, accuracies and saved completions in one file.

It needs neither server nor network. Whatever a model wrote is data here. It lies in the page as
JSON in which no character can end the element it stands in, and `run_report.js` shows it as text
alone. Should both fail, the page's Content-Security-Policy lets no script run but that one, told by
its hash, and nothing be loaded from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import cast

from grpo_math.errors import UsageError
from grpo_math.evaluation.comparison import compare, load_evaluations
from grpo_math.evaluation.reporting import percent
from grpo_math.files import write_text_atomic
from grpo_math.publish.curves import Run, draw, render
from grpo_math.publish.measured import Measured, Place, training_note
from grpo_math.rewards.completion import Text, completion_text
from grpo_math.run_folder import RunRecord, read_record

REPORT = "report.html"
# Columns of TRL's completions table that are no rewards: TRL's own and what the rewards record.
NOT_REWARDS = {"step", "prompt", "completion", "advantage", "question", "gold", "tokens"}
NOT_REWARDS |= {"answer", "extracted", "strict", "lenient"}
# Of the page's table.
COLUMNS = ["step", "question", "gold", "completion", "answer", "strict", "lenient", "tokens"]
COLUMNS += ["reward", "parts", "advantage"]
PAGE = Path(__file__).with_suffix(".html")
SCRIPT = Path(__file__).with_suffix(".js")

_BREAKS = re.compile(r"([/_])(?=\w)")  # where the name of a file may go on in the next line
Saved = Mapping[str, object]  # a row of TRL's completions table


def write_report(
    folder: Path, run: Run, evaluations: Iterable[tuple[Measured, Place]], limit: int
) -> Path:
    """Write the report of the run in `folder`, with at most `limit` completions; give its path.

    Raises:
        UsageError: `run.json` cannot be read, or the report cannot be written.
    """
    record = read_record(folder)
    table, note = completions_table(folder, record, limit)
    script = SCRIPT.read_text(encoding="utf-8")
    parts = {
        "SCRIPT_HASH": _base64(hashlib.sha256(script.encode()).digest()),
        "TITLE": html.escape(run.name),
        "SUMMARY": html.escape(_summary(run)),
        "CURVES": _base64(render(draw([run]), "svg")),
        "NARROW": _base64(render(draw([run], columns=1), "svg")),
        "ACCURACIES": _accuracies(list(evaluations), record or {}),
        "SETTINGS": _settings(record),
        "NOTE": html.escape(note),
        "DATA": embedded(table),
        "SCRIPT": script,
    }
    page = PAGE.read_text(encoding="utf-8")
    write_text_atomic(folder / REPORT, re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], page))
    return folder / REPORT


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def embedded(value: object) -> str:
    """Give JSON for the inside of an HTML script element: ASCII without <, > and &."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def completions_table(
    folder: Path, record: RunRecord | None, limit: int
) -> tuple[dict[str, list], str]:
    """Give saved completions by column, and a sentence on which of them they are.

    Of each step the first ones are taken, as many as make `limit` in all, so that the answers to
    one question stay together; with more steps than that, of evenly spaced steps one each.
    """
    steps = sorted((folder / "completions").glob("completions_*.parquet"))
    if not steps or not limit:
        none = "No completions: none were saved (--log_completions true), or none were asked for."
        return _columns([], record), none
    chosen = steps[:: math.ceil(len(steps) / limit)]
    rows: list[Saved] = []
    total, unread = 0, 0
    for path in chosen:
        try:
            first, saved = _read_step(path, limit // len(chosen))
        except (OSError, ValueError):  # pyarrow's are ValueErrors; a run that was killed cut it off
            unread += 1
            continue
        total += saved
        rows += first
    read = len(chosen) - unread
    note = f"{len(rows):,} of {total:,} completions from {read:,} of {len(steps):,} saved steps"
    note += ", the first of each step." if len(rows) < total else "."
    if unread:
        note += f" {unread} files could not be read and are left out."
    if record is None:
        note += " There is no run.json, so rewards are added up without weights."
    return _columns(rows, record), note


def _read_step(path: Path, limit: int) -> tuple[list[Saved], int]:
    """Give the first rows of a step's file, and how many there are in it."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        batch = next(file.iter_batches(limit), None)
        return batch.to_pylist() if batch else [], file.metadata.num_rows


def _columns(rows: Sequence[Saved], record: RunRecord | None) -> dict[str, list]:
    """Give the rows by column, as the page's script wants them: each question once, and no NaN."""
    names, weights = _rewards(rows, record or {})
    table: dict[str, list] = {name: [] for name in COLUMNS}
    questions: dict[str, int] = {}
    for row in rows:
        question = str(row.get("question") or _asked(row["prompt"]))
        parts, reward = [], 0.0
        for name, weight in zip(names, weights, strict=True):
            part = _finite(row.get(name))
            parts.append(part)
            reward += weight * (part or 0)
        shown = {
            **row,
            "question": questions.setdefault(question, len(questions)),
            "completion": completion_text(cast(Text, row["completion"])),
            "answer": row.get("extracted", row.get("answer")),  # its name in older runs
            "strict": row.get("strict", row.get("accuracy")),
            "reward": reward,
            "parts": parts,
            "advantage": _finite(row.get("advantage")),
        }
        for name, column in table.items():
            column.append(shown.get(name))
    return {**table, "questions": list(questions), "names": names}


def _rewards(rows: Sequence[Saved], record: RunRecord) -> tuple[list[str], list[float]]:
    """Give the columns that are rewards, and their weights.

    TRL puts what a reward function logs beside its reward behind the rewards.
    """
    names = [name for row in rows[:1] for name in row if name not in NOT_REWARDS]
    if "reward_funcs" in record:
        names = names[: len(record["reward_funcs"])]
    weights = record.get("arguments", {}).get("reward_weights")
    if weights is None or len(weights) != len(names):
        weights = [1.0] * len(names)
    return names, weights


def _finite(value: object) -> float | None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(float(value), 6)


def _asked(prompt: object) -> object:
    if isinstance(prompt, list):
        return prompt[-1]["content"]
    return prompt


def _summary(run: Run) -> str:
    first, last = run.rows[0], run.rows[-1]
    words = [f"{run.length():,} steps"]
    if first["reward"] is not None and last["reward"] is not None:
        words.append(f"reward {first['reward']:.3f} at first, {last['reward']:.3f} at last")
    if tokens := last.get("num_tokens"):
        words.append(f"{tokens:,.0f} tokens")
    return ", ".join(words)


def _accuracies(evaluations: Sequence[tuple[Measured, Place]], record: RunRecord) -> str:
    """Give the evaluations as a table, and the first compared with the others where it can be."""
    if not evaluations:
        return "<p>None given: plot_training.py RUN --evals evals/BEFORE.json evals/AFTER.json</p>"
    head = ["evaluation", "model", "data", "questions", "strict", "lenient", "cut at the limit"]
    rows: list[list[object]] = []
    for measured, place in evaluations:
        model = f"{measured.model} ({place.words})"
        data = measured.data + training_note(measured, record)
        accuracies = percent(measured.strict), percent(measured.lenient)
        cut = f"{measured.truncated:.1%}"
        rows.append([measured.path.stem, model, data, measured.questions, *accuracies, cut])
    return _table(rows, head) + "".join(_verdicts(evaluations))


def _verdicts(evaluations: Sequence[tuple[Measured, Place]]) -> Iterator[str]:
    """Compare each evaluation with the first of the same data, where completions are at hand."""
    firsts: dict[str, Path] = {}
    for measured, _ in evaluations:
        rows = measured.path.with_suffix(".jsonl")
        if not rows.is_file():
            continue
        first = firsts.setdefault(measured.data, rows)
        if first == rows:
            continue
        try:
            before, after = load_evaluations([first, rows])
            said = compare(before, after).verdict()
        except UsageError as error:
            said = f"Not compared: {error}"
        yield f"<p>{html.escape(said)}</p>"


def _settings(record: RunRecord | None) -> str:
    if record is None:
        return "<p>The run's folder has no run.json.</p>"
    own = dict(record)
    arguments = record["arguments"]
    own.pop("arguments")
    summary = f"<summary>All {len(arguments)} arguments of the trainer</summary>"
    return f"{_pairs(own)}<details>{summary}{_pairs(dict(sorted(arguments.items())))}</details>"


def _pairs(settings: Mapping[str, object]) -> str:
    return _table((name, _plain(value)) for name, value in settings.items())


def _plain(value: object) -> str:
    """Give a setting for reading: lists and objects without brackets and quotes."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)


def _table(rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """Give an HTML table, of names and values without a head; narrow pages show a row as a card."""
    lines = "".join(_row(cells, head) for cells in rows)
    if not head:
        return f'<table class="settings">{lines}</table>'
    return f"<table><thead><tr><th>{'<th>'.join(head)}</tr></thead>{lines}</table>"


def _row(cells: Sequence[object], head: Sequence[str]) -> str:
    made = ""
    for cell, name in zip_longest(cells, head, fillvalue=""):
        label = name and f' data-label="{name}"'
        text = _BREAKS.sub(r"\1<wbr>", html.escape(str(cell)))
        made += f"<td{label}>{text}</td>"
    return f"<tr>{made}</tr>"
