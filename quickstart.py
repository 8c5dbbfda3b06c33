"""Make data, evaluate the starter model, train it with GRPO, evaluate it again, in minutes.

    make quickstart
    python quickstart.py

Every command is printed before it runs, and runs by itself as well. What is finished is not done
again. The numbers go to outputs/quickstart/summary.json, the curves to training.png beside it, and
all of it together with the completions to report.html there, to look into with a browser.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_math.errors import UsageError, run
from grpo_math.files import read_jsonl, write_text_atomic
from grpo_math.terminal import printable

if TYPE_CHECKING:
    from grpo_math.publish.measured import Measured

RUN = Path("outputs/quickstart")
BEFORE, AFTER = Path("evals/quickstart-before.json"), Path("evals/quickstart-after.json")
EVALUATE = "evaluate_gsm8k_no_vllm.py {} --data data/arithmetic/test.jsonl --max_tokens 16 --name "
TRAIN = "train_grpo.py starter_model --config recipes/starter_arithmetic.yaml --output_dir "
SAMPLES = 3


def call(command: str) -> None:
    """Run one of the project's scripts as a user would."""
    print(f"\n$ python {command}", flush=True)
    status = subprocess.run([sys.executable, *shlex.split(command)], check=False).returncode
    if status:
        way_out = "put it right and run the quickstart again"
        raise UsageError(f"'python {command}' ended with status {status}; {way_out}")


def results(path: Path) -> Measured:
    from grpo_math.publish.measured import read_measured

    measured = read_measured(path)
    assert measured is not None  # the evaluator has ended well
    return measured


def summary(of: Measured) -> dict[str, object]:
    """Give the numbers of an evaluation for summary.json: shares, with their 95% intervals."""
    strict, lenient = of.strict, of.lenient
    return {
        "n": of.questions,
        "strict": strict["accuracy"],
        "interval": [strict["low"], strict["high"]],
        "lenient": lenient["accuracy"],
        "lenient_interval": [lenient["low"], lenient["high"]],
    }


def table(before: Measured, after: Measured) -> str:
    from grpo_math.evaluation.reporting import percent

    rows = [
        ("accuracy [95% interval]", "before GRPO", "after GRPO"),
        ("right, and as <answer>n</answer>", percent(before.strict), percent(after.strict)),
        ("right, in any form", percent(before.lenient), percent(after.lenient)),
    ]
    return "\n".join(f"{row[0]:34}{row[1]:>22}{row[2]:>22}" for row in rows)


def samples() -> str:
    """Show answers side by side: of the first questions, whatever became of them."""
    lines = [f"{'question':58}{'right':>6}  {'before GRPO':26}after GRPO"]
    files = [read_jsonl(path.with_suffix(".jsonl")) for path in (BEFORE, AFTER)]
    for (_, before), (_, after) in islice(zip(*files, strict=True), SAMPLES):
        was = printable(before["completion"]).replace("\n", " ")
        now = printable(after["completion"]).replace("\n", " ")
        lines.append(f"{before['question']:58}{before['gold']:>6}  {was:26}{now}")
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    started = time.time()
    call("prepare_arithmetic.py")
    call(EVALUATE.format("starter_model") + BEFORE.stem)
    call(f"{TRAIN}{RUN}")
    call(EVALUATE.format(RUN) + AFTER.stem)
    call(f"plot_training.py {RUN} --evals {BEFORE} {AFTER}")
    before, after = results(BEFORE), results(AFTER)
    numbers = {"before": summary(before), "after": summary(after)}
    write_text_atomic(RUN / "summary.json", json.dumps(numbers, indent=2) + "\n")
    print(f"\nThe starter model on {before.questions} questions that it was not trained on:\n")
    print(f"{table(before, after)}\n\n{samples()}\n")
    seconds = f"{time.time() - started:.0f} s"
    print(f"numbers in {RUN}/summary.json, curves in {RUN}/training.png; {seconds}")
    print(f"open {RUN}/report.html in a browser: curves, settings and completions")


if __name__ == "__main__":
    run(main)
