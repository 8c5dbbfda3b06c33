"""Complete prompts in training: with this project's decoder, to a stop string, or greedily."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from grpo_math.generation.decoder import Decoder, chooser, finisher
from grpo_math.models.traits import can_decode


def decodes(trainer: GRPOTrainer) -> bool:
    """Tell whether this project's decoder samples as the settings ask, from complete weights."""
    launch = str(trainer.accelerator.distributed_type.value)
    others = (
        trainer.use_transformers_continuous_batching,
        trainer.args.cache_implementation,
        trainer._is_vlm,
        trainer.min_p,
        trainer.repetition_penalty != 1,
        set(trainer.args.generation_kwargs or {}) - {"stop_strings"},
        launch != "NO" and not launch.startswith("MULTI_"),
    )
    return not any(others) and can_decode(trainer.accelerator.unwrap_model(trainer.model))


def decode(trainer: GRPOTrainer, prompts: list[list[int]], stop: list[str]) -> list[list[int]]:
    """Complete all prompts at once with this project's decoder."""
    ends, most = trainer.eos_token_ids, trainer.max_completion_length
    finished = finisher(ends, most, tuple(stop), trainer._tokenizer)
    choose = chooser(trainer.temperature, trainer.top_p, trainer.top_k)
    with unwrap_model_for_generation(
        trainer.model_wrapped,
        trainer.accelerator,
        gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
    ) as model:
        decoder = Decoder(model, choose, finished, trainer._tokenizer.pad_token_id)
        return decoder.complete(prompts, len(prompts))


def stopped_after(trainer: GRPOTrainer, ids: list[int], stop: list[str]) -> int | None:
    """Count a completion's tokens up to its stop string; None when it does not end in one."""
    if not stop:
        return None
    ends, count = {*trainer.eos_token_ids, trainer._tokenizer.pad_token_id}, len(ids)
    while count and ids[count - 1] in ends:
        count -= 1
    text = trainer._tokenizer.decode(ids[:count])
    return count if any(string in text for string in stop) else None


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
