"""In which order questions are asked: drawn for each epoch by itself, so that it can be drawn again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler
from trl.trainer.utils import RepeatSampler


class EpochSampler(Sampler[int]):
    """TRL's sampler, asked for the order of an epoch wherever a run is continued.

    TRL draws the next permutation with each pass; a process that begins in a later epoch would draw
    the first epoch's. A sampler of another order overrides `order`, which may rest on the epoch and
    on what every checkpoint holds, and on nothing else.

    Args:
        positions: TRL's sampler, which says how often and when each place in the order is used.
        epoch: tells how many epochs are finished.
    """

    def __init__(self, positions: RepeatSampler, epoch: Callable[[], int]) -> None:
        self.shuffled, positions.shuffle = positions.shuffle, False
        self.positions, self.epoch = positions, epoch

    def order(self, epoch: int) -> list[int]:
        """Give the questions' numbers in the order of an epoch."""
        order = torch.arange(self.positions.num_samples)
        if self.shuffled:
            generator = torch.Generator().manual_seed(self.positions.seed)
            for _ in range(epoch + 1):
                order = torch.randperm(len(order), generator=generator)
        return order.tolist()

    def __iter__(self) -> Iterator[int]:
        order = self.order(self.epoch())
        for position in self.positions:
            yield order[position]

    def __len__(self) -> int:
        return len(self.positions)
