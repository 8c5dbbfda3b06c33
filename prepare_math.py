"""Prepare MATH, competition problems with LaTeX answers: training and evaluation splits as JSONL.

    python prepare_math.py                                        # 12,000 and 500, from the Hub
    python prepare_math.py --levels 1 2 3 --subjects algebra "number theory" --output_dir data/easy
    python prepare_math.py --source path/to/folder --splits test  # eval.jsonl alone

A raw row has `problem` and `solution`; `answer`, `level` and `subject` (or `type`) where the source
gives them. Without `answer` it is what stands in the solution's last \\boxed{}. Rows are
`{"question", "answer", "solution", "level", "subject", "task"}`; a level that the source leaves
open is 0.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from grpo_math.data.rows import RawRow
from grpo_math.data.sources import (
    SPLITS,
    eval_rows,
    load_splits,
    source_arguments,
    text_field,
    write_splits,
)
from grpo_math.data.tasks import latex_answer
from grpo_math.errors import UsageError, run
from grpo_math.grading.extraction import marked

HUB_ID = "nlile/hendrycks-MATH-benchmark"
LEVELS = range(1, 6)


def parse_args() -> argparse.Namespace:
    parser = source_arguments(__doc__, HUB_ID)
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="(default: train test)"
    )
    levels = parser.add_argument("--levels", nargs="+", type=int, choices=LEVELS, metavar="N")
    levels.help = "of 1 to 5 (default: all)"
    parser.add_argument(
        "--subjects", nargs="+", metavar="NAME", help="such as algebra, geometry (default: all)"
    )
    parser.add_argument(
        "--eval_size", default="all", help="first N test questions, or 'all' (default: all)"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("data/math"))
    parser.add_argument("--force", action="store_true", help="replace files that hold other rows")
    return parser.parse_args()


def convert(place: str, raw: RawRow) -> RawRow:
    """Make a row of ours of one of MATH's."""
    question, solution = text_field(place, raw, "problem"), text_field(place, raw, "solution")
    if "answer" in raw:
        given = text_field(place, raw, "answer")
    else:
        boxed = (match["text"] for _, mark, match in marked(solution) if mark == "boxed")
        given = next(boxed, "")
    answer = latex_answer(given)
    if answer is None:
        raise UsageError(
            f"{place}: no answer: neither a field 'answer' nor a \\boxed{{}} in 'solution' has one"
        )
    level = re.search(r"\d", str(raw.get("level", "")))
    return {
        "question": question,
        "answer": answer,
        "solution": solution,
        "level": int(level[0]) if level else 0,
        "subject": str(raw.get("subject") or raw.get("type") or ""),
        "task": "math",
    }


def subject_key(name: str) -> str:
    """Spell `Counting & Probability` and `counting_and_probability` alike."""
    return re.sub(r"[^a-z]", "", name.lower().replace("&", "and"))


def choose(
    rows: list[RawRow], levels: list[int] | None, subjects: list[str] | None
) -> list[RawRow]:
    """Choose the rows of these levels and subjects.

    Raises:
        UsageError: a subject is unknown, or no row is left.
    """
    known = {subject_key(str(row["subject"])): str(row["subject"]) for row in rows}
    for name in subjects or []:
        if subject_key(name) not in known:
            there = ", ".join(sorted(known.values()))
            raise UsageError(f"--subjects {name!r}: no such subject; there are {there}")
    wanted = set(map(subject_key, subjects or known))
    chosen = []
    for row in rows:
        is_wanted = subject_key(str(row["subject"])) in wanted
        if is_wanted and (not levels or row["level"] in levels):
            chosen.append(row)
    if not chosen:
        raise UsageError("--levels and --subjects leave no row; choose more of them")
    return chosen


def main() -> None:
    args = parse_args()
    keep = eval_rows(args.eval_size)
    raw = load_splits(args.source, HUB_ID, None, tuple(args.splits))
    splits = {}
    for name, rows in raw.items():
        splits[name] = choose([convert(*row) for row in rows], args.levels, args.subjects)
    if "eval" in splits:
        splits["eval"] = splits["eval"][:keep]
    write_splits(splits, args.output_dir, replace=args.force)


if __name__ == "__main__":
    run(main)
