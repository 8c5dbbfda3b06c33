"""Estimate what a run takes of a GPU's memory, part by part, from configurations alone.

Weights, gradients and AdamW's two moments are counted exactly. Activations are what autograd keeps
of a Llama-like layer (after Korthikanti et al. 2022, arXiv 2205.05198, section 4, counted anew for
SwiGLU, grouped queries and SDPA), logits the tiles in which TRL computes log-probabilities. All
sizes are bytes for one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo_math.errors import UsageError
from grpo_math.launch.processes import launched_processes, strategy, vllm_mode

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedConfig
    from trl import GRPOConfig, ModelConfig

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
# Tokens and vocabulary entries of a tile (trl/kernels/chunked_logprob.py).
TILE_TOKENS, TILE_VOCABULARY = 4096, 32768


@dataclass(frozen=True)
class Parameters:
    """How many there are, how many are trained, and how many sit in the output layer."""

    total: int
    trained: int
    output: int


def count_parameters(config: PreTrainedConfig, peft_config: PeftConfig | None) -> Parameters:
    """Count a model's parameters on PyTorch's meta device, which holds no numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        output = model.get_output_embeddings().weight.numel()
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
    total = trained = 0
    for parameter in model.parameters():
        total += parameter.numel()
        trained += parameter.numel() * parameter.requires_grad
    return Parameters(total, trained, output)


def estimate(
    parameters: Parameters,
    config: PreTrainedConfig,
    args: GRPOConfig,
    model_args: ModelConfig,
    longest_prompt: int,
) -> dict[str, int]:
    """Give the bytes of one process at the peak of a training step, by part, without vLLM's.

    Weights are float32 unless `--dtype` says otherwise, and take half a byte or one if quantised.
    """
    c, spread, processes = config.get_text_config(), strategy(), launched_processes()
    stored = WIDTHS.get(model_args.dtype, 4)
    width = 2 if args.bf16 or args.fp16 else stored
    weight, moment = float(stored), stored
    if model_args.load_in_4bit or model_args.load_in_8bit:
        weight = 0.5 if model_args.load_in_4bit else 1.0
    if "8bit" in args.optim:
        moment = 1
    tokens = args.per_device_train_batch_size * (longest_prompt + args.max_completion_length - 1)
    kept, layer = activation_bytes(c, width)
    logits = logit_bytes(tokens, c.vocab_size, parameters, width)
    if args.gradient_checkpointing:
        # A layer that is computed again and the logits never live at once.
        logits = max(logits, 2 * tokens * layer)
    else:
        kept += layer
    parts = {
        "weights": parameters.total * weight,
        "gradients": parameters.trained * stored,
        "optimizer": parameters.trained * 2 * moment,
        "activations": tokens * c.num_hidden_layers * kept,
        "logits": logits,
    }
    sharded = {"zero1": ["optimizer"], "zero2": ["optimizer", "gradients"]}
    if spread in ("zero3", "fsdp1", "fsdp2"):
        sharded[spread] = ["optimizer", "gradients", "weights"]
    for part in sharded.get(spread, []):
        parts[part] /= processes
    return {name: round(size) for name, size in parts.items()}


def activation_bytes(c: PreTrainedConfig, width: int) -> tuple[int, int]:
    """Give the bytes per token and layer: its input, and what autograd keeps inside it."""
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    queries = c.num_attention_heads * head
    keys = (c.num_key_value_heads or c.num_attention_heads) * head
    inside = width * (2 * queries + 2 * keys + 4 * c.intermediate_size)
    return 4 * c.hidden_size, 4 * 5 * c.hidden_size + inside


def logit_bytes(tokens: int, vocabulary: int, parameters: Parameters, width: int) -> float:
    """Give the bytes of a tile and, in float32, twice the output layer's gradient.

    Triton works on the tile in place; on a CPU, PyTorch makes nine temporaries of it, as measured.
    """
    import torch

    tile = min(tokens, TILE_TOKENS) * min(vocabulary, TILE_VOCABULARY)
    temporaries = 0 if torch.cuda.is_available() else 34
    return tile * (width + temporaries) + 2 * parameters.output * 4


def memory_lines(parts: dict[str, int], args: GRPOConfig) -> list[str]:
    """Give the estimate for a person, beside what the GPU has.

    Raises:
        UsageError: the GPU has less.
    """
    import torch

    gpu, share = 0, args.vllm_gpu_memory_utilization
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(args.device).total_memory
    colocated = vllm_mode(args) == "colocate"
    if colocated and not args.vllm_enable_sleep_mode:  # asleep, it takes none
        parts = parts | {"vllm": round(gpu * share)}
    total = sum(parts.values())
    named = " + ".join(f"{name} {gib(size)}" for name, size in parts.items() if size)
    lines = [f"memory       {named}"]
    if colocated and not gpu:
        lines.append(f"             and {share:.0%} of the GPU for vLLM")
    beside = f"of {gib(gpu)} GiB" if gpu else "no GPU here"
    lines.append(f"             = {gib(total)} GiB for each process, {beside}")
    if gpu and total > gpu:
        largest = max(parts, key=lambda part: parts[part])
        raise UsageError(
            f"{gib(total)} GiB are needed and the GPU has {gib(gpu)}, most of it for {largest}: "
            "see docs/hyperparameters.md on less memory (--use_peft true, a smaller "
            "--per_device_train_batch_size, --optim adamw_8bit, ACCELERATE_CONFIG=zero3, a lower "
            "--vllm_gpu_memory_utilization)"
        )
    return lines


def gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
