"""What a person reads of one evaluation: the lines that scripts print, and the analysis file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from statistics import fmean

from grpo_math.evaluation.results import OUTCOMES, GradedRow, Info, Results, column
from grpo_math.terminal import printable

EXAMPLES = 3


def percent(accuracy: Mapping[str, float]) -> str:
    """Write an accuracy with its 95% interval, in percent: `57.8% [53.4, 62.1]`."""
    value, low, high = accuracy["accuracy"], accuracy["low"], accuracy["high"]
    return f"{value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def result_lines(results: Results) -> list[str]:
    """Give the results of an evaluation, a line each."""
    samples = results["samples_per_question"]
    asked = f"{results['questions']} questions x {samples} completions"
    lines = [f"{asked}, accuracy with 95% interval"]
    for outcome in OUTCOMES:
        accuracy = results[outcome]
        line = f"  {outcome:8} {percent(accuracy)}"
        if samples > 1:
            for k, share in accuracy["pass@k"].items():
                line += f"  pass@{k} {share:.1%}"
            line += f"  majority@{samples} {accuracy[f'majority@{samples}']:.1%}"
            card = accuracy["scorecard"]
            line += f"  right in over half {card['above_half']:.1%}, in all {card['all']:.1%}"
        lines.append(line)
    end = f"  {results['truncated']:.1%} cut at the token limit"
    end += f", {results['mean_tokens']:.0f} tokens on average"
    if results.get("tokens_per_second"):
        end += f", {results['tokens_per_second']:,.0f} tokens/s"
    lines.append(end)
    if "format_right_answer_wrong" in results:
        lines.append(f"  {results['format_right_answer_wrong']:.1%} format right, answer wrong")
    if results["grader_failures"]:
        failures = results["grader_failures"]
        lines.append(f"  {failures} answers could not be graded and count as wrong")
    return lines


def analysis(info: Info, rows: list[GradedRow]) -> str:
    """Write the analysis file: results, accuracy by rule, length and end, and examples."""
    settings = info["settings"]
    mark = settings.get("mark")
    kinds: dict[str, list[GradedRow]] = {
        "Right": [],
        "Right, but not in the style's format": [],
        "Wrong, but in the style's format": [],
        "Wrong": [],
        "No answer found": [],
    }
    for row in rows:
        kinds[_kind(row, mark)].append(row)
    bands = map(_length_band, column(rows, "tokens"))
    parts = [
        f"{settings['model']} on {settings['data']}, prompt style {settings['prompt']}",
        "\n".join(result_lines(info["results"] or {})),
        _table("How the answer was found", rows, column(rows, "rule")),
        _table("Length of the completion in tokens", rows, bands),
        _table("How the completion ended", rows, column(rows, "finish_reason")),
    ]
    for title, found in kinds.items():
        if found:
            parts.append(f"{title}\n" + "\n\n".join(map(_example, islice(found, EXAMPLES))))
    return "\n\n".join(parts) + "\n"


def _kind(row: GradedRow, mark: object) -> str:
    if row["lenient"]:
        return "Right" if row["strict"] else "Right, but not in the style's format"
    if row["rule"] == mark:
        return "Wrong, but in the style's format"
    return "No answer found" if row["rule"] == "none" else "Wrong"


def _length_band(tokens: int) -> str:
    low, high = 0, 16
    while tokens >= high:
        low, high = high, high * 2
    return f"{low:5} to {high - 1}"


def _table(title: str, rows: list[GradedRow], names: Iterable[str]) -> str:
    groups: dict[str, list[GradedRow]] = {}
    for name, row in zip(names, rows, strict=True):
        groups.setdefault(name, []).append(row)
    lines = [title, f"  {'':20} {'count':>7} {'strict':>8} {'lenient':>8}"]
    for name, group in sorted(groups.items()):
        strict, lenient = fmean(column(group, "strict")), fmean(column(group, "lenient"))
        lines.append(f"  {name:20} {len(group):7} {strict:8.1%} {lenient:8.1%}")
    return "\n".join(lines)


def _example(row: GradedRow) -> str:
    return (
        f"  question    {printable(row['question'])}\n"
        f"  gold        {row['gold']}\n"
        f"  answer      {printable(row['extracted'])!r} by {row['rule']}\n"
        f"  completion  {printable(row['completion'])!r}"
    )
