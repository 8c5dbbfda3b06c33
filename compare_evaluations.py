"""Is B better than A, by how much, and could it be chance? Compares evaluations of the same questions.

    python compare_evaluations.py evals/base.jsonl evals/trained.jsonl
    python compare_evaluations.py evals/base.jsonl evals/step100.jsonl evals/step200.jsonl --examples 0
    python compare_evaluations.py evals/base.jsonl evals/trained.jsonl --markdown > comparison.md
    python compare_evaluations.py evals/base.jsonl evals/trained.jsonl --json | jq .comparisons[0].verdict
    python compare_evaluations.py evals/base.jsonl evals/seed1.jsonl,evals/seed2.jsonl,evals/seed3.jsonl

Each file after the first is compared with the first, question by question. Strict counts answers that are right and in
the form the prompt asks for, lenient counts right ones in any form; so the lenient difference is maths, and what strict
has beyond it is format. Brackets are 95% intervals, clustered by question (Miller 2024, arXiv 2411.00640). A difference
is significant if its interval leaves out zero and, with one sample per question, McNemar's exact test gives p < 0.05.

Another seed gives another model, so one run cannot tell a better way to train from luck. Files joined by commas are
models trained alike but for the seed: they are compared as one, and the interval counts how much such runs differ.

Exit status: 0 whatever the verdict, 2 if the files cannot be read or cannot be compared.
"""

import argparse
import json
import os
import re
from itertools import islice
from pathlib import Path
from statistics import stdev
from typing import Any, NamedTuple

from grpo_math.errors import run
from grpo_math.evaluation.comparison import (
    OUTCOMES,
    Comparison,
    Evaluation,
    compare,
    joined,
    load_evaluations,
    points,
)
from grpo_math.evaluation.intervals import Interval
from grpo_math.terminal import printable

QUESTION_WIDTH, ANSWER_WIDTH = 200, 60


class Table(NamedTuple):
    header: list[str]
    rows: list[list[str]]


Block = (
    str | list[str] | Table
)  # A paragraph, a list, a table: what the text and the Markdown report are made of.


def runs(text: str) -> list[Path]:
    """The file of that name, which may have a comma in it, or the files that commas join."""
    parts = [text] if os.path.exists(text) else text.split(",")  # noqa: PTH110  (Path's raises on a long name)
    if not all(part.strip() for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r}: a name is missing beside a comma; write FILE,FILE without spaces"
        )
    return [Path(part) for part in parts]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "evaluations",
        nargs="+",
        type=runs,
        metavar="FILE[,FILE...]",
        help="evals/NAME.jsonl; two or more",
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=2,
        metavar="N",
        help="changed questions to show each way (2)",
    )
    parser.add_argument(
        "--allow_mismatch",
        action="store_true",
        help="compare what files of different questions or prompts share",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    form.add_argument(
        "--json",
        action="store_true",
        help="print JSON; accuracies and differences as shares, 0.5 = 50%%",
    )
    arguments = parser.parse_args()
    if len(arguments.evaluations) < 2:
        parser.error("give at least two evaluations: the one to compare with, then the others")
    if arguments.examples < 0:
        parser.error(f"--examples must be 0 or more, found {arguments.examples}")
    return arguments


def clean(text: str, width: int = 0) -> str:
    """A model's text on one line, without anything that a terminal would obey, cut to `width` characters if given."""
    text = " ".join(printable(text).split())
    return text[: width - 1] + "…" if 0 < width < len(text) else text


def percent(accuracy: Interval) -> str:
    value, low, high = (100 * each for each in accuracy)
    return f"{value:.1f}% [{low:.1f}, {high:.1f}]"


def accuracy_table(evaluations: list[Evaluation]) -> Table:
    rows = []
    for each in evaluations:
        fewest, most = each.samples_per_question
        samples = str(most) if fewest == most else f"{fewest} to {most}"
        cut_off = sum(sample.cut_off for sample in each.samples) / len(each.samples)
        numbers = [
            *(percent(each.accuracy(outcome)) for outcome in OUTCOMES),
            f"{100 * cut_off:.1f}%",
        ]
        rows.append([each.name, str(len(each.questions)), samples, *numbers, clean(each.model)])
    return Table(
        ["evaluation", "questions", "samples", "strict", "lenient", "cut off", "model"], rows
    )


def comparison_table(comparison: Comparison) -> Table:
    rows = []
    for name, outcome in comparison.outcomes.items():
        p = outcome.p_value
        chance = "-" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}"
        shares = [
            f"{100 * comparison.accuracy(side, name):.1f}%"
            for side in (comparison.first, comparison.other)
        ]
        flips = [str(len(outcome.won)), str(len(outcome.lost))]
        rows.append([name, *shares, points(outcome.difference), chance, *flips])
    rows.append(["format", "", "", f"{100 * comparison.format_gain:+.1f}", "", "", ""])
    names = [comparison.first.name, comparison.other.name]
    return Table(
        ["", *names, "difference, points", "McNemar p", "wrong to right", "right to wrong"], rows
    )


