"""Say which model it is that was asked, so that two models of one name are not taken for one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from grpo_math.models.digest import folder_digest
from grpo_math.models.source import ModelSource, adapter_base

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def model_identity(source: ModelSource, config: PretrainedConfig) -> dict[str, str]:
    """Give `model_sha256`: a digest of the model's folder, or the commit of a model on the Hub.

    For an adapter that is a digest of its own weights and configuration, and `base_sha256` is the
    same of its base. `config` is what `load_config` gave for the source.
    """
    base = adapter_base(source.path)
    if base is None:
        return {"model_sha256": _digest_or_commit(source.path, config)}
    digest = folder_digest(source.path)
    return {"model_sha256": digest, "base_sha256": _digest_or_commit(base, config)}


def _digest_or_commit(path: str, config: PretrainedConfig) -> str:
    if Path(path).is_dir():
        return folder_digest(path)
    return f"commit {config._commit_hash}"
