"""Say what a comparison found: as text, as Markdown, or as JSON."""

from __future__ import annotations

import json
import re
from statistics import stdev
from typing import NamedTuple

from grpo_math.evaluation.comparison import Comparison, points
from grpo_math.evaluation.intervals import Interval
from grpo_math.evaluation.results import OUTCOMES, column
from grpo_math.evaluation.saved import Evaluation
from grpo_math.terminal import printable

QUESTION_WIDTH, ANSWER_WIDTH = 200, 60
WAYS = {"Wrong to right": "won", "Right to wrong": "lost"}
NO_MCNEMAR = (
    "McNemar's test is left out: it takes one sample per question, and no question twice. Wrong to "
    "right counts questions that went from at most half of their samples right to more than half."
)


class Table(NamedTuple):
    """Cells of a table, all of them text."""

    header: list[str]
    rows: list[list[str]]


Block = str | list[str] | Table  # a paragraph, a list, a table


class Report(NamedTuple):
    """All that is to be shown: the sides compared, the first with each other one."""

    sides: list[Evaluation]
    comparisons: list[Comparison]
    examples: int  # to show each way

    @property
    def evaluations(self) -> list[Evaluation]:
        """Give every single evaluation."""
        return [run for side in self.sides for run in side.each_run]

    @property
    def warnings(self) -> list[str]:
        """Give all that is doubtful, from the single file to the number of comparisons."""
        means = [side for side in self.sides if side.runs]
        warnings: list[str] = []
        sources: list[Evaluation | Comparison] = [*self.evaluations, *means, *self.comparisons]
        for source in sources:
            warnings += source.warnings
        if (count := len(self.comparisons)) > 1:
            warnings.append(
                f"{count} comparisons: each is tested at 5%, so one may look significant by chance"
            )
        return warnings

    def blocks(self) -> list[Block]:
        """Give what the text and the Markdown report are made of."""
        blocks: list[Block] = [_accuracy_table(self.evaluations)]
        if self.warnings:
            blocks.append([f"warning: {warning}" for warning in self.warnings])
        for comparison in self.comparisons:
            blocks += _comparison_blocks(comparison, self.examples)
        return blocks

    def text(self) -> str:
        """Write it for a terminal."""
        return "\n\n".join(map(_as_text, self.blocks()))

    def markdown(self) -> str:
        """Write it as Markdown."""
        return "\n\n".join(map(_as_markdown, self.blocks()))

    def json(self) -> str:
        """Write it as JSON; accuracies and differences are shares from 0 to 1."""
        evaluations = []
        for each in self.evaluations:
            about = {
                "name": each.name,
                "path": str(each.path),
                "model": each.model,
                "questions": len(each.questions),
                "samples": len(each.rows),
            }
            accuracies = {outcome: each.accuracy(outcome)._asdict() for outcome in OUTCOMES}
            evaluations.append(about | accuracies)
        comparisons = [_compared(each, self.examples) for each in self.comparisons]
        return json.dumps(
            {"evaluations": evaluations, "comparisons": comparisons, "warnings": self.warnings},
            indent=2,
        )


def clean(text: str, width: int = 0) -> str:
    """Put a model's text on one line that no terminal obeys, cut to `width` characters if given."""
    text = " ".join(printable(text).split())
    if 0 < width < len(text):
        return text[: width - 1] + "…"
    return text


def _percent(accuracy: Interval) -> str:
    value, low, high = (100 * each for each in accuracy)
    return f"{value:.1f}% [{low:.1f}, {high:.1f}]"


def _accuracy_table(evaluations: list[Evaluation]) -> Table:
    rows = []
    for each in evaluations:
        fewest, most = each.samples_per_question
        samples = str(most) if fewest == most else f"{fewest} to {most}"
        strict, lenient = map(_percent, map(each.accuracy, OUTCOMES))
        cut = column(each.rows, "finish_reason").count("length") / len(each.rows)
        counts = [str(len(each.questions)), samples]
        rows.append([each.name, *counts, strict, lenient, f"{cut:.1%}", clean(each.model)])
    header = ["evaluation", "questions", "samples", "strict", "lenient", "cut off", "model"]
    return Table(header, rows)


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
    names = [side.name for side in comparison.sides]
    numbers = ["difference, points", "McNemar p", "wrong to right", "right to wrong"]
    return Table(["", *names, *numbers], rows)


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
    accuracies = comparison.accuracies(side, "strict").values()
    listed = ", ".join(f"{each:.1%}" for each in accuracies)
    deviation = f"standard deviation of {100 * stdev(accuracies):.1f} points"
    return f"{side.name}, strict: {listed}; the intervals count their {deviation}."


def _describe(comparison: Comparison, question_id: str, outcome: str) -> str:
    text, gold = (comparison.first.about(question_id, field) for field in ("question", "gold"))
    lenient = comparison.outcomes["lenient"]
    remark = ""
    if outcome == "strict" and question_id not in lenient.won + lenient.lost:
        remark = " (format only)"
    answers = [f"gold: {clean(gold, ANSWER_WIDTH) or '(none)'}"]
    for side in comparison.sides:
        answer = clean(side.answer(question_id), ANSWER_WIDTH)
        answers.append(f"{side.name}: {answer or '(none)'}")
    asked = f"{clean(question_id, ANSWER_WIDTH)}{remark}: {clean(text, QUESTION_WIDTH)}"
    return f"{asked}\n{', '.join(answers)}"


def _as_text(block: Block) -> str:
    if isinstance(block, str):
        return block
    if not isinstance(block, Table):
        return "\n".join("  " + item.replace("\n", "\n      ") for item in block)
    lines = [block.header, *block.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = []
    for line in lines:
        padded.append("  ".join(map(str.ljust, line, widths)).rstrip())
    return "\n".join(padded)


def _as_markdown(block: Block) -> str:
    if isinstance(block, str):
        return _escape(block)
    if not isinstance(block, Table):
        return "\n".join("- " + _escape(item).replace("\n", "<br>\n  ") for item in block)
    lines = [map(_escape, block.header), ["---"] * len(block.header)]
    lines += [map(_escape, row) for row in block.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    """Keep text as itself in Markdown: it must not become a link, a heading or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#$~&])", r"\\\1", text)


def _compared(comparison: Comparison, examples: int) -> dict[str, object]:
    """Differences are `value` with `low` and `high`."""
    compared: dict[str, object] = {
        "first": comparison.first.name,
        "other": comparison.other.name,
        "questions": len(comparison.ids),
    }
    for name, outcome in comparison.outcomes.items():
        compared[name] = {
            "first": comparison.first.mean_score(name, comparison.ids),
            "other": comparison.other.mean_score(name, comparison.ids),
            "first_runs": comparison.accuracies(comparison.first, name),
            "other_runs": comparison.accuracies(comparison.other, name),
            **outcome.difference._asdict(),
            "mcnemar_p": outcome.p_value,
            "significant": outcome.significant,
            "wrong_to_right": len(outcome.won),
            "right_to_wrong": len(outcome.lost),
            "examples": {
                "wrong_to_right": outcome.won[:examples],
                "right_to_wrong": outcome.lost[:examples],
            },
        }
    return compared | {"format": comparison.format_gain, "verdict": comparison.verdict()}
