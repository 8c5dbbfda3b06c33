"""Is B better than A, by how much, and could it be chance? Compares evaluations of equal questions.

    python compare_evaluations.py evals/base.jsonl evals/trained.jsonl
    python compare_evaluations.py evals/base.jsonl evals/step100.jsonl evals/step200.jsonl
    python compare_evaluations.py evals/base.jsonl evals/trained.jsonl --markdown > comparison.md
    python compare_evaluations.py evals/base.jsonl evals/trained.jsonl --json | jq .comparisons[0]
    python compare_evaluations.py evals/base.jsonl evals/seed1.jsonl,evals/seed2.jsonl

Each file after the first is compared with the first, question by question. Strict counts answers
that are right and in the form the prompt asks for, lenient counts right ones in any form; so the
lenient difference is maths, and what strict has beyond it is format. Brackets are 95% intervals,
clustered by question (Miller 2024, arXiv 2411.00640). A difference is significant if its interval
leaves out zero and, with one sample per question, McNemar's exact test gives p < 0.05.

Another seed gives another model, so one run cannot tell a better way to train from luck. Files
joined by commas are models trained alike but for the seed: they are compared as one, and the
interval counts how much such runs differ.

Exit status: 0 whatever the verdict, 2 if the files cannot be read or cannot be compared.
"""

from grpo_math.errors import run
from grpo_math.evaluation.comparison import compare, load_sides
from grpo_math.evaluation.options import parse_comparison
from grpo_math.evaluation.presentation import FORMS


def main() -> None:
    args = parse_comparison(__doc__)
    first, *others = load_sides(args.evaluations)
    comparisons = [compare(first, other, args.allow_mismatch) for other in others]
    print(FORMS[args.form]([first, *others], comparisons, args.examples))


if __name__ == "__main__":
    run(main)
