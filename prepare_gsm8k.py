"""Prepare GSM8K: the training split and 500 test questions, as JSONL with canonical answers.

    python prepare_gsm8k.py                                  # from the Hugging Face Hub
    python prepare_gsm8k.py --eval_size all                  # all 1,319 test questions
    python prepare_gsm8k.py --source path/to/gsm8k_folder    # JSONL, or a copy of the Hub's repo

Rows are `{"question", "answer", "solution", "task"}`; `answer` is the bare number after `####`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from grpo_math.data.rows import RawRow
from grpo_math.data.sources import (
    eval_rows,
    load_splits,
    source_arguments,
    text_field,
    write_splits,
)
from grpo_math.data.tasks import gsm8k_answer
from grpo_math.errors import UsageError, run

HUB_ID = "openai/gsm8k"


def parse_args() -> argparse.Namespace:
    parser = source_arguments(__doc__, HUB_ID)
    parser.add_argument(
        "--eval_size", default="500", help="first N test questions, or 'all' (default: 500)"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("data/gsm8k"))
    return parser.parse_args()


def convert(place: str, raw: RawRow) -> RawRow:
    """Make a row of ours of one of GSM8K's, whose `answer` is the worked solution."""
    question, solution = text_field(place, raw, "question"), text_field(place, raw, "answer")
    try:
        answer = gsm8k_answer(solution)
    except ValueError as error:
        raise UsageError(f"{place}: {error}") from error
    return {"question": question, "answer": answer, "solution": solution, "task": "gsm8k"}


def main() -> None:
    args = parse_args()
    keep = eval_rows(args.eval_size)
    splits = {}
    for name, rows in load_splits(args.source, HUB_ID, "main").items():
        splits[name] = [convert(*row) for row in rows]
    if "eval" in splits:
        splits["eval"] = splits["eval"][:keep]
    write_splits(splits, args.output_dir)


if __name__ == "__main__":
    run(main)
