"""Say which model it is, so that two models of one name are not taken for one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_math.errors import UsageError
from grpo_math.models.digest import folder_digest
from grpo_math.models.source import ModelSource, find_base

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def model_identity(source: ModelSource, config: PretrainedConfig) -> dict[str, str]:
    """Give `model_sha256`: a digest of the model's folder, or the commit of a model on the Hub.

    For an adapter that is a digest of its own weights and configuration, and `base_sha256` is the
    same of its base. `config` is what `load_config` gave for the source.
    """
    base = find_base(source.path)
    if base is None:
        return {"model_sha256": _digest_or_commit(source.path, config)}
    digest = folder_digest(source.path)
    return {"model_sha256": digest, "base_sha256": _digest_or_commit(base.path, config)}


def starting_model(
    source: ModelSource, config: PretrainedConfig, run_dir: str | Path
) -> dict[str, str | list[str]]:
    """Give what a run's record says of its first model, by which an adapter finds its base again.

    `model_at` is a folder's absolute path and the one from the run's folder; the digest tells
    whether what is there is still that model.

    Raises:
        UsageError: the model is an adapter, which training does not go on from.
    """
    if find_base(source.path):
        whole = f"python export_model.py {source.path} makes a model of it that can be trained on"
        raise UsageError(
            f"{source.path}: is a LoRA adapter, without the weights it is for; {whole}"
        )
    digest = _digest_or_commit(source.path, config)
    if not Path(source.path).is_dir():
        return {"model_sha256": digest}
    here = os.path.realpath(source.path)
    places = [here, os.path.relpath(here, os.path.realpath(run_dir))]
    return {"model_sha256": digest, "model_at": places}


def _digest_or_commit(path: str, config: PretrainedConfig) -> str:
    if Path(path).is_dir():
        return folder_digest(path)
    return f"commit {config._commit_hash}"
