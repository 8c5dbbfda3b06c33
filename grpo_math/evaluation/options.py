"""The arguments of both evaluators and of the comparison, and which of their values are refused."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from grpo_math.errors import UsageError

LEAST = {"n": 1, "max_tokens": 1, "temperature": 0, "top_k": 0, "num_samples": 1, "batch_size": 1}


def argument_parser(doc: str) -> argparse.ArgumentParser:
    """Give a parser of the arguments that both evaluators have."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="Hub id, model folder, checkpoint, or a run's folder")
    add("--data", default="data/gsm8k/eval.jsonl", help="JSONL (default: data/gsm8k/eval.jsonl)")
    add("--task", help="how answers are checked (default: what the rows say)")
    add(
        "--prompt",
        help="prompt style (default: the one the model was trained with, else the task's)",
    )
    add(
        "--chat_template_kwargs",
        type=template_arguments,
        metavar="JSON",
        help="""of the chat template, such as '{"enable_thinking": false}' (default: as trained)""",
    )
    add("--num_samples", type=int, metavar="N", help="first N questions only (default: all)")
    add("--n", type=int, default=1, help="completions per question (default: 1)")
    add("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    add("--top_p", type=float, default=1.0, help="(default: 1)")
    add("--top_k", type=int, default=0, help="0 is off (default: 0)")
    add("--max_tokens", type=int, default=1024, help="per completion (default: 1024)")
    add("--seed", type=int, default=0)
    add("--batch_size", type=int, help="completions that are generated, and saved, together")
    add("--dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"])
    add("--revision", default="main", help="of a model on the Hub")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model")
    add("--output_dir", type=Path, default=Path("evals"))
    add("--name", help="of the output files (default: made from model and data)")
    return parser


def template_arguments(text: str) -> dict[str, object]:
    """Read the value of `--chat_template_kwargs`."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"""{text!r}: expected an object such as '{{"a": 1}}'""")
    return value


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse values that no backend can use."""
    for flag, least in LEAST.items():
        value = getattr(args, flag)
        if value is not None and not least <= value < float("inf"):
            raise UsageError(f"--{flag} {value}: must be at least {least}, and finite")
    if not 0 < args.top_p <= 1:
        raise UsageError(f"--top_p {args.top_p}: must lie above 0 and not above 1")
    if args.n > 1 and args.temperature == 0:
        raise UsageError(
            f"--n {args.n}: greedy completions are all the same; give a --temperature above 0"
        )
    if args.name and "/" in args.name:
        raise UsageError(f"--name {args.name}: is a name without folders; those go to --output_dir")


def parse_comparison(doc: str) -> argparse.Namespace:
    """Give the arguments of compare_evaluations.py."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    files = "evals/NAME.jsonl; two or more"
    add("evaluations", nargs="+", type=run_files, metavar="FILE[,FILE...]", help=files)
    examples = "changed questions to show each way (2)"
    add("--examples", type=int, default=2, metavar="N", help=examples)
    mismatch = "compare what files of different questions or prompts share"
    add("--allow_mismatch", action="store_true", help=mismatch)
    form = parser.add_mutually_exclusive_group()
    shares = "print JSON; accuracies and differences as shares, 0.5 = 50%%"
    for name, text in (("markdown", "print Markdown"), ("json", shares)):
        form.add_argument(f"--{name}", action="store_const", dest="form", const=name, help=text)
    parser.set_defaults(form="text")
    args = parser.parse_args()
    if len(args.evaluations) < 2:
        parser.error("give at least two evaluations: the one to compare with, then the others")
    if args.examples < 0:
        parser.error(f"--examples must be 0 or more, found {args.examples}")
    return args


def run_files(text: str) -> list[Path]:
    """Give the file of that name, which may have a comma in it, or the files that commas join."""
    parts = [text] if os.path.exists(text) else text.split(",")  # noqa: PTH110 (Path's may raise)
    if not all(map(str.strip, parts)):
        raise argparse.ArgumentTypeError(
            f"{text!r}: a name is missing beside a comma; write FILE,FILE without spaces"
        )
    return list(map(Path, parts))
