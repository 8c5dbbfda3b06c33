"""TRL's micro-batches of one optimizer step, made again with the same gradient and less work.

A completion whose advantage is 0 adds nothing to the gradient, and neither does padding. So such completions are
dropped, the others are sorted by length, and each micro-batch is cut to its own longest prompt and completion.
Advantages are rescaled, so that a completion weighs in the gradient what it weighed before. The number of micro-batches
stays, as processes meet in each of them; none has more positions than one of TRL's, so none takes more memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo_math.training.shared_prompts import VARYING, rope_kinds, same_prompts

Batch = dict[str, Any]
"""A micro-batch as TRL holds it, of B completions: `prompt_ids` and `prompt_mask` (B, P), padded on the left;
`completion_ids`, `completion_mask`, `old_per_token_logps` ... (B, T), padded on the right; `advantages` (B,);
scalars."""

# What TRL divides a completion's summed token losses by (`GRPOTrainer._compute_loss`), but for factors that all
# micro-batches share: completions of the micro-batch, tokens of the micro-batch, or nothing else.
BY_COMPLETIONS = ("grpo", "sapo", "dr_grpo", "luspo")
BY_TOKENS = ("bnpo",)
BY_NOTHING = ("dapo", "cispo", "vespo")
LOSS_TYPES = BY_COMPLETIONS + BY_TOKENS + BY_NOTHING
BLOCKS = 256  # that the search for the best division may look at: it takes milliseconds


def loss_mask(batch: Batch) -> Tensor:
    """(B, T): 1 where a token counts in the loss."""
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def row_weights(loss_type: str, batch: Batch) -> Tensor:
    """(B,): how much each completion weighs in TRL's loss of this micro-batch, up to a factor that all share."""
    rows = batch["advantages"]
    if loss_type in BY_NOTHING:
        return torch.ones_like(rows)
    size = len(rows) if loss_type in BY_COMPLETIONS else loss_mask(batch).sum().clamp(min=1).item()
    return torch.full_like(rows, 1 / size)


def repack(
    batches: list[Batch],
    loss_type: str,
    cut_prompts: bool = True,
    cut_completions: bool = True,
    multiple: int = 1,
    share: bool = False,
) -> list[Batch]:
    """As many micro-batches with the same summed gradient; those of no completion are marked `idle`.

    Args:
        batches: of one optimizer step and one generation, equal in shape.
        loss_type: TRL's, one of those above.
        cut_prompts, cut_completions: whether padding there may go (see `removable_padding`).
        multiple: to which widths are rounded up.
        share: a prompt that several completions of a micro-batch continue runs once.
    """
    weights = torch.cat([row_weights(loss_type, batch) for batch in batches])
    every = {key: torch.cat([batch[key] for batch in batches]) if value.dim() else value
             for key, value in batches[0].items()}  # fmt: skip
    mask = loss_mask(every)
    kept = ((every["advantages"] != 0) & mask.any(1)).nonzero().squeeze(1)
    prompts, completions = (
        every[key].sum(1)[kept].cpu().numpy() for key in ("prompt_mask", "completion_mask")
    )
    numbers = (
        same_prompts(every["prompt_ids"][kept], every["prompt_mask"][kept])[1].cpu().numpy()
        if share
        else None
    )
    most = len(batches[0]["advantages"]) * (every["prompt_mask"].size(1) + mask.size(1))
    new = []
    for chosen in micro_batches(
        prompts, completions, len(batches), most, len(batches[0]["advantages"]), numbers
    ):
        rows = kept[torch.from_numpy(chosen).to(kept.device)]
        batch = {key: value[rows] if value.dim() else value for key, value in every.items()}
        batch = cut(batch, cut_prompts, cut_completions, multiple)
        batch["advantages"] = batch["advantages"] * (weights[rows] / row_weights(loss_type, batch))
        new.append(batch)
    return new + [idle(every) for _ in range(len(batches) - len(new))]


