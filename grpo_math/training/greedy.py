"""Let a trainer generate greedily for a while, as held-out accuracy asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch
from trl import GRPOTrainer


@contextmanager
def greedy(trainer: GRPOTrainer) -> Iterator[None]:
    """Generate greedily and without dropout, and leave training's random numbers as they were."""
    was_training, temperature = trainer.model.training, trainer.temperature
    config = getattr(trainer, "generation_config", None)
    device = trainer.accelerator.device
    trainer.temperature = 0
    if trainer.use_vllm:
        trainer.vllm_generation.temperature = 0
    if config is not None:
        without = dict.fromkeys(("temperature", "top_p", "top_k", "min_p"))
        trainer.generation_config = copy(config)
        trainer.generation_config.update(do_sample=False, **without)
    trainer.model.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        trainer.model.train(was_training)
        trainer.temperature = temperature
        if trainer.use_vllm:
            trainer.vllm_generation.temperature = temperature
        if config is not None:
            trainer.generation_config = config
