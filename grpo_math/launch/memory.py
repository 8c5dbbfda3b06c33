"""What a run takes of a GPU's memory, part by part, estimated from configurations alone.

Weights, gradients and AdamW's two moments are counted exactly; activations by what autograd keeps of a Llama-like layer
(after Korthikanti et al. 2022, arXiv 2205.05198, section 4, counted anew for SwiGLU, grouped queries and SDPA); logits
by the tiles in which TRL computes log-probabilities. All sizes are bytes for one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpo_math.errors import UsageError
from grpo_math.launch.processes import launched_processes, strategy, vllm_mode

if TYPE_CHECKING:
    from trl import GRPOConfig, ModelConfig

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
# TRL computes log-probabilities in tiles of this many tokens and vocabulary entries (trl/kernels/chunked_logprob.py).
TILE_TOKENS, TILE_VOCABULARY = 4096, 32768


@dataclass(frozen=True)
class Parameters:
    """How many there are, how many are trained, and how many sit in the output layer."""

    total: int
    trained: int
    output: int


def count_parameters(model_config: Any, peft_config: Any) -> Parameters:
    """Count on PyTorch's meta device, which holds no numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
        output = model.get_output_embeddings().weight.numel()
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Parameters(sum(n for n, _ in counts), sum(n for n, trained in counts if trained), output)


def estimate(
    parameters: Parameters,
    model_config: Any,
    args: GRPOConfig,
    model_args: ModelConfig,
    longest_prompt: int,
) -> dict[str, int]:
    """Bytes of one process at the peak of a training step, by part. What vLLM takes comes on top: `vllm_bytes`.

    Weights are float32 unless `--dtype` says otherwise; 4-bit weights count half a byte and 8-bit ones one.
    """
    c, spread, processes = model_config.get_text_config(), strategy(), launched_processes()
    stored = WIDTHS.get(model_args.dtype, 4)
    width = 2 if args.bf16 or args.fp16 else stored
    sharded = spread in ("zero3", "fsdp1", "fsdp2")
    tokens = args.per_device_train_batch_size * (longest_prompt + args.max_completion_length - 1)
    kept, layer = activation_bytes(c, width)
    logits = logit_bytes(tokens, c.vocab_size, parameters, width)
    checkpointing = args.gradient_checkpointing
    parts = {
        "weights": parameters.total
        * (0.5 if model_args.load_in_4bit else 1 if model_args.load_in_8bit else stored),
        "gradients": parameters.trained * stored,
        "optimizer": parameters.trained * 2 * (1 if "8bit" in args.optim else stored),
        "activations": tokens * c.num_hidden_layers * (kept if checkpointing else kept + layer),
        # A layer that is computed again and the logits never live at once.
        "logits": max(logits, 2 * tokens * layer if checkpointing else 0),
    }
    parts["weights"] /= processes if sharded else 1
    parts["gradients"] /= processes if sharded or spread == "zero2" else 1
    parts["optimizer"] /= processes if sharded or spread in ("zero1", "zero2") else 1
    return {name: round(size) for name, size in parts.items()}


def activation_bytes(c: Any, width: int) -> tuple[int, int]:
    """Per token and layer: the layer's input, and what autograd keeps inside it (norms in float32, SDPA)."""
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    queries, keys = (
        c.num_attention_heads * head,
        (c.num_key_value_heads or c.num_attention_heads) * head,
    )
    return 4 * c.hidden_size, 4 * 5 * c.hidden_size + width * (
        2 * queries + 2 * keys + 4 * c.intermediate_size
    )


def logit_bytes(tokens: int, vocabulary: int, parameters: Parameters, width: int) -> float:
    """A tile and the output layer's gradient in float32, twice.

    With Triton the tile is worked on in place; without (on a CPU) PyTorch makes nine temporaries of it, as measured.
    """
    import torch

    tile = min(tokens, TILE_TOKENS) * min(vocabulary, TILE_VOCABULARY)
    return tile * (width if torch.cuda.is_available() else width + 34) + 2 * parameters.output * 4


def vllm_bytes(args: GRPOConfig, gpu_bytes: int) -> int:
    """vLLM's share of a GPU that also trains; none while it sleeps, and none when a server generates."""
    colocated = vllm_mode(args) == "colocate" and not args.vllm_enable_sleep_mode
    return round(gpu_bytes * args.vllm_gpu_memory_utilization) if colocated else 0


def memory_lines(parts: dict[str, int], args: GRPOConfig) -> list[str]:
    """The estimate for a person, beside what the GPU has.

    Raises:
        UsageError: the GPU has less.
    """
    import torch

    gpu = (
        torch.cuda.get_device_properties(args.device).total_memory
        if torch.cuda.is_available()
        else 0
    )
    parts = parts | {"vllm": vllm_bytes(args, gpu)}
    total = sum(parts.values())
    lines = [
        f"memory       {' + '.join(f'{name} {gib(size)}' for name, size in parts.items() if size)}"
    ]
    if vllm_mode(args) == "colocate" and not gpu:
        lines.append(f"             and {args.vllm_gpu_memory_utilization:.0%} of the GPU for vLLM")
    lines.append(
        f"             = {gib(total)} GiB for each process, {f'of {gib(gpu)} GiB' if gpu else 'no GPU here'}"
    )
    if gpu and total > gpu:
        largest = max(parts, key=lambda part: parts[part])
        raise UsageError(
            f"{gib(total)} GiB are needed and the GPU has {gib(gpu)}, most of it for {largest}: "
            "see docs/hyperparameters.md on less memory (--use_peft true, a smaller --per_device_train_batch_size, "
            "--optim adamw_8bit, ACCELERATE_CONFIG=zero3, a lower --vllm_gpu_memory_utilization)"
        )
    return lines


def gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
