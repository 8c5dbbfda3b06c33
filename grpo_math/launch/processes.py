"""Which processes train together, on which devices, and how the model is spread over them."""

from __future__ import annotations

import importlib.util
import os
import socket
from typing import TYPE_CHECKING

from grpo_math.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    import torch
    from trl import GRPOConfig


def launched_processes() -> int:
    """Give how many processes a launcher has started for this run, over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def vllm_mode(arguments: GRPOConfig | Namespace) -> str | None:
    """Say where vLLM generates: "colocate" or "server"; None where transformers does."""
    return arguments.vllm_mode if arguments.use_vllm else None


def strategy() -> str:
    """Name how the launch spreads the model: single, ddp, fsdp1, fsdp2, zero1, zero2 or zero3."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return f"fsdp{os.environ.get('FSDP_VERSION', '1')}"
    return "ddp" if launched_processes() > 1 else "single"


def machine_defaults() -> tuple[dict[str, object], list[str]]:
    """Give TRL's arguments that depend on this machine, and lines that say why they are so."""
    import torch

    if not torch.cuda.is_available():
        device = "an Apple GPU" if torch.backends.mps.is_available() else "no GPU"
        defaults = {"bf16": False, "attn_implementation": "sdpa", "dataloader_pin_memory": False}
        if launched_processes() > 1:
            # Without these, each process on a CPU would train a model of its own.
            defaults |= {"use_cpu": True, "ddp_backend": "gloo"}
            # They name their device cpu:0. torch.load, which reads the optimizer's state, knows
            # "cpu" alone.
            torch.serialization.register_package(
                0,
                lambda storage: None,
                lambda storage, location: storage if location.startswith("cpu:") else None,
            )
        return defaults, [f"{device}: float32 and sdpa attention"]
    bf16 = torch.cuda.is_bf16_supported()
    flash = importlib.util.find_spec("flash_attn") is not None
    vllm = importlib.util.find_spec("vllm") is not None
    attention, notes = "flash_attention_2", ["bfloat16 autocast", "flash-attention"]
    if not bf16:
        notes[0] = f"{torch.cuda.get_device_name()} has no bfloat16: float32"
    if not flash:
        attention, notes[1] = "sdpa", "flash_attn is not installed: sdpa attention"
    where = "vLLM generates on the training GPUs"
    notes.append(where if vllm else "vllm is not installed: transformers generates")
    defaults = {"bf16": bf16, "attn_implementation": attention, "use_vllm": vllm}
    return defaults, [", ".join(notes)]


def check_launch(world_size: int) -> None:
    """Refuse processes that do not train together, as each would make a model of its own."""
    launched = launched_processes()
    if launched != world_size:
        raise UsageError(
            f"{launched} processes were launched, but each sees {world_size}: launch with a "
            "configuration from accelerate_configs/ that fits the machine (cpu.yaml where there is "
            "no GPU)"
        )


def rank_line(device: torch.device) -> str:
    """Give this process's place in the launch, for a person to check."""
    rank, local = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    place = f"rank {rank} of {launched_processes()}: {socket.gethostname()}, local rank {local}"
    return f"{place}, {device}, {strategy()}"
