"""One folder that holds a whole model: merged, in safetensors, with tokenizer, generation settings and a card."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_math.errors import UsageError
from grpo_math.files import write_text_atomic
from grpo_math.generation.backend import end_tokens
from grpo_math.models.fingerprint import model_identity
from grpo_math.models.loading import Loading, load_config, load_tokenizer, load_weights
from grpo_math.models.source import ModelSource, adapter_base, resolve_model
from grpo_math.publish.model_card import model_card
from grpo_math.run_folder import FREE, write_record

EXPORT = "export.json"  # marks a folder that an export may replace


def export(
    source: ModelSource, target: Path, evaluations: list[Path], trust_remote_code: bool
) -> None:
    """Write the model of a checkpoint into the folder `target`, which appears when it is whole.

    `evaluations` are NAME.json files; those of this very model, and of its base model on the same data, go into the
    card.

    Raises:
        UsageError: the model cannot be loaded, or `target` holds something else or cannot be written.
    """
    if target.exists() and not (target / EXPORT).is_file():
        raise UsageError(f"{target}: exists and is not an export; choose another --output_dir")
    loading = Loading(trust_remote_code=trust_remote_code)
    base = adapter_base(source.path)
    record = source.record
    origin = base or (record or {}).get("model")
    identity = model_identity(source, load_config(source, loading))
    measured = find_results(target.name, identity, origin, evaluations)
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_model(source, loading, partial)
        if record:
            kept = {key: value for key, value in record["arguments"].items() if _matters(key)}
            stripped = record.copy()
            stripped["arguments"] = kept
            stripped.pop("model_at", None)  # a path of this machine
            write_record(partial, stripped)
        card = model_card(target.name, record, origin, base is not None, measured)
        write_text_atomic(partial / "README.md", card)
        about = {**identity, "merged_adapter": base is not None}
        about |= {
            "versions": {
                name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")
            }
        }
        write_text_atomic(partial / EXPORT, json.dumps(about, indent=2) + "\n")
        for file in (
            partial.iterdir()
        ):  # weights come readable by their owner alone, and are meant for others
            file.chmod((partial / EXPORT).stat().st_mode)
        replaced = target.with_name(f".{target.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _matters(argument: str) -> bool:
    """Whether training depends on an argument: others tell only of the machine that it ran on."""
    return argument in ("max_steps", "num_train_epochs") or not FREE.fullmatch(argument)


def write_model(source: ModelSource, loading: Loading, folder: Path) -> None:
    """Weights in the precision that they have, tokenizer, and generation settings: greedy, as evaluated."""
    from transformers import GenerationConfig

    tokenizer = load_tokenizer(source, loading)
    model = load_weights(source, loading, "auto")
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=end_tokens(model.generation_config, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def find_results(
    name: str, identity: dict[str, str], origin: str | None, evaluations: list[Path]
) -> list[tuple[str, dict[str, Any]]]:
    """The finished evaluations of the model with this identity, each after those of its base model that were asked
    the same questions in the same way."""
    finished = []
    for path in evaluations:
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read ({error})") from error
        if (
            isinstance(info, dict)
            and info.get("results")
            and "model_sha256" in info.get("settings", {})
        ):
            finished.append(info)
    asked = ("data_sha256", "questions", "prompt", "temperature", "n", "max_tokens")
    measured = []
    for own in (info for info in finished if identity.items() <= info["settings"].items()):
        before = [
            info
            for info in finished
            if origin is not None
            and os.path.normpath(info["settings"]["model"]) == os.path.normpath(origin)
            and all(info["settings"].get(key) == own["settings"].get(key) for key in asked)
        ]
        measured += [(f"`{origin}`, before", info) for info in before] + [(name, own)]
    return measured


def zip_folder(folder: Path) -> Path:
    """`folder.zip` beside it, with the folder in it; weights do not compress, so nothing is."""
    path = folder.with_name(f"{folder.name}.zip")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(item for item in folder.rglob("*") if item.is_file()):
                archive.write(file, Path(folder.name) / file.relative_to(folder))
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def check_push(name: str, private: bool) -> str:
    """Before any work: the full name of the repository, which the login may write to and which is not too public.

    Raises:
        UsageError: the name or the login will not do, or the repository is public and the upload was to be private.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"--push_to_hub {name}: {error}") from error
    if get_token() is None:
        raise UsageError("--push_to_hub: not logged in; `hf auth login`, or set HF_TOKEN")
    with _hub_errors(name):
        api = HfApi()
        user = api.whoami()["name"]
        full = name if "/" in name else f"{user}/{name}"
        with contextlib.suppress(RepositoryNotFoundError):
            if not api.model_info(full).private and private:
                raise UsageError(
                    f"--push_to_hub: {full} exists and is public; choose another name, or give --public"
                )
    return full


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder to a model repository on the Hub, made when it is not there; its address.

    Raises:
        UsageError: the Hub refuses.
    """
    from huggingface_hub import HfApi

    with _hub_errors(name):
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=f"Export of {folder.name}"
        )
    return f"{api.endpoint}/{name}"


@contextlib.contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """One line for whatever goes wrong with the Hub, without the token."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split()).replace(get_token() or "\0", "[token]")
        raise UsageError(f"--push_to_hub {name}: the Hub did not take it ({said[:300]})") from None


def local_source(checkpoint: str) -> ModelSource:
    """The checkpoint to export. Raises UsageError unless it is a folder on this machine."""
    if not Path(checkpoint).expanduser().is_dir():
        raise UsageError(
            f"{checkpoint}: no such folder; give a run's folder, a checkpoint, or a LoRA adapter's"
        )
    return resolve_model(checkpoint)
