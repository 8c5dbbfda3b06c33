"""Download a model on a machine with internet, for machines without: a cluster's compute nodes, say.

    python download_model.py Qwen/Qwen2.5-3B-Instruct
    python download_model.py Qwen/Qwen2.5-3B-Instruct --output_dir models/qwen-3b --revision main
    HF_HUB_OFFLINE=1 python train_grpo.py models/qwen-3b

Files that are there already are not downloaded again, so the same command continues one that was interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from grpo_math.errors import UsageError, first_line, run

# Weights in formats that run code when loaded, or that nothing here reads.
NOT_NEEDED = [
    "*.bin",
    "*.pt",
    "*.pth",
    "*.pickle",
    "*.msgpack",
    "*.h5",
    "*.ot",
    "*.onnx",
    "*.gguf",
    "original/*",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="Hub id, such as Qwen/Qwen2.5-3B-Instruct")
    parser.add_argument("--output_dir", help="folder of its own (default: models/NAME)")
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    parser.add_argument(
        "--token", help="of the Hub; better: `hf auth login` or HF_TOKEN, which no history records"
    )
    parser.add_argument("--include", nargs="+", metavar="PATTERN", help="only these files")
    parser.add_argument(
        "--exclude",
        nargs="+",
        metavar="PATTERN",
        default=NOT_NEEDED,
        help=f"(default: {' '.join(NOT_NEEDED)})",
    )
    args = parser.parse_args()
    folder = Path(args.output_dir or f"models/{args.model.rsplit('/', 1)[-1]}")

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
            f"{args.model}: cannot be downloaded ({first_line(error)}); check the name and --revision, and log in with "
            "`hf auth login` where the model asks for it"
        ) from error
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder}: what was downloaded holds no config.json; check --include and --exclude"
        )
    print(
        f"{folder}: ready; where there is no internet: HF_HUB_OFFLINE=1 python train_grpo.py {folder}"
    )


if __name__ == "__main__":
    run(main)
