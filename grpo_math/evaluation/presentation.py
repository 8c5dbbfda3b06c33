"""Say what a comparison found: as text, as Markdown, or as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from statistics import stdev
from typing import NamedTuple

from grpo_math.evaluation.comparison import Comparison, points
from grpo_math.evaluation.reporting import percent
from grpo_math.evaluation.results import OUTCOMES, column
from grpo_math.evaluation.saved import Evaluation
from grpo_math.terminal import printable

QUESTION_WIDTH, ANSWER_WIDTH = 200, 60
WAYS = {"Wrong to right": "won", "Right to wrong": "lost"}
ACCURACY_HEADER = ["evaluation", "questions", "samples", "strict", "lenient", "cut off", "model"]
CHANGE_HEADER = ["difference, points", "McNemar p", "wrong to right", "right to wrong"]
NO_MCNEMAR = (
    "McNemar's test is left out: it takes one sample per question, and no question twice. Wrong to "
    "right counts questions that went from at most half of their samples right to more than half."
)


class Table(NamedTuple):
    """Cells of a table, all of them text."""

    header: list[str]
    rows: list[list[str]]


Block = str | list[str] | Table  # a paragraph, a list, a table


def all_warnings(sides: list[Evaluation], comparisons: list[Comparison]) -> list[str]:
    """Give all that is doubtful, from the single file to the number of comparisons."""
    warnings: list[str] = []
    for run in _runs(sides):
        warnings += run.warnings
    for side in sides:
        if side.runs:
            warnings += side.warnings
    for comparison in comparisons:
        warnings += comparison.warnings
    if (count := len(comparisons)) > 1:
        one = "each is tested at 5%, so one may look significant by chance"
        warnings.append(f"{count} comparisons: {one}")
    return warnings


def as_text(sides: list[Evaluation], comparisons: list[Comparison], examples: int) -> str:
    """Write the report for a terminal."""
    return "\n\n".join(map(_text, _blocks(sides, comparisons, examples)))


def as_markdown(sides: list[Evaluation], comparisons: list[Comparison], examples: int) -> str:
    """Write the report as Markdown."""
    return "\n\n".join(map(_markdown, _blocks(sides, comparisons, examples)))


def as_json(sides: list[Evaluation], comparisons: list[Comparison], examples: int) -> str:
    """Write the numbers as JSON: accuracies and differences are shares from 0 to 1."""
    evaluations = []
    for run in _runs(sides):
        described: dict[str, object] = {"name": run.name, "path": str(run.path), "model": run.model}
        described |= {"questions": len(run.questions), "samples": len(run.rows)}
        for outcome in OUTCOMES:
            described[outcome] = run.accuracy(outcome)._asdict()
        evaluations.append(described)
    report = {
        "evaluations": evaluations,
        "comparisons": [_compared(each, examples) for each in comparisons],
        "warnings": all_warnings(sides, comparisons),
    }
    return json.dumps(report, indent=2)


def clean(text: str, width: int = 0) -> str:
    """Put a model's text on one line that no terminal obeys, cut to `width` characters if given."""
    text = " ".join(printable(text).split())
    if 0 < width < len(text):
        return text[: width - 1] + "…"
    return text


def _runs(sides: list[Evaluation]) -> list[Evaluation]:
    return [run for side in sides for run in side.each_run]


def _blocks(sides: list[Evaluation], comparisons: list[Comparison], examples: int) -> list[Block]:
    blocks: list[Block] = [Table(ACCURACY_HEADER, list(map(_accuracy_row, _runs(sides))))]
    if warnings := all_warnings(sides, comparisons):
        blocks.append(list(map("warning: {}".format, warnings)))
    for comparison in comparisons:
        blocks += _comparison_blocks(comparison, examples)
    return blocks


def _accuracy_row(run: Evaluation) -> list[str]:
    fewest, most = run.samples_per_question
    samples = str(most) if fewest == most else f"{fewest} to {most}"
    strict, lenient = (percent(run.accuracy(outcome).shares()) for outcome in OUTCOMES)
    cut = column(run.rows, "finish_reason").count("length") / len(run.rows)
    counts = [str(len(run.questions)), samples]
    return [run.name, *counts, strict, lenient, f"{cut:.1%}", clean(run.model)]


