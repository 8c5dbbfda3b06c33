"""Tell one version of a model's folder from another by what its files hold."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

CONFIGURATIONS = ("config.json", "generation_config.json", "adapter_config.json")
# Of an adapter's configuration: where its base was, and by which version it was written.
NOT_ITS_OWN = ("base_model_name_or_path", "revision", "peft_version")


def folder_digest(path: str | Path) -> str:
    """Give a digest of all that answers depend on: weights, configuration and code of its own.

    Every byte of the weights counts. Where an adapter's base lies does not.
    """
    folder = Path(path)
    files = sorted(folder.glob("*.safetensors"))
    files += filter(Path.is_file, map(folder.joinpath, CONFIGURATIONS))
    config = folder / "config.json"
    if config in files and b'"auto_map"' in config.read_bytes():  # code beside it builds the model
        files += sorted(folder.glob("*.py"))
    whole = hashlib.sha256()
    with ThreadPoolExecutor() as pool:  # a model of many files is read from many places at once
        for file, digest in zip(files, pool.map(_file_digest, files), strict=True):
            whole.update(f"{file.name} {digest}\n".encode())
    return whole.hexdigest()[:16]


def _file_digest(path: Path) -> str:
    if path.name == "adapter_config.json":
        settings = json.loads(path.read_text(encoding="utf-8"))
        for name in NOT_ITS_OWN:
            settings.pop(name, None)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    stat = path.stat()
    return _bytes_digest(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _bytes_digest(path: Path, size: int, changed: int) -> str:
    """Read a file once in a process, unless its size or time of change is another."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
