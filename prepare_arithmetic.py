"""Make questions with exact answers: train and test JSONL, the same bytes for the same seed.

    python prepare_arithmetic.py                                # sums and differences in free text
    python prepare_arithmetic.py --num_problems 1000 --min_num -1000 --max_num 1000 --test_split 0.2
    python prepare_arithmetic.py --kind expression --depth 4    # such as 3 * (4 - (2 + 7)) - 5
    python prepare_arithmetic.py --kind polynomial              # such as: Expand 3(x + 1)(x + 2).
    python prepare_arithmetic.py --kind mixed                   # a third of each

No problem of the test file is in the training file, whatever its wording or the order of its
summands and factors. Train on `mixed` with --prompt think_answer.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from grpo_math.data.problems import KINDS, RANGES, make_questions
from grpo_math.data.rows import fingerprint, write_rows
from grpo_math.errors import UsageError, run


def parse_args() -> argparse.Namespace:
    ranges = ", ".join(f"{low}..{high} for {kind}" for kind, (low, high) in RANGES.items())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kind", choices=KINDS, default="sum", help="what is asked for (default: sum)"
    )
    parser.add_argument(
        "--num_problems", type=int, default=5000, help="train and test together (default: 5000)"
    )
    parser.add_argument("--min_num", type=int, help="smallest operand or coefficient")
    parser.add_argument(
        "--max_num", type=int, help=f"largest operand or coefficient (default: {ranges})"
    )
    parser.add_argument(
        "--depth", type=int, default=3, help="most operations in one another (default: 3)"
    )
    parser.add_argument(
        "--test_split", type=float, default=0.1, help="share of test problems, 0 for no test file"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output_dir", type=Path, help="(default: data/arithmetic for sums, else data/KIND)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.num_problems < 2:
        raise UsageError(
            f"--num_problems {args.num_problems}: at least 2 are needed, one for each split"
        )
    if not 0 <= args.test_split < 1:
        raise UsageError(f"--test_split {args.test_split}: must be at least 0 and below 1")
    if not 2 <= args.depth <= 10:
        raise UsageError(f"--depth {args.depth}: must lie between 2 and 10")
    try:
        problems = make_questions(
            args.kind, args.num_problems, args.min_num, args.max_num, args.depth, args.seed
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    train = args.num_problems
    if args.test_split:
        train -= min(max(1, round(train * args.test_split)), train - 1)
    rows = [{"question": p.question, "answer": p.answer, "task": p.task} for p in problems]
    folder = args.output_dir or Path("data") / ("arithmetic" if args.kind == "sum" else args.kind)
    for name, split in (("train", rows[:train]), ("test", rows[train:])):
        path = folder / f"{name}.jsonl"
        if split:
            write_rows(path, split)
            print(f"{path}: {len(split):,} problems, sha256 {fingerprint(path)}")


if __name__ == "__main__":
    run(main)
