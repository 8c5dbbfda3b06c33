"""Put the completions of TRL's micro-batches into others: same gradient, prompts together, even.

TRL's micro-batches of one optimizer step hold completions in random order, so any other order is as
good. Here completions of one prompt lie together, where a packed row runs the prompt once, and
those without an advantage, which do not run, are spread over what is left. The number of
micro-batches and of completions in each stays: processes meet in each of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from grpo_math.training.packed_rows import same_prompts

Batch = dict[str, Tensor]
"""A micro-batch as TRL holds it, of B completions: `prompt_ids` and `prompt_mask` (B, P), padded on
the left; `completion_ids`, `completion_mask`, `old_per_token_logps` ... (B, T), padded on the
right; `advantages` (B,); scalars."""


SIDES = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


@dataclass
class Share:
    """The completions of a new micro-batch and the tokens that they run, equal prompts once."""

    rows: list[int] = field(default_factory=list)
    tokens: int = 0


def loss_mask(batch: Batch) -> Tensor:
    """Give (B, T): 1 where a token counts in the loss."""
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def trained(batch: Batch) -> Tensor:
    """Give (B,): true where a completion has a gradient, which takes an advantage and a token."""
    return (batch["advantages"] != 0) & loss_mask(batch).any(1)


def positions(batch: Batch, packed: bool) -> int:
    """Count the positions that a micro-batch runs."""
    rows = trained(batch)
    if not rows.any():
        return 0
    if not packed:
        return int(rows.sum()) * (batch["prompt_ids"].size(1) + batch["completion_ids"].size(1))
    mask = batch["prompt_mask"][rows]
    first, _ = same_prompts(batch["prompt_ids"][rows], mask)
    return int((mask[first].sum(1) - 1).sum() + batch["completion_mask"][rows].sum())


def divide(groups: list[dict[int, int]], prompts: list[int], count: int, room: int) -> list[Share]:
    """Divide rows into `count` shares of at most `room` rows, as even as a greedy hand makes them.

    Groups come longest first, each to the share with the fewest tokens that has room for all of it;
    where none has, the emptiest ones take parts. A share of `room` rows has no more tokens than
    `room` padded ones, whatever its rows.

    groups: for each prompt, the rows that continue it and their tokens. prompts: its tokens.
    """
    shares = [Share() for _ in range(count)]
    costs = [sum(group.values()) + prompt for group, prompt in zip(groups, prompts, strict=True)]
    for number in sorted(range(len(groups)), key=lambda number: -costs[number]):
        sizes = groups[number]
        rest = sorted(sizes, key=lambda row: -sizes[row])
        while rest:
            free = [share for share in shares if len(share.rows) < room]
            fitting = [share for share in free if len(share.rows) + len(rest) <= room]
            share = min(fitting or free, key=lambda share: share.tokens)
            taken = rest[: room - len(share.rows)]
            rest = rest[len(taken) :]
            share.rows += taken
            share.tokens += prompts[number] + sum(sizes[row] for row in taken)
    return sorted(shares, key=lambda share: -share.tokens)


def shares_of(sides: list[Tensor], rows: Tensor, count: int, room: int) -> list[list[int]]:
    """Divide chosen rows, (K,), into `count` lists of at most `room`, the longest first.

    sides: ids and mask of prompts, and of completions.
    """
    if not len(rows):
        return [[] for _ in range(count)]
    prompt_ids, prompt_mask, _, mask = sides
    _, numbers = same_prompts(prompt_ids[rows], prompt_mask[rows])
    sizes, lengths = mask.sum(1).clamp(min=1).tolist(), prompt_mask.sum(1).tolist()
    groups: dict[int, dict[int, int]] = {}
    for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
        groups.setdefault(number, {})[row] = sizes[row]
    prompts = [lengths[next(iter(group))] - 1 for group in groups.values()]
    return [share.rows for share in divide(list(groups.values()), prompts, count, room)]


def regroup(batches: list[Batch], loss_type: str) -> list[Batch]:
    """Give as many micro-batches of as many completions, with the same summed gradient.

    batches: of one optimizer step and one generation, equal in shape.
    loss_type: TRL's.
    """
    every, scalars = {}, {}
    for key, value in batches[0].items():
        if value.dim():
            every[key] = torch.cat([batch[key] for batch in batches])
        else:
            scalars[key] = value
    count, room = len(batches), len(batches[0]["advantages"])
    runs = trained(every)
    idle = (~runs).nonzero().squeeze(1).tolist()
    before = torch.stack([loss_mask(batch).sum() for batch in batches]).repeat_interleave(room)
    new = []
    sides = [every[name] for name in SIDES]
    for rows in shares_of(sides, runs.nonzero().squeeze(1), count, room):
        missing = room - len(rows)
        chosen = torch.tensor(rows + idle[:missing], device=runs.device)
        idle = idle[missing:]
        batch = {key: value[chosen] for key, value in every.items()}
        if loss_type == "bnpo":  # the only loss that divides by the tokens of its micro-batch
            tokens = loss_mask(batch).sum() / before[chosen].clamp(min=1)
            batch["advantages"] = batch["advantages"] * tokens
        new.append(batch | scalars)
    return new
