"""The metrics of an optimizer step, from those of its micro-batches on all processes, which may differ in size."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from grpo_math.training.micro_batches import Batch, loss_mask
from grpo_math.training.shared_prompts import same_prompts


class Size(NamedTuple):
    """How much is in micro-batches: completions, tokens that count in the loss, and positions that run, padding too."""

    completions: int = 0
    tokens: int = 0
    positions: int = 0

    @classmethod
    def of(cls, batches: list[Batch], share: bool = False) -> Size:
        """Those that are `idle` hold nothing; of a prompt that is shared, all runs once but the last token."""
        batches = [batch for batch in batches if "idle" not in batch]
        return cls(
            sum(len(batch["advantages"]) for batch in batches),
            sum(int(loss_mask(batch).sum()) for batch in batches),
            sum(positions(batch, share) for batch in batches),
        )


def positions(batch: Batch, share: bool) -> int:
    ids, mask = batch["prompt_ids"], batch["prompt_mask"]
    if not share or ids.size(1) == 1:
        return ids.numel() + batch["completion_ids"].numel()
    different = len(same_prompts(ids[:, :-1], mask[:, :-1])[0])
    return different * (ids.size(1) - 1) + len(ids) + batch["completion_ids"].numel()


class StepMetrics:
    """Collects what TRL's loss logs for each micro-batch on one process, and merges it over a step and all processes.

    Args:
        by_completion: the importance sampling level is "sequence", so TRL's means of ratios are over completions.
    """

    def __init__(self, by_completion: bool) -> None:
        self.by_completion = by_completion
        self.collected: list[tuple[dict[str, float], Size, Size]] = []

    def add(self, values: dict[str, float], run: Size, plain: Size) -> None:
        """`values` of a micro-batch of size `run`, one of those made from micro-batches of size `plain`."""
        self.collected.append((values, run, plain))

    def merge(self, gather: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """What to log, from all processes; starts a new step."""
        keys = sorted(self.collected[0][0])
        table = torch.tensor([[self._row(key) for key in keys]], dtype=torch.float32, device=device)
        self.collected = []
        table = gather(table).cpu()  # (processes, keys, 4)
        merged = {}
        for number, key in enumerate(keys):
            total, size = table[:, number, :2].sum(0).tolist()
            if key.endswith("_min"):
                merged[key] = table[:, number, 2].min().item()
            elif key.endswith("_max"):
                merged[key] = table[:, number, 3].max().item()
            elif size:
                merged[key] = total / size
        return merged

    def _row(self, key: str) -> tuple[float, float, float, float]:
        """Sum and size for a mean, smallest and largest value of one metric on this process.

        A completion without advantage is not clipped, whatever its ratio: it counts as 0 there. Other metrics of it
        would need a forward pass, and are left out.
        """
        by_completion = key == "vespo/phi_seq_mean" or (self.by_completion and key != "entropy")
        unit = "completions" if by_completion else "tokens"
        run = [
            (values[key], getattr(size, unit))
            for values, size, _ in self.collected
            if size.completions
        ]
        size, values = sum(weight for _, weight in run), [value for value, _ in run]
        if "clip" in key:
            plain = sum(getattr(plain, unit) for *_, plain in self.collected)
            values += [0.0] if plain > size else []
            size = plain
        total = sum(value * weight for value, weight in run)
        return total, size, min(values, default=float("inf")), max(values, default=float("-inf"))
