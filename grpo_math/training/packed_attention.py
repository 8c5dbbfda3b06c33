"""Attend within the segments of a packed row, whose layout says where they lie.

A segment is a prompt without its last token, or a completion behind its prompt. Attention gets the
layout as a keyword argument of the model's forward; without one it is what it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends.cuda import SDPAParams, can_use_efficient_attention
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

BUCKETS = 4  # at most so many calls of SDPA for completions, and as many for prompts
SIMILAR = 0.75  # a bucket's shortest segment has at least this share of its longest one's tokens
FUSED_DEVICES = ("cpu",)  # whose fused attention takes grouped heads as they are


@dataclass(frozen=True, eq=False)
class Bucket:
    """S segments of similar length: each has Q queries that see K keys, padding included.

    queries, keys: (S, Q) and (S, K), places in the row; what is padding repeats a real place.
    query_positions, key_positions: (S, Q) and (S, K), positions in the text; -1 for a padding key.
    real: (S, Q), true where a query is no padding.
    """

    queries: Tensor
    keys: Tensor
    query_positions: Tensor
    key_positions: Tensor
    real: Tensor

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Give what to add to the scores, (S, 1, Q, K): 0 where a query sees a key."""
        key, query = self.key_positions[:, None], self.query_positions[:, :, None]
        seen = (key >= 0) & (key <= query)
        if window:
            seen &= key > query - window
        hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return hidden.masked_fill_(~seen, -torch.inf)[:, None]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the segments of a packed row lie: the U different prompts, then the B completions.

    starts, sizes: (U + B,), each segment's first place in the row and its number of tokens.
    prompt_of: (U + B,), the number of the prompt that a completion continues, -1 for a prompt.
    device: where the row is.
    """

    starts: list[int]
    sizes: list[int]
    prompt_of: list[int]
    device: torch.device
    masks: dict[tuple[int | None, torch.dtype], list[Tensor]] = field(default_factory=dict)

    @property
    def used(self) -> bool:
        """Tell whether attention has asked for its segments."""
        return "buckets" in vars(self) or "varlen" in vars(self)

    def before(self, segment: int) -> tuple[int, int]:
        """Give the first place and the size of what a segment continues."""
        prompt = self.prompt_of[segment]
        return (self.starts[prompt], self.sizes[prompt]) if prompt >= 0 else (0, 0)

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Group segments so that unlike lengths do not pad each other."""
        filled = [number for number, size in enumerate(self.sizes) if size]
        prompts = [number for number in filled if self.prompt_of[number] < 0]
        completions = filled[len(prompts) :]
        groups = [*alike(prompts, self.sizes), *alike(completions, self.sizes)]
        return [self._bucket(group) for group in groups]

    def _bucket(self, segments: list[int]) -> Bucket:
        before = torch.tensor([self.before(segment) for segment in segments])[:, :, None]
        first, size = before[:, 0], before[:, 1]
        start = torch.tensor([self.starts[segment] for segment in segments])[:, None]
        own = torch.tensor([self.sizes[segment] for segment in segments])[:, None]
        steps, columns = torch.arange(int(own.max())), torch.arange(int(size.max()))
        clamped = torch.minimum(steps, own - 1)
        ahead = torch.where(columns < size, columns, -1)
        later = torch.where(steps < own, size + steps, -1)
        parts = (
            start + clamped,
            torch.cat([first + ahead.clamp(min=0), start + clamped], 1),
            size + clamped,
            torch.cat([ahead, later], 1),
            steps < own,
        )
        return Bucket(*(part.to(self.device) for part in parts))

    @cached_property
    def places(self) -> Tensor:
        """Give where each token of the row stands among the padded queries of all buckets: (N,)."""
        flat = torch.cat([bucket.queries[bucket.real] for bucket in self.buckets])
        real = torch.cat([bucket.real.flatten() for bucket in self.buckets])
        return real.nonzero().squeeze(1)[flat.argsort()]

    def bucket_masks(self, window: int | None, dtype: torch.dtype) -> list[Tensor]:
        """Give each bucket's mask, made once for all layers."""
        if (window, dtype) not in self.masks:
            made = [bucket.mask(window, dtype) for bucket in self.buckets]
            self.masks[window, dtype] = made
        return self.masks[window, dtype]

    @cached_property
    def varlen(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """Give flash-attention's view: keys' places, ends of queries and of keys, longest of both.

        Segments lie in the row one behind the other, so queries are taken as they are.
        """
        keys, query_sizes, key_sizes = [torch.zeros(0, dtype=torch.long)], [], []
        for segment, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            if size:
                first, ahead = self.before(segment)
                keys += [torch.arange(first, first + ahead), torch.arange(start, start + size)]
                query_sizes.append(size)
                key_sizes.append(ahead + size)
        ends = []
        for sizes in (query_sizes, key_sizes):
            total = torch.tensor([0, *sizes]).cumsum(0)
            ends.append(total.to(self.device, torch.int32))
        return torch.cat(keys).to(self.device), *ends, max(query_sizes), max(key_sizes)


def alike(segments: list[int], sizes: list[int]) -> list[list[int]]:
    """Split segments into groups of similar size, longest first, at most `BUCKETS` of them."""
    groups: list[list[int]] = []
    for segment in sorted(segments, key=lambda number: -sizes[number]):
        longest = sizes[groups[-1][0]] if groups else 0
        if groups and (sizes[segment] >= SIMILAR * longest or len(groups) == BUCKETS):
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


Attention = Callable[..., tuple[Tensor, Tensor | None]]


class PackedAttention:
    """Attend within segments where there is a layout, and as transformers does where there is none.

    The tensors are those of transformers' attention functions: query (1, H, N, size), key and value
    (1, heads of keys, N, size), where neighbours among the H heads share keys.
    """

    def __init__(self, name: str, plain: Attention) -> None:
        self.name, self.plain = name, plain

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        layout: Layout | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if layout is None:
            return self.plain(module, query, key, value, attention_mask, **options)
        for unknown in ("softcap", "s_aux", "position_bias"):
            if options.get(unknown) is not None:
                raise NotImplementedError(f"packed rows have no attention with {unknown}")
        states = [part[0].transpose(0, 1) for part in (query, key, value)]
        how = (options.get("scaling"), options.get("sliding_window"), options.get("dropout", 0.0))
        if self.name == "sdpa":
            return sdpa_segments(states, layout, *how)[None], None
        varlen = lazy_import_flash_attention(self.name)[0][1]
        return flash_segments(states, layout, *how, varlen)[None], None


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let the attention function that the model uses understand a layout, under its own name."""
    name = model.config.get_text_config()._attn_implementation
    plain = ALL_ATTENTION_FUNCTIONS[name]
    if not isinstance(plain, PackedAttention):
        ALL_ATTENTION_FUNCTIONS[name] = PackedAttention(name, plain)


def sdpa_segments(
    states: list[Tensor], layout: Layout, scale: float | None, window: int | None, dropout: float
) -> Tensor:
    """Attend bucket by bucket with torch's own attention: (N, H, size).

    states: queries (N, H, size), keys and values (N, heads of keys, size).
    """

    def take(part: Tensor, places: Tensor) -> Tensor:  # (S, heads, width, size)
        taken = part.index_select(0, places.flatten())
        return taken.view(*places.shape, *part.shape[1:]).transpose(1, 2)

    masks = layout.bucket_masks(window, states[0].dtype)
    padded = []
    for bucket, mask in zip(layout.buckets, masks, strict=True):
        query = take(states[0], bucket.queries)
        key, value = (take(part, bucket.keys) for part in states[1:])
        grouped = query.size(1) != key.size(1)
        if grouped and not shares_keys(query, key, value, mask):
            times = query.size(1) // key.size(1)
            key, value = (part.repeat_interleave(times, 1) for part in (key, value))
            grouped = False
        out = scaled_dot_product_attention(
            query, key, value, mask, dropout, scale=scale, enable_gqa=grouped
        )
        padded.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(padded).index_select(0, layout.places)


def shares_keys(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> bool:
    """Tell whether SDPA takes keys that several heads share without its slow and large math kernel.

    A CPU's kernel does. On CUDA torch says so, and where it does not, expanded keys are better.
    """
    asked = SDPAParams(query, key, value, mask, 0.0, False, True)
    return query.device.type in FUSED_DEVICES or can_use_efficient_attention(asked)


def flash_segments(
    states: list[Tensor],
    layout: Layout,
    scale: float | None,
    window: int | None,
    dropout: float,
    varlen: Callable[..., Tensor | tuple[Tensor, ...]],
) -> Tensor:
    """Attend with one varlen call, whose causal mask is aligned to the last key: (N, H, size).

    states: queries (N, H, size), keys and values (N, heads of keys, size).
    """
    keys, query_ends, key_ends, most_queries, most_keys = layout.varlen
    query, key, value = states
    width = value.size(-1)
    half = value.dtype  # norms and rotations may have made queries and keys float32
    value = pad(value, (0, query.size(-1) - width))
    out = varlen(
        query.to(half),
        key.to(half).index_select(0, keys),
        value.index_select(0, keys),
        cu_seqlens_q=query_ends,
        cu_seqlens_k=key_ends,
        max_seqlen_q=most_queries,
        max_seqlen_k=most_keys,
        softmax_scale=scale,
        causal=True,
        **({"window_size": (window - 1, 0)} if window else {}),
        **({"dropout_p": dropout} if dropout else {}),
    )
    out = out[0] if isinstance(out, tuple) else out
    return out[..., :width]
