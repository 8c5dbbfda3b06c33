"""`report.html` of a run: curves, settings, accuracies and saved completions in one file, without server or network.

Whatever a model wrote is data here. It lies in the page as JSON in which no character can end the element it stands in,
and `run_report.js` shows it as text alone. Should both fail, the page's Content-Security-Policy lets no script run but
that one, told by its hash, and nothing be loaded from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from pathlib import Path
from typing import Any

from grpo_math.errors import UsageError
from grpo_math.evaluation.comparison import compare, load_evaluations
from grpo_math.evaluation.reporting import percent
from grpo_math.files import write_text_atomic
from grpo_math.publish.curves import Run, draw, render
from grpo_math.rewards.completion import completion_text
from grpo_math.run_folder import RunRecord, read_record

REPORT = "report.html"
RECORDED = {
    "question",
    "gold",
    "tokens",
    "answer",
    "extracted",
    "strict",
    "lenient",
}  # by rewards.record_verdicts
NOT_REWARDS = RECORDED | {
    "step",
    "prompt",
    "completion",
    "advantage",
}  # among the columns of TRL's completions table
PAGE = Path(__file__).with_suffix(".html")
SCRIPT = Path(__file__).with_suffix(".js")


def write_report(
    folder: Path, run: Run, evaluations: dict[Path, dict[str, Any]], limit: int
) -> Path:
    """Write the report of the run in `folder` and return its path.

    `evaluations` are the contents of `evals/NAME.json` by path, `limit` is how many completions the page may hold.

    Raises:
        UsageError: `run.json` cannot be read, or the report cannot be written.
    """
    record = read_record(folder)
    table, note = completions_table(folder, record, limit)
    script = SCRIPT.read_text(encoding="utf-8")
    parts = {
        "SCRIPT_HASH": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "TITLE": html.escape(run.name),
        "SUMMARY": html.escape(_summary(run)),
        "CURVES": base64.b64encode(render(draw([run]), "svg")).decode(),
        "ACCURACIES": _accuracies(evaluations),
        "SETTINGS": _settings(record),
        "NOTE": html.escape(note),
        "DATA": embedded(table),
        "SCRIPT": script,
    }
    page = PAGE.read_text(encoding="utf-8")
    write_text_atomic(folder / REPORT, re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], page))
    return folder / REPORT


def embedded(value: Any) -> str:
    """JSON for the inside of an HTML script element: ASCII without <, > and &, so that nothing in it can end that."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def completions_table(
    folder: Path, record: RunRecord | None, limit: int
) -> tuple[dict[str, Any], str]:
    """Saved completions by column, and a sentence on which of them they are.

    Of each step the first ones are taken, as many as make `limit` in all, so that the answers to one question stay
    together; with more steps than that, of evenly spaced steps one each.
    """
    steps = sorted((folder / "completions").glob("completions_*.parquet"))
    if not steps or not limit:
        return _columns(
            [], None
        ), "No completions: none were saved (--log_completions true), or none were asked for."
    chosen = steps[:: math.ceil(len(steps) / limit)]
    rows, total, unread = [], 0, 0
    for path in chosen:
        try:
            first, saved = _read_step(path, limit // len(chosen))
        except (
            OSError,
            ValueError,
        ):  # pyarrow's errors are ValueErrors; a file cut off when the run was killed
            unread += 1
            continue
        total += saved
        rows += first
    arguments = (record or {}).get("arguments", {})
    note = f"{len(rows):,} of {total:,} completions from {len(chosen) - unread:,} of {len(steps):,} saved steps"
    note += ", the first of each step." if len(rows) < total else "."
    if unread:
        note += f" {unread} files could not be read and are left out."
    if record is None:
        note += " There is no run.json, so rewards are added up without weights."
    return _columns(rows, arguments.get("reward_weights")), note


def _read_step(path: Path, limit: int) -> tuple[list[dict[str, Any]], int]:
    """The first rows of a step's file, and how many there are in it."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        batch = next(file.iter_batches(limit), None)
        return batch.to_pylist() if batch else [], file.metadata.num_rows


def _columns(rows: list[dict[str, Any]], weights: list[float] | None) -> dict[str, Any]:
    """The rows of TRL's completions table as the page's script wants them: each question's text once, and no NaN."""
    names = [name for name in (rows[0] if rows else {}) if name not in NOT_REWARDS]
    if weights is None or len(weights) != len(names):
        weights = [1.0] * len(names)
    questions: dict[str, int] = {}
    for row in rows:
        row["parts"] = [_finite(row.get(name)) for name in names]
        row["reward"] = sum(
            w * part for w, part in zip(weights, row["parts"], strict=True) if part is not None
        )
        row["question"] = questions.setdefault(
            row.get("question") or _asked(row["prompt"]), len(questions)
        )
        row["completion"] = completion_text(row["completion"])
        row["answer"] = row.get("extracted", row.get("answer"))
        row["strict"] = row.get("strict", row.get("accuracy"))
        row["advantage"] = _finite(row.get("advantage"))
    fields = (
        "step",
        "question",
        "gold",
        "completion",
        "answer",
        "strict",
        "lenient",
        "tokens",
        "reward",
        "parts",
    )
    table = {name: [row.get(name) for row in rows] for name in (*fields, "advantage")}
    return {**table, "questions": list(questions), "names": names}


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


def _asked(prompt: str | list[dict[str, str]]) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _summary(run: Run) -> str:
    first, last = run.rows[0], run.rows[-1]
    words = [
        f"{last['step']:,} steps",
        f"reward {first['reward']:.3f} at first, {last['reward']:.3f} at last",
    ]
    if last.get("num_tokens"):
        words.append(f"{last['num_tokens']:,.0f} tokens")
    return ", ".join(words)


def _accuracies(evaluations: dict[Path, dict[str, Any]]) -> str:
    """The evaluations as a table, and each after the first compared with it where their completions are at hand."""
    if not evaluations:
        return "<p>None given: plot_training.py RUN --evals evals/BEFORE.json evals/AFTER.json</p>"
    rows = [["evaluation", "model", "questions", "strict", "lenient", "cut at the limit"]]
    for path, info in evaluations.items():
        results, settings = info["results"], info["settings"]
        accuracies = [percent(results["strict"]), percent(results["lenient"])]
        rows.append(
            [
                path.stem,
                settings["model"],
                results["questions"],
                *accuracies,
                f"{results['truncated']:.1%}",
            ]
        )
    return _table(rows, header=True) + "".join(
        f"<p>{html.escape(line)}</p>" for line in _verdicts(list(evaluations))
    )


def _verdicts(paths: list[Path]) -> list[str]:
    files = [path.with_suffix(".jsonl") for path in paths]
    if not all(path.is_file() for path in files):
        return []
    try:
        first, *others = load_evaluations(files)
        return [compare(first, other).verdict() for other in others]
    except UsageError as error:
        return [f"Not compared: {error}"]


def _settings(record: RunRecord | None) -> str:
    if record is None:
        return "<p>The run's folder has no run.json.</p>"
    own = {name: value for name, value in record.items() if name != "arguments"}
    arguments = sorted(record.get("arguments", {}).items())
    return (
        _table([[name, _plain(value)] for name, value in own.items()])
        + f"<details><summary>All {len(arguments)} arguments of the trainer</summary>"
        + _table([[name, _plain(value)] for name, value in arguments])
        + "</details>"
    )


def _plain(value: Any) -> str:
    """A setting for reading: lists and objects without brackets and quotes."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _table(rows: list[list[Any]], header: bool = False) -> str:
    def line(cells: list[Any], tag: str) -> str:
        return (
            "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
        )

    lines = [
        line(cells, "th" if header and not place else "td") for place, cells in enumerate(rows)
    ]
    return f"<table>{''.join(lines)}</table>"
