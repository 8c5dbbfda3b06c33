"""Explain what ends a run and is no mistake of this code: shortages, models that do not load."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from grpo_math.errors import PassingError, UsageError, first_line, out_of_memory
from grpo_math.models.loading import model_error

LOADERS = ("from_pretrained", "create_model_from_path")


@contextmanager
def shortage_explained() -> Iterator[None]:
    """Say in a line what the machine lacks while it loads and trains."""
    try:
        yield
    except RuntimeError as error:
        said = first_line(error)
        if out_of_memory(error):
            raise UsageError(
                f"out of memory ({said}): first halve --per_device_train_batch_size and double "
                "--gradient_accumulation_steps (a run that has checkpoints needs another "
                "--output_dir then); what else helps stands in docs/hyperparameters.md, Less memory"
            ) from error
        if "DataLoader worker" in said:
            raise PassingError(
                f"{said}: the system ends processes when memory runs out; --dataloader_num_workers "
                "0 needs none, and the same command continues from the last checkpoint"
            ) from error
        raise


@contextmanager
def loading_explained(model: str) -> Iterator[None]:
    """Say in a line why a model cannot be loaded, or what a library refuses; all else is ours."""
    try:
        yield
    except (OSError, ImportError, RuntimeError, ValueError, SafetensorError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if any(frame.name in LOADERS for frame in frames) and not out_of_memory(error):
            raise model_error(model, error) from error
        if isinstance(error, (ValueError, ImportError)) and "site-packages" in frames[-1].filename:
            raise UsageError(" ".join(str(error).split())) from error
        raise
