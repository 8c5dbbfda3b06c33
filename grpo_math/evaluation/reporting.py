"""What a person reads: the lines that scripts print, and the analysis file of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from grpo_math.evaluation.results import GradedRow, Info, Results
from grpo_math.terminal import printable

EXAMPLES = 3


def percent(accuracy: dict[str, float]) -> str:
    """An accuracy with its 95% interval, in percent: `57.8% [53.4, 62.1]`."""
    return f"{accuracy['accuracy']:.1%} [{accuracy['low'] * 100:.1f}, {accuracy['high'] * 100:.1f}]"


def result_lines(results: Results) -> list[str]:
    """The results of an evaluation, a line each."""
    samples = results["samples_per_question"]
    lines = [
        f"{results['questions']} questions x {samples} completions, accuracy with 95% interval"
    ]
    for verdict in ("strict", "lenient"):
        accuracy = results[verdict]
        line = f"  {verdict:8} {percent(accuracy)}"
        if samples > 1:
            line += "".join(f"  pass@{k} {share:.1%}" for k, share in accuracy["pass@k"].items())
            line += f"  majority@{samples} {accuracy[f'majority@{samples}']:.1%}"
            card = accuracy["scorecard"]
            line += f"  right in over half {card['above_half']:.1%}, in all {card['all']:.1%}"
        lines.append(line)
    lines.append(
        f"  {results['truncated']:.1%} cut at the token limit, {results['mean_tokens']:.0f} tokens on average"
    )
    if results.get("tokens_per_second"):
        lines[-1] += f", {results['tokens_per_second']:,.0f} tokens/s"
    if results.get("format_right_answer_wrong"):
        wrong = results["format_right_answer_wrong"]
        lines.append(f"  {wrong:.1%} in the style's format and wrong")
    if results["grader_failures"]:
        lines.append(
            f"  {results['grader_failures']} answers could not be graded and count as wrong"
        )
    return lines


def analysis(info: Info, rows: list[GradedRow]) -> str:
    """The analysis file: results, accuracy by rule and by length, and examples."""
    settings = info["settings"]
    parts = [
        f"{settings['model']} on {settings['data']}, prompt style {settings['prompt']}",
        "\n".join(result_lines(info["results"] or {})),
        _table("How the answer was found", rows, lambda row: row["rule"]),
        _table("Length of the completion in tokens", rows, _length_band),
        _table("How the completion ended", rows, lambda row: row["finish_reason"]),
        _examples("Right", (row for row in rows if row["strict"])),
        _examples(
            "Right, but not in the style's format",
            (row for row in rows if row["lenient"] and not row["strict"]),
        ),
        _examples("Wrong", (row for row in rows if not row["lenient"] and row["rule"] != "none")),
        _examples("No answer found", (row for row in rows if row["rule"] == "none")),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _length_band(row: GradedRow) -> str:
    low = 0
    high = 16
    while row["tokens"] >= high:
        low, high = high, high * 2
    return f"{low:5} to {high - 1}"


def _table(title: str, rows: list[GradedRow], key: Callable[[GradedRow], str]) -> str:
    groups: dict[str, list[GradedRow]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    lines = [title, f"  {'':20} {'count':>7} {'strict':>8} {'lenient':>8}"]
    for name in sorted(groups):
        group = groups[name]
        strict, lenient = (sum(row[v] for row in group) / len(group) for v in ("strict", "lenient"))
        lines.append(f"  {name:20} {len(group):7} {strict:8.1%} {lenient:8.1%}")
    return "\n".join(lines)


def _examples(title: str, rows: Iterable[GradedRow]) -> str:
    blocks = []
    for row, _ in zip(rows, range(EXAMPLES), strict=False):
        text = printable(row["completion"])
        blocks.append(
            f"  question    {printable(row['question'])}\n  gold        {row['gold']}\n"
            f"  answer      {printable(row['extracted'])!r} by {row['rule']}\n  completion  {text!r}"
        )
    return f"{title}\n" + "\n\n".join(blocks) if blocks else ""
