"""Metrics of an optimizer step over all its micro-batches and processes, which differ in size."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor


class StepMetrics:
    """Collect values of micro-batches and merge them once a step.

    A name that ends in "/min" or "/max" gives the least or greatest value, others give the mean.
    All processes add the same names; one that has nothing to add adds an empty tensor.
    """

    def __init__(self) -> None:
        self.collected: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, name: str, values: Tensor) -> None:
        """Add one value for each token or completion that counts."""
        self.collected[name].append(values.detach().float().flatten())

    def merge(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Give what to log of the step, and begin the next one."""
        names = sorted(self.collected)
        rows = []
        for name in names:
            values = torch.cat(self.collected[name])
            bounds = [values.min(), values.max()] if len(values) else [math.inf, -math.inf]
            rows.append(values.new_tensor([values.sum(), len(values), *bounds]))
        self.collected.clear()
        if not rows:
            return {}
        tables = gather(torch.stack(rows)[None])  # (processes, names, 4)
        merged = {}
        for number, name in enumerate(names):
            sums = tables[:, number].sum(0)
            if not sums[1]:
                continue
            if name.endswith("/min"):
                merged[name] = tables[:, number, 2].min().item()
            elif name.endswith("/max"):
                merged[name] = tables[:, number, 3].max().item()
            else:
                merged[name] = (sums[0] / sums[1]).item()
        return merged
