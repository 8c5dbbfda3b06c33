"""Weight vLLM's samples by the trainer's probabilities over vLLM's, of the training pass itself."""

from __future__ import annotations

import math

from torch import Tensor
from trl import GRPOConfig

from grpo_math.training.regroup import Batch, loss_mask


def sampling_ratio(
    args: GRPOConfig, logps: Tensor, batch: Batch, runs: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Give the ratio, limited as TRL limits it, (B, T or 1), and values for a step's metrics.

    logps: (B, T), those of the weights that generated. runs: (B,), which completions have one.
    """
    mask = loss_mask(batch).bool() & runs[:, None]
    apart = logps - batch["sampling_per_token_logps"]
    known = mask & ~apart.isnan()  # vLLM gives NaN for a token that it cannot score
    apart = apart.masked_fill(~known, 0)
    mode = args.vllm_importance_sampling_mode
    by_sequence = mode.startswith("sequence")
    ratio = (apart.sum(1, keepdim=True) if by_sequence else apart).exp()
    low, high = args.vllm_importance_sampling_clip_min, args.vllm_importance_sampling_clip_max
    metrics = {}
    if mode.endswith("truncate"):
        ratio = ratio.clamp(min=low, max=high)
    else:
        above = ratio > (math.inf if high is None else high)
        below = ratio < (-math.inf if low is None else low)
        ratio = ratio.masked_fill(above | below, 0)
        metrics["sampling/masked_fraction"] = ratio[runs] == 0
    counted = ratio[runs] if by_sequence else ratio[mask]
    for name in ("min", "mean", "max"):
        metrics[f"sampling/importance_sampling_ratio/{name}"] = counted
    for name in ("mean", "max"):
        metrics[f"sampling/sampling_logp_difference/{name}"] = apart[known].abs()
    return ratio, metrics
