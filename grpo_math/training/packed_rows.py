"""Run a micro-batch as one packed row: each prompt once, and no padding.

The row holds the different prompts without their last token, then for each completion the prompt's
last token and the completion's tokens but the last, which are the ones that predict something.
Embeddings, projections, MLPs and the fused head see these N tokens and nothing else; attention gets
the layout, too. So checkpointing, DDP, FSDP and ZeRO treat the row as any other input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grpo_math.training.packed_attention import Layout

UNSCORED = -100


class LayoutIgnored(RuntimeError):
    """A model's layers do not hand the layout to their attention, so its result is wrong."""


@dataclass(frozen=True, eq=False)
class PackedRow:
    """A micro-batch of B completions of at most T tokens as one row of N tokens.

    tokens, positions, labels: (1, N). runs: (B, T), true where a completion has a token in the row;
    the row's last tokens are these, in order.
    """

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    runs: Tensor
    layout: Layout


def same_prompts(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Give a row for each of the different prompts, (U,), and each row's prompt number, (B,).

    ids, mask: (B, P), padded on the left.
    """
    prompts, numbers = ids.masked_fill(mask == 0, -1).unique(dim=0, return_inverse=True)
    rows = torch.arange(len(ids), device=ids.device)
    first = rows.new_full((len(prompts),), len(ids)).scatter_reduce(0, numbers, rows, "amin")
    return first, numbers


def pack(prompt_ids: Tensor, prompt_mask: Tensor, ids: Tensor, mask: Tensor) -> PackedRow:
    """Lay prompts and completions out as one row. A completion of no tokens runs one, unscored.

    prompt_ids, prompt_mask: (B, P), padded on the left. ids, mask: (B, T), padded on the right.
    """
    first, numbers = same_prompts(prompt_ids, prompt_mask)
    body, body_mask = prompt_ids[first, :-1], prompt_mask[first, :-1].bool()
    inputs = torch.cat([prompt_ids[:, -1:], ids[:, :-1]], 1)
    runs = mask.bool()
    labels = ids.masked_fill(~runs, UNSCORED)
    runs[:, 0] = True
    steps = torch.arange(ids.size(1), device=ids.device)
    positions = prompt_mask.sum(1, keepdim=True) - 1 + steps
    body_positions = (body_mask.cumsum(1) - 1)[body_mask]
    sizes = [*body_mask.sum(1).tolist(), *runs.sum(1).tolist()]
    starts = [0, *torch.tensor(sizes).cumsum(0).tolist()[:-1]]
    prompt_of = [-1] * len(first) + numbers.tolist()
    return PackedRow(
        tokens=torch.cat([body[body_mask], inputs[runs]])[None],
        positions=torch.cat([body_positions, positions[runs]])[None],
        labels=torch.cat([torch.full_like(body_positions, UNSCORED), labels[runs]])[None],
        runs=runs,
        layout=Layout(starts, sizes, prompt_of, ids.device),
    )


def log_probs(model: nn.Module, row: PackedRow) -> tuple[Tensor, Tensor]:
    """Give log-probabilities and entropies of the completions' tokens: (B, T) each, 0 elsewhere.

    model: with TRL's fused head, and the attention of `use_packed_attention`.
    """
    # Of four dimensions, so that the model takes it as made. The attention here does not read it.
    no_mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=row.tokens.device)
    output = model(
        input_ids=row.tokens,
        position_ids=row.positions,
        attention_mask=no_mask,
        shift_labels=row.labels,
        fused_lm_head=True,
        layout=row.layout,
        use_cache=False,
    )
    if not row.layout.used:
        raise LayoutIgnored("the model's attention ignores the layout of the packed row")

    def spread(values: Tensor) -> Tensor:
        completions = values[0, -int(row.runs.sum()) :]
        empty = torch.zeros(row.runs.shape, dtype=values.dtype, device=values.device)
        return empty.masked_scatter(row.runs, completions)

    logps = spread(output.log_probs)
    if output.entropy is None:  # a reference model's head
        return logps, torch.zeros_like(logps)
    return logps, spread(output.entropy)