def comparison_blocks(comparison: Comparison, examples: int) -> list[Block]:
    blocks: list[Block] = [comparison.verdict(), comparison_table(comparison)]
    if comparison.outcomes["strict"].p_value is None:
        blocks.append(
            "McNemar's test is left out: it takes one sample per question. Wrong to right counts questions that went "
            "from at most half of their samples right to more than half."
        )
    blocks += [
        spread(comparison, side) for side in (comparison.first, comparison.other) if side.runs
    ]
    for way, changed in (("Wrong to right", "won"), ("Right to wrong", "lost")):
        outcome = next(
            (name for name in OUTCOMES if getattr(comparison.outcomes[name], changed)), None
        )
        if outcome and examples:
            ids = getattr(comparison.outcomes[outcome], changed)
            blocks.append(f"{way}, {outcome}: {min(examples, len(ids))} of {len(ids)}")
            blocks.append([describe(comparison, each, outcome) for each in ids[:examples]])
    return blocks


def spread(comparison: Comparison, side: Evaluation) -> str:
    accuracies = [100 * each for each in comparison.accuracies(side, "strict").values()]
    listed = ", ".join(f"{each:.1f}%" for each in accuracies)
    deviation = f"standard deviation of {stdev(accuracies):.1f} points"
    return f"{side.name}, strict: {listed}; the intervals count their {deviation}."


def describe(comparison: Comparison, question_id: str, outcome: str) -> str:
    before, after = (side.questions[question_id] for side in (comparison.first, comparison.other))
    lenient = comparison.outcomes["lenient"]
    remark = (
        ""
        if outcome == "lenient" or question_id in lenient.won + lenient.lost
        else " (format only)"
    )
    answers = [
        clean(each, ANSWER_WIDTH) or "(none)"
        for each in (before.gold, before.answer(), after.answer())
    ]
    return (
        f"{clean(question_id, ANSWER_WIDTH)}{remark}: {clean(before.text, QUESTION_WIDTH)}\n"
        f"gold: {answers[0]}, {comparison.first.name}: {answers[1]}, {comparison.other.name}: {answers[2]}"
    )


def report(
    evaluations: list[Evaluation], comparisons: list[Comparison], warnings: list[str], examples: int
) -> list[Block]:
    blocks: list[Block] = [accuracy_table(evaluations)]
    if warnings:
        blocks.append([f"warning: {warning}" for warning in warnings])
    for comparison in comparisons:
        blocks += comparison_blocks(comparison, examples)
    return blocks


def as_text(block: Block) -> str:
    if isinstance(block, Table):
        lines = [block.header, *block.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(block.header))]
        padded = (
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )
        return "\n".join(line.rstrip() for line in padded)
    return (
        "\n".join("  " + item.replace("\n", "\n      ") for item in block)
        if isinstance(block, list)
        else block
    )


def as_markdown(block: Block) -> str:
    if isinstance(block, Table):
        header, *rows = ([escape(cell) for cell in line] for line in (block.header, *block.rows))
        return "\n".join(
            f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)
        )
    if isinstance(block, list):
        return "\n".join("- " + escape(item).replace("\n", "<br>\n  ") for item in block)
    return escape(block)


def escape(text: str) -> str:
    """Text as itself in Markdown: what a model wrote must not become a link, a heading or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#$~&])", r"\\\1", text)


def as_json(
    evaluations: list[Evaluation], comparisons: list[Comparison], warnings: list[str], examples: int
) -> str:
    described = [
        {
            "name": each.name,
            "path": str(each.path),
            "model": each.model,
            "questions": len(each.questions),
            "samples": len(each.samples),
            **{outcome: each.accuracy(outcome)._asdict() for outcome in OUTCOMES},
        }
        for each in evaluations
    ]
    compared = [compared_as_json(each, examples) for each in comparisons]
    return json.dumps(
        {"evaluations": described, "comparisons": compared, "warnings": warnings}, indent=2
    )


def compared_as_json(comparison: Comparison, examples: int) -> dict[str, Any]:
    """Differences are `value` with `low` and `high`; all shares and differences are 0 to 1, not percent."""
    outcomes = {
        name: {
            "first": comparison.accuracy(comparison.first, name),
            "other": comparison.accuracy(comparison.other, name),
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
        for name, outcome in comparison.outcomes.items()
    }
    names = {
        "first": comparison.first.name,
        "other": comparison.other.name,
        "questions": len(comparison.ids),
    }
    return {**names, **outcomes, "format": comparison.format_gain, "verdict": comparison.verdict()}


def main() -> None:
    arguments = parse_arguments()
    evaluations = load_evaluations([path for side in arguments.evaluations for path in side])
    loaded = iter(evaluations)
    first, *others = (joined(list(islice(loaded, len(side)))) for side in arguments.evaluations)
    comparisons = [compare(first, other, arguments.allow_mismatch) for other in others]
    means = [side for side in (first, *others) if side.runs]
    sources: list[Evaluation | Comparison] = [*evaluations, *means, *comparisons]
    warnings = [warning for source in sources for warning in source.warnings]
    if len(comparisons) > 1:
        warnings.append(
            f"{len(comparisons)} comparisons: each is tested at 5%, so one may look significant by chance"
        )
    if arguments.json:
        print(as_json(evaluations, comparisons, warnings, arguments.examples))
        return
    render = as_markdown if arguments.markdown else as_text
    print(
        "\n\n".join(
            render(block)
            for block in report(evaluations, comparisons, warnings, arguments.examples)
        )
    )


if __name__ == "__main__":
    run(main)
