"""What the prepare scripts share: raw rows from the Hub or from local files, and splits written with a word about them.

A data set's splits are called `train` and `test`; the files that are written, `train.jsonl` and `eval.jsonl`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from grpo_math.data.rows import encode_rows, fingerprint, write_rows
from grpo_math.errors import UsageError
from grpo_math.files import read_jsonl

SPLITS = {"train": "train", "test": "eval"}  # the data set's name of a split, and ours
RawRow = tuple[str, dict[str, Any]]  # where a row came from, for messages, and the row


def eval_rows(text: str) -> int | None:
    """How many evaluation questions `--eval_size` says to keep; None for all."""
    if text == "all":
        return None
    if not text.isdigit() or int(text) == 0:
        raise UsageError(f"--eval_size {text!r}: must be a number of questions, or 'all'")
    return int(text)


def load_splits(
    source: str, hub_id: str, config: str | None, wanted: tuple[str, ...] = tuple(SPLITS)
) -> dict[str, list[RawRow]]:
    """Raw rows of each wanted split, by our names, from a folder, one JSONL file, or the Hub's data set `source`.

    `hub_id` is an example for messages, `config` the configuration to load from the Hub.

    Raises:
        UsageError: the source cannot be read, or lacks a split.
    """
    path = Path(source)
    if path.is_file():
        split = "train" if "train" in path.stem else "test"
        if split not in wanted:
            raise UsageError(
                f"--source {source}: is taken for the {split} split, which --splits leaves out"
            )
        return {SPLITS[split]: _local_split(path)}
    if any((path / f"{split}.jsonl").is_file() for split in SPLITS):
        return {SPLITS[split]: _local_split(path / f"{split}.jsonl") for split in wanted}
    if not path.exists() and (source.startswith((".", "/", "~")) or source.count("/") != 1):
        raise UsageError(
            f"--source {source}: no such file or folder, and not a Hub id like {hub_id}"
        )
    return _hub_splits(source, config, wanted)


def _local_split(path: Path) -> list[RawRow]:
    return [(f"{path}, line {line}", row) for line, row in read_jsonl(path)]


def _hub_splits(
    source: str, config: str | None, wanted: tuple[str, ...]
) -> dict[str, list[RawRow]]:
    from datasets import load_dataset

    try:
        loaded = load_dataset(source, config)
    except (
        Exception
    ) as error:  # the Hub, the network and the file formats fail in many ways; all end here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"--source {source}: could not be loaded ({reason}); on a machine without internet, run this where there "
            "is one and copy the output folder, or pass --source a local folder"
        ) from error
    missing = [split for split in wanted if split not in loaded]
    if missing:
        raise UsageError(f"--source {source}: no split {missing[0]!r}, only {', '.join(loaded)}")
    return {
        SPLITS[split]: [(f"{source} {split}[{i}]", row) for i, row in enumerate(loaded[split])]
        for split in wanted
    }


def text_field(place: str, raw: dict[str, Any], field: str) -> str:
    """The text in a field of a raw row; a `UsageError` that names place and field when there is none."""
    if not isinstance(raw.get(field), str) or not raw[field].strip():
        raise UsageError(f"{place}: field {field!r} is missing or not a text")
    return raw[field]


def write_splits(
    splits: dict[str, list[dict[str, Any]]], folder: Path, replace: bool = True
) -> None:
    """Write each split to `folder/SPLIT.jsonl` and print its path, size and fingerprint.

    Raises:
        UsageError: not `replace`, and a file holds something else; then nothing is written.
    """
    paths = {name: folder / f"{name}.jsonl" for name in splits}
    for name, path in paths.items():
        if (
            not replace
            and path.exists()
            and path.read_bytes() != encode_rows(splits[name]).encode()
        ):
            raise UsageError(
                f"{path}: exists and holds other rows; give --force to replace it, or another --output_dir"
            )
    _report_overlap(splits)
    for name, rows in splits.items():
        write_rows(paths[name], rows)
        print(f"{paths[name]}: {len(rows):,} questions, sha256 {fingerprint(paths[name])}")


def _report_overlap(splits: dict[str, list[dict[str, Any]]]) -> None:
    """Say how many questions stand twice, in a split or in both: training on test questions would fake a gain."""
    for name, rows in splits.items():
        twice = sum(count - 1 for count in Counter(row["question"] for row in rows).values())
        if twice:
            print(f"warning: {twice} questions stand more than once in {name}")
    shared = set.intersection(*({row["question"] for row in rows} for rows in splits.values()))
    if len(splits) == 2 and shared:
        print(f"warning: {len(shared)} evaluation questions are in the training split too")
