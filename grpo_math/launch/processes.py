"""Which processes train together, on which devices, and how the model is spread over them."""

from __future__ import annotations

import importlib.util
import os
import socket
from typing import Any

from grpo_math.errors import UsageError


def launched_processes() -> int:
    """How many processes `accelerate launch` or `torchrun` has started for this run, over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def vllm_mode(arguments: Any) -> str | None:
    """Where vLLM generates: "colocate", on the training GPUs, or "server"; None where transformers does."""
    return arguments.vllm_mode if arguments.use_vllm else None


def strategy() -> str:
    """How the launch spreads the model: "single", "ddp", "fsdp1", "fsdp2", "zero1", "zero2" or "zero3"."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return f"fsdp{os.environ.get('FSDP_VERSION', '1')}"
    return "ddp" if launched_processes() > 1 else "single"


def machine_defaults() -> tuple[dict[str, Any], list[str]]:
    """TRL arguments that depend on this machine, and a line for each that says what was chosen and why."""
    import torch

    if not torch.cuda.is_available():
        device = "an Apple GPU" if torch.backends.mps.is_available() else "no GPU"
        defaults = {"bf16": False, "attn_implementation": "sdpa", "dataloader_pin_memory": False}
        if launched_processes() > 1:
            # Without these, each process on a CPU would train a model of its own.
            defaults |= {"use_cpu": True, "ddp_backend": "gloo"}
            # They name their device cpu:0, and torch.load, which reads the optimizer's state, knows only "cpu".
            torch.serialization.register_package(
                0,
                lambda storage: None,
                lambda storage, location: storage if location.startswith("cpu:") else None,
            )
        return defaults, [f"{device}: float32 and sdpa attention"]
    bf16 = torch.cuda.is_bf16_supported()
    flash = importlib.util.find_spec("flash_attn") is not None
    vllm = importlib.util.find_spec("vllm") is not None
    notes = [
        "bfloat16 autocast" if bf16 else f"{torch.cuda.get_device_name()} has no bfloat16: float32"
    ]
    notes.append("flash-attention" if flash else "flash_attn is not installed: sdpa attention")
    notes.append(
        "vLLM generates on the training GPUs"
        if vllm
        else "vllm is not installed: transformers generates"
    )
    attention = "flash_attention_2" if flash else "sdpa"
    return {"bf16": bf16, "attn_implementation": attention, "use_vllm": vllm}, [", ".join(notes)]


def check_launch(world_size: int) -> None:
    """Processes that were launched together must train together, or each would make a model of its own."""
    launched = launched_processes()
    if launched != world_size:
        raise UsageError(
            f"{launched} processes were launched, but each sees {world_size}: launch with a configuration from "
            "accelerate_configs/ that fits the machine (cpu.yaml where there is no GPU)"
        )


def rank_line(device: Any) -> str:
    """This process's place in the launch, for a person to check."""
    rank, local = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    return f"rank {rank} of {launched_processes()}: {socket.gethostname()}, local rank {local}, {device}, {strategy()}"