def cut(batch: Batch, prompts: bool, completions: bool, multiple: int) -> Batch:
    """Without the columns that are padding in every row."""

    def width(mask: Tensor) -> int:
        return min(mask.size(1), -(-max(1, int(mask.sum(1).max())) // multiple) * multiple)

    left = -width(batch["prompt_mask"]) if prompts else None
    right = width(batch["completion_mask"]) if completions else None
    return {
        key: value
        if value.dim() < 2
        else value[:, left:]
        if key.startswith("prompt_")
        else value[:, :right]
        for key, value in batch.items()
    }


def idle(batch: Batch) -> Batch:
    """The cheapest micro-batch that a model can run: one row of one prompt token and one token that does not count."""
    row = {key: torch.zeros_like(value[:1, :1] if value.dim() == 2 else value[:1]) if value.dim() else value
           for key, value in batch.items()}  # fmt: skip
    return row | {"prompt_mask": torch.ones_like(row["prompt_mask"]), "idle": True}


def micro_batches(
    prompts: np.ndarray,
    completions: np.ndarray,
    count: int,
    most: int,
    rows: int,
    shared: np.ndarray | None = None,
) -> list[np.ndarray]:
    """The rows of each of at most `count` micro-batches, longest first, so that the fewest positions run.

    Args:
        prompts, completions: lengths in tokens, (K,).
        most: positions, padding included, that one micro-batch may have.
        rows: completions in a micro-batch of TRL's.
        shared: which prompt each row has, (K,), where one that several rows of a micro-batch have runs once.
    """
    if len(prompts) == 0:
        return []
    orders = [np.argsort(-key, kind="stable") for key in (completions, prompts + completions)]
    if shared is not None:
        longest = np.zeros(shared.max() + 1, dtype=int)
        np.maximum.at(longest, shared, completions)
        orders.append(np.lexsort((-completions, shared, -longest[shared])))
    plans = []
    for order in orders:
        those = shared[order] if shared is not None else None
        cost, ends = _cheapest_cuts(prompts[order], completions[order], count, most, rows, those)
        plans.append((cost, np.split(order, ends)))
    return min(plans, key=lambda plan: plan[0])[1]


def _cheapest_cuts(
    prompts: np.ndarray,
    completions: np.ndarray,
    count: int,
    most: int,
    rows: int,
    shared: np.ndarray | None,
) -> tuple[float, np.ndarray]:
    """Positions with padding, and where to cut the sorted rows, of the best division: dynamic programming.

    Cuts lie between blocks of `step` rows, where `step` divides `rows`: so there is always a division that fits.
    """
    divisors = [step for step in range(1, rows + 1) if rows % step == 0]
    step = next((step for step in divisors if len(prompts) / step <= BLOCKS), rows)
    starts = np.arange(0, len(prompts), step)
    ends = np.append(starts[1:], len(prompts))
    longest = [np.maximum.reduceat(lengths, starts) for lengths in (prompts, completions)]
    if len(starts) <= count and (
        shared is None or len(starts) > BLOCKS
    ):  # a micro-batch for each block
        size = ends - starts
        run = (
            size
            if shared is None
            else np.array([len(set(part)) for part in np.split(shared, starts[1:])])
        )
        return float((run * longest[0] + size * longest[1]).sum()), starts[1:]
    upper = np.triu(np.ones((len(starts), len(starts)), dtype=bool))
    prompt, completion = (
        np.maximum.accumulate(np.where(upper, lengths, 0), axis=1).astype(float)
        for lengths in longest
    )
    size = ends[None, :] - starts[:, None]  # rows of blocks i to j
    run = size if shared is None else _different(shared, starts)
    cost = run * prompt + size * completion
    cost[~upper | (size * (prompt + completion) > most)] = np.inf
    best, choices, costs = (
        np.append(0, np.full(len(starts), np.inf)),
        [],
        [],
    )  # of the first j blocks
    for _ in range(min(count, len(starts))):
        total = best[:-1, None] + cost
        choices.append(total.argmin(0))
        best = np.append(np.inf, total.min(0))
        costs.append(best[-1])
    fewest = int(np.argmin(costs))
    cuts, block = [], len(starts)
    for choice in reversed(choices[: fewest + 1]):
        block = choice[block - 1]
        cuts.append(starts[block])
    return float(costs[fewest]), np.array(cuts[-2::-1], dtype=int)


def _different(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """How many different values lie in blocks i to j, for blocks that begin at `starts`: (blocks, blocks)."""
    last: dict[int, int] = {}
    before = np.full(len(values), -1)
    for place, value in enumerate(values.tolist()):
        before[place] = last.get(value, -1)
        last[value] = place
    new = before[None, :] < starts[:, None]  # not seen since the start of block i
    return np.add.reduceat(
        np.where(np.arange(len(values)) >= starts[:, None], new, 0), starts, axis=1
    ).cumsum(1)


def removable_padding(config: Any) -> tuple[bool, bool]:
    """Whether a model computes the same without the padding of prompts, and of completions.

    TRL gives no positions, so a token's place counts the padding before it. With rotary embeddings only distances
    matter; learned positions are another matter, and some rotary embeddings change with the width of the whole batch.
    """
    kinds = rope_kinds(config)
    return bool(kinds) and not kinds & VARYING, not kinds & VARYING
