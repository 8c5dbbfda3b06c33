"""What the prepare scripts share: raw rows from the Hub or from local files, and splits written.

A data set's splits are called `train` and `test`; the files that are written, `train.jsonl` and
`eval.jsonl`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_math.data.rows import RawRow, encode_rows, fingerprint, write_rows
from grpo_math.errors import UsageError, first_line
from grpo_math.files import read_jsonl

SPLITS = {"train": "train", "test": "eval"}  # the data set's name of a split, and ours
TABLES = {".parquet": "parquet", ".csv": "csv", ".json": "json"}  # read by the package datasets
Placed = tuple[str, RawRow]  # where a row came from, for messages, and the row


def source_arguments(doc: str | None, hub_id: str) -> argparse.ArgumentParser:
    """Make a parser with the flag that says where the raw rows are."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", default=hub_id, help=f"Hub id, folder, or one file (default: {hub_id})"
    )
    return parser


def eval_rows(text: str) -> int | None:
    """Read how many evaluation questions `--eval_size` says to keep; None for all."""
    if text == "all":
        return None
    if not text.isdigit() or int(text) == 0:
        raise UsageError(f"--eval_size {text!r}: must be a number of questions, or 'all'")
    return int(text)


def load_splits(
    source: str, hub_id: str, config: str | None, wanted: Sequence[str] = tuple(SPLITS)
) -> dict[str, list[Placed]]:
    """Read the raw rows of each wanted split, by our names, from a folder, a file or the Hub.

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
    return _library_splits(source, config, wanted)


def _local_split(path: Path) -> list[Placed]:
    if path.suffix in TABLES:
        rows = _load(str(path), TABLES[path.suffix], data_files=str(path))["train"]
        return _placed(str(path), rows)
    return [(f"{path}, line {line}", row) for line, row in read_jsonl(path)]


def _placed(place: str, rows: Iterable[RawRow]) -> list[Placed]:
    return [(f"{place}[{number}]", row) for number, row in enumerate(rows)]


def _library_splits(
    source: str, config: str | None, wanted: Sequence[str]
) -> dict[str, list[Placed]]:
    """Read what the package `datasets` reads: the Hub's, a copy of it, or one saved to disk."""
    folder = Path(source)
    if (folder / "dataset_dict.json").is_file():
        loaded = _load(source, None)
    elif folder.is_dir() and not (folder / "README.md").is_file():
        loaded = _load(source, source)  # bare files, without the card that names configurations
    else:
        loaded = _load(source, source, config)
    missing = [split for split in wanted if split not in loaded]
    if missing:
        raise UsageError(f"--source {source}: no split {missing[0]!r}, only {', '.join(loaded)}")
    return {SPLITS[split]: _placed(f"{source} {split}", loaded[split]) for split in wanted}


def _load(source: str, path: str | None, *config: str | None, **files: str) -> Mapping[str, Any]:
    """Call `datasets`: `path` is what it loads, or None for a folder that it saved itself."""
    from datasets import load_dataset, load_from_disk

    try:
        return load_dataset(path, *config, **files) if path else load_from_disk(source)
    except Exception as error:  # the Hub, the network and the file formats fail in many ways
        raise UsageError(
            f"--source {source}: could not be loaded ({first_line(error)}); on a machine without "
            "internet, run this where there is one and copy the output folder, or pass --source a "
            "local folder"
        ) from error


def text_field(place: str, raw: RawRow, field: str) -> str:
    """Give the text in a field of a raw row; a `UsageError` names place and field without one."""
    text = raw.get(field)
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"{place}: field {field!r} is missing or not a text")
    return text


def write_splits(
    splits: Mapping[str, Sequence[RawRow]], folder: Path, replace: bool = True
) -> None:
    """Write each split to `folder/SPLIT.jsonl` and print its path, size and fingerprint.

    Raises:
        UsageError: not `replace`, and a file holds something else; then nothing is written.
    """
    paths = {name: folder / f"{name}.jsonl" for name in splits}
    for name, path in paths.items():
        keeps = replace or not path.exists()
        if not keeps and path.read_bytes() != encode_rows(splits[name]).encode():
            raise UsageError(
                f"{path}: exists and holds other rows; give --force to replace it, or another "
                "--output_dir"
            )
    _report_overlap(splits)
    for name, rows in splits.items():
        write_rows(paths[name], rows)
        print(f"{paths[name]}: {len(rows):,} questions, sha256 {fingerprint(paths[name])}")


def _report_overlap(splits: Mapping[str, Sequence[RawRow]]) -> None:
    """Say how many questions stand twice: training on test questions would fake a gain."""
    questions = {name: Counter(row["question"] for row in rows) for name, rows in splits.items()}
    for name, counted in questions.items():
        twice = counted.total() - len(counted)
        if twice:
            print(f"warning: {twice} questions stand more than once in {name}")
    if len(questions) == 2:
        train, held_out = questions.values()
        shared = train.keys() & held_out.keys()
        if shared:
            print(f"warning: {len(shared)} evaluation questions are in the training split too")
