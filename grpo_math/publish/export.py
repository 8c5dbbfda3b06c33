"""One folder that holds a whole model: merged weights, tokenizer, settings and a card."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path

from grpo_math.errors import UsageError
from grpo_math.files import write_text_atomic
from grpo_math.models.fingerprint import model_identity
from grpo_math.models.loading import Loading, end_tokens, load_config, load_tokenizer, load_weights
from grpo_math.models.source import ModelSource, adapter_base, resolve_model
from grpo_math.publish.command import Arguments, public_record
from grpo_math.publish.measured import Measured, is_base, read_measured
from grpo_math.publish.model_card import Card
from grpo_math.run_folder import RunRecord, write_record

EXPORT = "export.json"  # marks a folder that an export may replace
PACKAGES = ("torch", "transformers", "peft")


def local_source(checkpoint: str) -> ModelSource:
    """Find the checkpoint to export. Raises UsageError unless it is a folder on this machine."""
    if not Path(checkpoint).expanduser().is_dir():
        wanted = "a run's folder, a checkpoint, or a LoRA adapter's"
        raise UsageError(f"{checkpoint}: no such folder; give {wanted}")
    return resolve_model(checkpoint)


def export(
    source: ModelSource,
    target: Path,
    evaluations: list[Path],
    trust_remote_code: bool,
    defaults: Arguments,
) -> None:
    """Write the model of a checkpoint into the folder `target`, which appears when it is whole.

    `evaluations` are NAME.json files; those of this very model, and of its base model on the same
    data, go into the card. `defaults` are the arguments of a run for which none was given.

    Raises:
        UsageError: the model cannot be loaded, or `target` cannot be written or is not an export.
    """
    if target.exists() and not (target / EXPORT).is_file():
        raise UsageError(f"{target}: exists and is not an export; choose another --output_dir")
    loading = Loading(trust_remote_code=trust_remote_code)
    merged = adapter_base(source.path)
    record = source.record
    identity = model_identity(source, load_config(source, loading))
    measured = find_results(identity, record, evaluations)
    base = merged or (record or {}).get("model")
    card = Card(target.name, record, base, merged is not None, measured, defaults)
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_model(source, loading, partial)
        if record:
            write_record(partial, public_record(record))
        write_text_atomic(partial / "README.md", card.text())
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        about = {**identity, "merged_adapter": card.merged, "versions": versions}
        write_text_atomic(partial / EXPORT, json.dumps(about, indent=2) + "\n")
        # Weights come readable by their owner alone, and are meant for others.
        for file in partial.iterdir():
            file.chmod((partial / EXPORT).stat().st_mode)
        _put_in_place(partial, target)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, target: Path) -> None:
    replaced = target.with_name(f".{target.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    partial.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def write_model(source: ModelSource, loading: Loading, folder: Path) -> None:
    """Write weights in their own precision, tokenizer, and settings: greedy, as evaluated."""
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
    identity: dict[str, str], record: RunRecord | None, evaluations: list[Path]
) -> list[tuple[Measured, bool]]:
    """Find the evaluations of the model with this identity.

    Before each stand those of the base model that were asked the same questions in the same way;
    the second value says whether it is one of them.
    """
    finished = list(filter(None, map(_read, evaluations)))
    model, base = identity["model_sha256"], identity.get("base_sha256")
    results = []
    for own in finished:
        if (own.model_sha256, own.base_sha256) != (model, base):
            continue
        for other in finished:
            same_model = base is not None and other.model_sha256 == base
            same_model = same_model or (base is None and is_base(other, record or {}))
            if same_model and other.base_sha256 is None and other.asked == own.asked:
                results.append((other, True))
        results.append((own, False))
    return results


def _read(path: Path) -> Measured | None:
    try:
        return read_measured(path)
    except UsageError as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error


def zip_folder(folder: Path) -> Path:
    """Write `folder.zip` beside the folder, with the folder in it."""
    path = folder.with_name(f"{folder.name}.zip")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        made = shutil.make_archive(str(partial), "zip", folder.parent, folder.name)
        Path(made).replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        partial.with_name(f"{partial.name}.zip").unlink(missing_ok=True)
    return path