def _comparison_table(comparison: Comparison) -> Table:
    rows = []
    for name, outcome in comparison.outcomes.items():
        chance = "-"
        if outcome.p_value is not None:
            chance = "< 0.0001" if outcome.p_value < 0.0001 else f"{outcome.p_value:.4f}"
        shares = [f"{side.mean_score(name, comparison.ids):.1%}" for side in comparison.sides]
        flips = [str(len(outcome.won)), str(len(outcome.lost))]
        rows.append([name, *shares, points(outcome.difference), chance, *flips])
    rows.append(["format", "", "", f"{100 * comparison.format_gain:+.1f}", "", "", ""])
    names = [comparison.first.name, comparison.other.name]
    return Table(["", *names, *CHANGE_HEADER], rows)


def _comparison_blocks(comparison: Comparison, examples: int) -> list[Block]:
    blocks: list[Block] = [comparison.verdict(), _comparison_table(comparison)]
    if comparison.outcomes["strict"].p_value is None:
        blocks.append(NO_MCNEMAR)
    for side in comparison.sides:
        if side.runs:
            blocks.append(_spread(comparison, side))
    for way, changed in WAYS.items():
        for name, outcome in comparison.outcomes.items():
            ids = getattr(outcome, changed)
            if ids and examples:  # strict ones, or else lenient ones
                blocks.append(f"{way}, {name}: {min(examples, len(ids))} of {len(ids)}")
                blocks.append([_describe(comparison, each, name) for each in ids[:examples]])
                break
    return blocks


def _spread(comparison: Comparison, side: Evaluation) -> str:
    accuracies = list(comparison.accuracies(side, "strict").values())
    listed = ", ".join(map("{:.1%}".format, accuracies))
    deviation = f"standard deviation of {100 * stdev(accuracies):.1f} points"
    return f"{side.name}, strict: {listed}; the intervals count their {deviation}."


def _describe(comparison: Comparison, question: str, outcome: str) -> str:
    lenient, first = comparison.outcomes["lenient"], comparison.first
    remark = ""
    if outcome == "strict" and question not in lenient.won + lenient.lost:
        remark = " (format only)"
    answers = [("gold", first.about(question, "gold"))]
    for side in comparison.sides:
        answers.append((side.name, side.answer(question)))
    shown = []
    for name, answer in answers:
        shown.append(f"{name}: {clean(answer, ANSWER_WIDTH) or '(none)'}")
    asked = clean(first.about(question, "question"), QUESTION_WIDTH)
    return f"{clean(question, ANSWER_WIDTH)}{remark}: {asked}\n{', '.join(shown)}"


def _text(block: Block) -> str:
    if isinstance(block, str):
        return block
    if not isinstance(block, Table):
        return "\n".join("  " + item.replace("\n", "\n      ") for item in block)
    lines = [block.header, *block.rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    padded = []
    for line in lines:
        padded.append("  ".join(map(str.ljust, line, widths)).rstrip())
    return "\n".join(padded)


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        return _escape(block)
    if not isinstance(block, Table):
        return "\n".join("- " + _escape(item).replace("\n", "<br>\n  ") for item in block)
    lines = []
    for row in (block.header, *block.rows):
        lines.append(f"| {' | '.join(map(_escape, row))} |")
    lines.insert(1, "| --- " * len(block.header) + "|")
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Keep text as itself in Markdown: it must not become a link, a heading or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#$~&])", r"\\\1", text)


def _compared(comparison: Comparison, examples: int) -> Mapping[str, object]:
    """Give a comparison's numbers; differences are `value` with `low` and `high`."""
    first, other, ids = comparison.first, comparison.other, comparison.ids
    compared: dict[str, object] = {"first": first.name, "other": other.name, "questions": len(ids)}
    for name, outcome in comparison.outcomes.items():
        won, lost = outcome.won, outcome.lost
        compared[name] = {
            "first": first.mean_score(name, ids),
            "other": other.mean_score(name, ids),
            "first_runs": comparison.accuracies(first, name),
            "other_runs": comparison.accuracies(other, name),
            **outcome.difference._asdict(),
            "mcnemar_p": outcome.p_value,
            "significant": outcome.significant,
            "wrong_to_right": len(won),
            "right_to_wrong": len(lost),
            "examples": {"wrong_to_right": won[:examples], "right_to_wrong": lost[:examples]},
        }
    return {**compared, "format": comparison.format_gain, "verdict": comparison.verdict()}


FORMS = {"json": as_json, "markdown": as_markdown, "text": as_text}
