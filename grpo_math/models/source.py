"""Which weights are meant: a Hub id, a folder, a checkpoint or a run's folder."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_math.errors import UsageError
from grpo_math.run_folder import (
    FINAL,
    RECORD,
    RunRecord,
    is_complete,
    last_complete_checkpoint,
    read_record,
)


@dataclass(frozen=True)
class ModelSource:
    """Where a model's weights are (`path`: a folder or a Hub id), what to call it, and the run that made it."""

    path: str
    name: str
    record: RunRecord | None


def resolve_model(model: str, revision: str = "main") -> ModelSource:
    """Find the weights behind a Hub id, a model's folder, a checkpoint, or a run's folder (final or last checkpoint).

    `revision` is that of a model on the Hub.

    Raises:
        UsageError: a folder holds neither a model nor a complete checkpoint, or a path does not exist.
    """
    folder = Path(model).expanduser()
    if not folder.exists():
        if model.startswith((".", "/", "~")) or model.count("/") > 1 or not model.strip():
            raise UsageError(
                f"{model}: no such folder, and not a Hub id such as Qwen/Qwen2.5-0.5B-Instruct"
            )
        return ModelSource(model, model.rsplit("/", 1)[-1], _hub_record(model, revision))
    if folder.is_file():
        raise UsageError(f"{model}: is a file; name the folder it is in")
    name = folder.resolve().name
    if _holds_model(folder):
        parent = folder.resolve().parent.name
        return ModelSource(
            str(folder),
            f"{parent}-{name}" if name.startswith("checkpoint") else name,
            read_record(folder),
        )
    chosen = folder / FINAL if is_complete(folder / FINAL) else last_complete_checkpoint(folder)[0]
    if chosen is None:
        raise UsageError(
            f"{model}: holds neither a model (config.json) nor a complete checkpoint of a run"
        )
    return ModelSource(
        str(chosen), f"{name}-{chosen.name}", read_record(chosen) or read_record(folder)
    )


def _hub_record(model: str, revision: str) -> RunRecord | None:
    """The record that a model was pushed to the Hub with, if any; what else is wrong shows when the model is loaded."""
    import httpx
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )

    try:
        path: Any = try_to_load_from_cache(model, RECORD, revision=revision)
        with contextlib.suppress(httpx.HTTPError, OSError):
            get_hf_file_metadata(
                hf_hub_url(model, RECORD, revision=revision)
            )  # once: a download would try for long
            path = hf_hub_download(model, RECORD, revision=revision)
        record = read_record(Path(path).parent) if isinstance(path, str) else None
    except (ValueError, UsageError):  # not a name of the Hub, or not a record
        record = None
    return (
        record if record and "reward_funcs" in record else None
    )  # else another's file of that name


def adapter_base(path: str) -> str | None:
    """The base model of a LoRA adapter's folder, or None when `path` is no such folder."""
    config = Path(path) / "adapter_config.json"
    if not config.is_file():
        return None
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{config}: names no base model ({type(error).__name__}: {error}); restore the file"
        ) from error
    if not (config.parent / "adapter_model.safetensors").is_file():
        raise UsageError(
            f"{path}: holds no adapter_model.safetensors; other formats run code when loaded"
        )
    return base


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()
