"""Attend with one new token a row, on a CPU, where transformers' way to it is slow.

transformers copies keys and values for each of the heads that share them, and torch's kernel is
made for many queries. With one query a row, two batched matrix products on keys and values where
they lie are enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def leave_room(columns: Tensor, whole: Tensor) -> Tensor:
    """Mark columns of keys or values as the first ones of `whole`, which has room behind them.

    `decode_attention` reads the room, too, as memory without gaps is read faster. What stands
    there has to be finite.
    """
    columns.whole = whole
    return columns


def decode_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as `sdpa_attention_forward` does, which gets all but one query a row on a CPU.

    query: (rows, heads, 1, size), where neighbours among the heads share those of the keys.
    key, value: (rows, heads of keys, columns, size).
    attention_mask: (rows or 1, heads or 1, 1, columns), true where a token is seen, or what to add
        to its score; None where all are.

    Gives (rows, 1, heads, size), and None in place of the weights.
    """
    rows, heads, queries, size = query.shape
    more = options.get("dropout") or options.get("position_bias") is not None
    if more or queries > 1 or query.device.type != "cpu":
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    columns = key.shape[2]
    if hasattr(key, "whole") and hasattr(value, "whole"):
        key, value = key.whole, value.whole
    shared = (query * (size**-0.5 if scaling is None else scaling)).reshape(
        rows * key.shape[1], -1, size
    )
    scores = torch.bmm(shared, key.flatten(0, 1).transpose(1, 2)).view(rows, heads, 1, -1)
    seen, room = scores.split([columns, scores.shape[-1] - columns], dim=-1)
    room.fill_(-torch.inf)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        seen.masked_fill_(~attention_mask, -torch.inf)
    elif attention_mask is not None:
        seen.add_(attention_mask)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    mixed = torch.bmm(weights.view(*shared.shape[:2], -1), value.flatten(0, 1))
    return mixed.view(rows, 1, heads, -1), None


@contextmanager
def fast_attention() -> Iterator[None]:
    """In this context, models whose attention is "sdpa" use `decode_attention`."""
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = decode_attention
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = before
