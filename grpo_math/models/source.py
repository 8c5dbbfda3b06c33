"""Find which weights are meant: a Hub id, a folder, a checkpoint or a run's folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from grpo_math.errors import UsageError
from grpo_math.models.digest import folder_digest
from grpo_math.run_folder import (
    FINAL,
    RECORD,
    RunRecord,
    is_complete,
    last_complete_checkpoint,
    read_record,
)

ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class ModelSource:
    """Where weights are (`path`: a folder or a Hub id), their name, and the run that made them."""

    path: str
    name: str
    record: RunRecord | None


def resolve_model(model: str, revision: str = "main") -> ModelSource:
    """Find the weights behind a Hub id, a model's folder, a checkpoint, or a run's folder.

    Of a run that is the final model or else the last checkpoint. `revision` is a Hub model's.

    Raises:
        UsageError: a folder holds no model and no complete checkpoint, or a path does not exist.
    """
    folder = Path(model).expanduser()
    if not folder.exists():
        if model.startswith((".", "/", "~")) or model.count("/") > 1 or not model.strip():
            example = "Qwen/Qwen2.5-0.5B-Instruct"
            raise UsageError(f"{model}: no such folder, and not a Hub id such as {example}")
        return ModelSource(model, model.rsplit("/", 1)[-1], _hub_record(model, revision))
    if folder.is_file():
        raise UsageError(f"{model}: is a file; name the folder it is in")
    name = folder.resolve().name
    if _holds_model(folder):
        if name.startswith("checkpoint"):
            name = f"{folder.resolve().parent.name}-{name}"
        return ModelSource(str(folder), name, read_record(folder))
    chosen = folder / FINAL if is_complete(folder / FINAL) else last_complete_checkpoint(folder)[0]
    if chosen is None:
        missing = "neither a model (config.json) nor a complete checkpoint of a run"
        raise UsageError(f"{model}: holds {missing}")
    record = read_record(chosen) or read_record(folder)
    return ModelSource(str(chosen), f"{name}-{chosen.name}", record)


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / ADAPTER).is_file()


def _hub_record(model: str, revision: str) -> RunRecord | None:
    """Read the record that a model was pushed to the Hub with, if any.

    What else is wrong shows when the model is loaded.
    """
    import httpx
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )

    try:
        path = try_to_load_from_cache(model, RECORD, revision=revision)
        with contextlib.suppress(httpx.HTTPError, OSError):
            # Asked once: a download would try for long.
            get_hf_file_metadata(hf_hub_url(model, RECORD, revision=revision))
            path = hf_hub_download(model, RECORD, revision=revision)
        record = read_record(Path(path).parent) if isinstance(path, str) else None
    except (ValueError, UsageError):  # not a name of the Hub, or not a record
        return None
    return record if record and "reward_funcs" in record else None  # else another's file


@dataclass(frozen=True)
class Base:
    """What an adapter was trained on: a folder, or a Hub id with its commit if that is known."""

    path: str
    commit: str | None = None


def find_base(path: str) -> Base | None:
    """Find the base of a LoRA adapter's folder; None when `path` is no such folder.

    It is looked for where adapter_config.json says, seen from here and from every folder around the
    adapter, and where the run's record says that it lay and lies seen from the run's folder.

    Raises:
        UsageError: there is none, or another model than the adapter was trained on.
    """
    folder = Path(path)
    if not (folder / ADAPTER).is_file():
        return None
    written = _written_base(folder)
    record = read_record(folder) or read_record(folder.parent) or RunRecord()
    places = list(_places(folder, written, record.get("model_at", [])))
    trained_on = record.get("model_sha256", "")
    way_out = (
        f"put that one back, or name its folder as base_model_name_or_path in {folder / ADAPTER}"
    )
    if not places:
        if trained_on and not trained_on.startswith("commit "):
            raise UsageError(f"{path}: its base model {written} is not there; {way_out}")
        return Base(written, trained_on.removeprefix("commit ") or None)
    digests = {place: folder_digest(place) for place in places}
    if not trained_on:
        if len(set(digests.values())) > 1:
            named = " and ".join(str(place.resolve()) for place in places)
            raise UsageError(f"{path}: its base may be {named}, which differ; {way_out}")
        return Base(str(places[0]))
    for place, digest in digests.items():
        if digest == trained_on:
            return Base(str(place))
    raise UsageError(
        f"{path}: {places[0].resolve()} is not the model that this adapter was trained on "
        f"({digests[places[0]]}, trained on {trained_on}); {way_out}"
    )


def adapter_base(path: str) -> str | None:
    """Give the path or Hub id of an adapter's base; None when `path` is no adapter's folder."""
    base = find_base(path)
    return base.path if base else None


def _places(folder: Path, written: str, recorded: list[str]) -> Iterator[Path]:
    """List the folders with a model in which an adapter's base may be, likely ones first."""
    around = folder.resolve().parents
    candidates = [Path(written).expanduser()]
    candidates += [start / path for path in recorded for start in (folder, folder.parent)]
    candidates += [start / written for start in around]
    seen = set()
    for place in candidates:
        if place.resolve() not in seen and (place / "config.json").is_file():
            seen.add(place.resolve())
            yield place


def _written_base(folder: Path) -> str:
    """Read the base's name from an adapter's configuration."""
    config = folder / ADAPTER
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if not isinstance(base, str):
            raise TypeError(f"base_model_name_or_path is {base!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"{config}: names no base model ({reason}); restore the file") from error
    if not (folder / "adapter_model.safetensors").is_file():
        missing = "adapter_model.safetensors; other formats run code when loaded"
        raise UsageError(f"{folder}: holds no {missing}")
    return base
