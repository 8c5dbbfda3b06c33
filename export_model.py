"""Make one folder of a checkpoint that others can use: whole weights, tokenizer, and a model card.

    python export_model.py outputs/RUN
    python export_model.py outputs/RUN/checkpoint-100 --zip
    python export_model.py outputs/RUN --push_to_hub my-name/my-model

A LoRA adapter is merged into its base model. Results of evaluate_*.py on this very model go into
the card, which names no folder of this machine. What is pushed is private unless --public is given;
the token comes from `hf auth login` or HF_TOKEN.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from grpo_math.errors import UsageError, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a run's folder, a checkpoint, or an adapter's")
    add("--output_dir", type=Path, help="(default: exports/ and the checkpoint's name)")
    evaluations = "evaluations to look through (default: evals/*.json)"
    add("--evals", nargs="+", type=Path, metavar="JSON", help=evaluations)
    add("--trust_remote_code", action="store_true", help="run code that comes with the model")
    add("--zip", action="store_true", help="also write the folder as one file")
    add("--push_to_hub", metavar="NAME", help="upload it to this repository on the Hub")
    seen = parser.add_mutually_exclusive_group()
    private = "seen by you alone (the default)"
    seen.add_argument("--private", action="store_true", default=True, help=private)
    seen.add_argument("--public", action="store_false", dest="private", help="seen by everyone")
    args = parser.parse_args()
    if not args.private and not args.push_to_hub:
        raise UsageError("--public: is for what is pushed; give --push_to_hub NAME, too")
    return args


def main() -> None:
    args = parse_args()
    from grpo_math.launch.settle import default_arguments
    from grpo_math.publish.export import export, local_source, zip_folder
    from grpo_math.publish.hub import check_push, push

    source = local_source(args.checkpoint)
    repository = check_push(args.push_to_hub, args.private) if args.push_to_hub else None
    target = args.output_dir or Path("exports") / source.name
    evaluations = args.evals or sorted(Path("evals").glob("*.json"))
    export(source, target, evaluations, args.trust_remote_code, default_arguments())
    print(f"exported {target}")
    if args.zip:
        print(f"zipped   {zip_folder(target)}")
    if repository:
        print(f"pushed   {push(target, repository, args.private)}")


if __name__ == "__main__":
    run(main)
