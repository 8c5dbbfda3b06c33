"""Make data, evaluate the starter model, train it with GRPO, evaluate it again: minutes on two CPU cores.

    make quickstart
    python quickstart.py

Every command is printed before it runs, and runs by itself as well. What is finished is not done again. The numbers go
to outputs/quickstart/summary.json, the curves to outputs/quickstart/training.png, and all of it together with the
completions to outputs/quickstart/report.html, to look into with a browser.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from grpo_math.errors import UsageError, run
from grpo_math.evaluation.reporting import percent
from grpo_math.files import read_jsonl, write_text_atomic
from grpo_math.terminal import printable

RUN = Path("outputs/quickstart")
BEFORE, AFTER = Path("evals/quickstart-before.jsonl"), Path("evals/quickstart-after.jsonl")
EVALUATE = "evaluate_gsm8k_no_vllm.py {model} --data data/arithmetic/test.jsonl --max_tokens 16 --name {name}"
SAMPLES = 3


def call(command: str) -> None:
    """Run one of the project's scripts as a user would."""
    print(f"\n$ python {command}", flush=True)
    status = subprocess.run([sys.executable, *shlex.split(command)], check=False).returncode
    if status:
        raise UsageError(
            f"'python {command}' ended with status {status}; put it right and run the quickstart again"
        )


def results(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["results"]


def summary(of: dict[str, Any]) -> dict[str, Any]:
    """The numbers of an evaluation for summary.json: shares, and the bounds of their 95% intervals."""
    return {
        "n": of["questions"],
        "strict": of["strict"]["accuracy"],
        "interval": [of["strict"]["low"], of["strict"]["high"]],
        "lenient": of["lenient"]["accuracy"],
        "lenient_interval": [of["lenient"]["low"], of["lenient"]["high"]],
    }


def table(before: dict[str, Any], after: dict[str, Any]) -> str:
    lines = [f"{'accuracy [95% interval]':34}{'before GRPO':>22}{'after GRPO':>22}"]
    for verdict, meaning in (
        ("strict", "right, and as <answer>n</answer>"),
        ("lenient", "right, in any form"),
    ):
        lines.append(f"{meaning:34}{percent(before[verdict]):>22}{percent(after[verdict]):>22}")
    return "\n".join(lines)


def samples() -> str:
    """Answers side by side: the first questions of the test file, whatever became of them."""
    lines = [f"{'question':58}{'right':>6}  {'before GRPO':26}after GRPO"]
    for (_, before), (_, after) in list(zip(read_jsonl(BEFORE), read_jsonl(AFTER), strict=True))[
        :SAMPLES
    ]:
        answers = (printable(row["completion"]).replace("\n", " ") for row in (before, after))
        lines.append("{:58}{:>6}  {:26}{}".format(before["question"], before["gold"], *answers))
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    started = time.time()
    call("prepare_arithmetic.py")
    call(EVALUATE.format(model="starter_model", name=BEFORE.stem))
    call(f"train_grpo.py starter_model --config recipes/starter_arithmetic.yaml --output_dir {RUN}")
    call(EVALUATE.format(model=RUN, name=AFTER.stem))
    call(
        f"plot_training.py {RUN} --evals {BEFORE.with_suffix('.json')} {AFTER.with_suffix('.json')}"
    )
    before, after = results(BEFORE), results(AFTER)
    numbers = {"before": summary(before), "after": summary(after)}
    write_text_atomic(RUN / "summary.json", json.dumps(numbers, indent=2) + "\n")
    print(f"\nThe starter model on {before['questions']} questions that it was not trained on:\n")
    print(table(before, after))
    print(
        f"\n{samples()}\n\nnumbers in {RUN}/summary.json, curves in {RUN}/training.png; {time.time() - started:.0f} s"
    )
    print(f"open {RUN}/report.html in a browser: curves, settings and completions")


if __name__ == "__main__":
    run(main)
