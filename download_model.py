"""Download a model on a machine with internet, for one without: a cluster's nodes, say.

    python download_model.py Qwen/Qwen2.5-3B-Instruct
    python download_model.py Qwen/Qwen2.5-3B-Instruct --output_dir models/qwen-3b --revision main
    HF_HUB_OFFLINE=1 python train_grpo.py models/qwen-3b

Files that are there already are not downloaded again, so the same command continues one that was
interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from grpo_math.errors import UsageError, first_line, run

# Weights in formats that run code when loaded, or that nothing here reads.
NOT_NEEDED = ["*.bin", "*.pt", "*.pth", "*.pickle", "*.msgpack", "*.h5", "*.ot", "*.onnx"]
NOT_NEEDED += ["*.gguf", "original/*"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", help="Hub id, such as Qwen/Qwen2.5-3B-Instruct")
    add("--output_dir", type=Path, help="folder of its own (default: models/NAME)")
    add("--revision", default="main", help="branch, tag or commit")
    add("--token", help="of the Hub; better `hf auth login` or HF_TOKEN, which no history records")
    add("--include", nargs="+", metavar="PATTERN", help="only these files")
    left_out = f"(default: {' '.join(NOT_NEEDED)})"
    add("--exclude", nargs="+", metavar="PATTERN", default=NOT_NEEDED, help=left_out)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    folder = args.output_dir or Path("models") / args.model.rsplit("/", 1)[-1]
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            args.model,
            revision=args.revision,
            token=args.token,
            allow_patterns=args.include,
            ignore_patterns=args.exclude,
            local_dir=folder,
        )
    except Exception as error:  # the Hub and the network fail in many ways; all end here
        raise UsageError(
            f"{args.model}: cannot be downloaded ({first_line(error)}); check the name and "
            "--revision, and log in with `hf auth login` where the model asks for it"
        ) from error
    if not (folder / "config.json").is_file():
        missing = "what was downloaded holds no config.json; check --include and --exclude"
        raise UsageError(f"{folder}: {missing}")
    offline = f"HF_HUB_OFFLINE=1 python train_grpo.py {folder}"
    print(f"{folder}: ready; where there is no internet: {offline}")


if __name__ == "__main__":
    run(main)
