"""Generate with transformers; completed rows leave the batch, and waiting ones take their places.

`generate` of transformers runs every row of a batch until its longest ends, and computes a prompt
as often as it is answered. Here the batch is kept full, a prompt is computed once for all its
completions that start together, and keys and values are written into room that is there already.
The distribution is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import Cache, DynamicLayer

from grpo_math.generation.decode_attention import fast_attention, leave_room
from grpo_math.models.traits import forward_arguments

Choose = Callable[[Tensor], Tensor]
Finished = Callable[[list[int]], bool]

ROOM = 32  # columns that there are for tokens to come whenever a batch is made
# One of so many rows may be complete, or missing, before the batch is made anew, which copies it.
STALE = 8


class RoomyLayer(DynamicLayer):
    """A cache's layer with room: its columns are the first ones of larger tensors, `whole`.

    keys, values: (rows, heads, columns, size of a head). More fit in behind them without a copy.
    """

    whole: tuple[Tensor, Tensor]

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        end = self.get_seq_length() + key_states.shape[-2]
        if self.is_initialized:
            for part, states in zip(self.whole, (key_states, value_states), strict=True):
                part[:, :, end - states.shape[-2] : end] = states
        else:
            self.lazy_initialization(key_states, value_states)
            self.whole = key_states, value_states
        return self.show(end)

    def show(self, end: int) -> tuple[Tensor, Tensor]:
        """Let the layer be the columns before `end`, and give them."""
        self.keys, self.values = (leave_room(part[:, :, :end], part) for part in self.whole)
        return self.keys, self.values

    def put(self, places: Tensor, other: RoomyLayer, rows: Tensor) -> None:
        """Put the last columns of another layer's rows into the last ones of rows here."""
        width = min(self.get_seq_length(), other.get_seq_length())
        for part, source in ((self.keys, other.keys), (self.values, other.values)):
            part[places, :, part.shape[-2] - width :] = source[rows, :, source.shape[-2] - width :]

    @classmethod
    def of(cls, parts: list[tuple[RoomyLayer, Tensor]], width: int) -> RoomyLayer:
        """Give the last `width` columns of rows of layers, one below the other."""
        layer, first, counts = cls(), parts[0][0], [len(rows) for _, rows in parts]
        sizes = [(sum(counts), like.shape[1], width + ROOM, like.shape[-1]) for like in first.whole]
        layer.update(*(like.new_zeros(size) for like, size in zip(first.whole, sizes, strict=True)))
        layer.show(width)
        places = torch.arange(sum(counts), device=first.keys.device).split(counts)
        for (source, rows), own in zip(parts, places, strict=True):
            layer.put(own, source, rows)
        return layer


def chooser(temperature: float, top_p: float = 1.0, top_k: int = 0) -> Choose:
    """Give what chooses the next tokens, (rows,), from logits, (rows, vocabulary).

    It chooses as transformers does; temperature 0 is greedy.
    """
    if temperature == 0:
        return lambda logits: logits.argmax(-1)
    warpers: list[Any] = [TemperatureLogitsWarper(float(temperature))] if temperature != 1 else []
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []

    def choose(logits: Tensor) -> Tensor:
        for warper in warpers:
            logits = warper(None, logits)
        return torch.multinomial(logits.softmax(-1), 1).squeeze(1)

    return choose


def finisher(
    ends: list[int], most: int, stop: tuple[str, ...] = (), tokenizer: Any = None
) -> Finished:
    """Give what tells a complete completion by its length, its last token or a string of `stop`."""
    # In tokens: each has a character at least, but for parts of one.
    tail = max(map(len, stop), default=0) + 4

    def finished(completion: list[int]) -> bool:
        if completion[-1] in ends or len(completion) >= most:
            return True
        return bool(stop) and any(string in tokenizer.decode(completion[-tail:]) for string in stop)

    return finished


def stopping_criteria(stopped: Finished | None, start: int) -> StoppingCriteriaList:
    """End a row of transformers' `generate` where `stopped` says so of its tokens from `start`."""
    if not stopped:
        return StoppingCriteriaList()

    def stop(ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.tensor([stopped(row[start:].tolist()) for row in ids], device=ids.device)

    return StoppingCriteriaList([stop])


@dataclass
class Batch:
    """Completions in flight.

    rows: which they are. mask: where there is a token. last: the newest token. cache: keys and
    values of the others. index: the row of the cache that a completion goes on from; several may
    share one when they start.
    """

    rows: list[int]
    mask: Tensor  # (rows, columns and room), tokens before column `end`
    last: Tensor  # (rows, 1)
    cache: Cache
    index: Tensor  # (rows,)

    @property
    def end(self) -> int:
        return self.cache.get_seq_length()

    @property
    def full(self) -> bool:
        return self.end == self.mask.size(1)


class Decoder:
    """Complete prompts with a model.

    choose: see `chooser`; the logits are float32. finished: see `finisher`. pad: the token id that
    fills up shorter prompts.
    """

    def __init__(self, model: Any, choose: Choose, finished: Finished, pad: int) -> None:
        self.model, self.choose, self.finished, self.pad = model, choose, finished, pad
        self.only_last = (
            {"logits_to_keep": 1} if "logits_to_keep" in forward_arguments(model) else {}
        )

    @torch.no_grad()
    @fast_attention()
    def complete(self, prompts: list[list[int]], in_flight: int) -> list[list[int]]:
        """Give the completion of each prompt, token ids up to its end; `in_flight` at a time."""
        self.completions: list[list[int]] = [[] for _ in prompts]
        self.done: set[int] = set()
        waiting: list[int] = list(range(len(prompts)))
        batch: Batch | None = None
        while True:
            in_batch = batch.rows if batch else []
            alive = [place for place, row in enumerate(in_batch) if row not in self.done]
            stale = (len(in_batch) - len(alive)) * STALE >= len(in_batch)
            if batch and not batch.full and not stale:
                self._step(batch)
                continue
            chosen, waiting = waiting[: in_flight - len(alive)], waiting[in_flight - len(alive) :]
            started = self._start(chosen, prompts) if chosen else None
            if not alive and not started:
                return self.completions
            if not (batch and started and replace(batch, alive, started)):
                parts = [(batch, alive), (started, list(range(len(chosen))))]
                batch = merge([(part, rows) for part, rows in parts if part and rows])

    def _start(self, rows: list[int], prompts: list[list[int]]) -> Batch:
        """Run prompts, equal ones once, and choose the first tokens."""
        asked = [tuple(prompts[row]) for row in rows]
        different = list(dict.fromkeys(asked))
        numbers = {prompt: number for number, prompt in enumerate(different)}
        width = max(map(len, different))
        ids = torch.full((len(different), width), self.pad)
        mask = torch.zeros(ids.shape, dtype=torch.long)
        for number, prompt in enumerate(different):
            ids[number, width - len(prompt) :] = torch.tensor(prompt)
            mask[number, width - len(prompt) :] = 1
        cache = Cache(layer_class_to_replicate=RoomyLayer)
        logits = self._run(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
        index = torch.tensor([numbers[prompt] for prompt in asked], device=logits.device)
        last = self._append(rows, logits[index])
        return Batch(rows, mask.to(logits.device)[index], last, cache, index)

    def _step(self, batch: Batch) -> None:
        batch.mask[:, batch.end] = 1
        mask = batch.mask[:, : batch.end + 1]
        positions = mask.sum(1, keepdim=True) - 1
        batch.last = self._append(batch.rows, self._run(batch.last, mask, positions, batch.cache))

    def _run(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Give float32 logits of the last tokens, (rows, vocabulary)."""
        device = self.model.device
        output = self.model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
            **self.only_last,
        )
        return output.logits[:, -1].float()

    def _append(self, rows: list[int], logits: Tensor) -> Tensor:
        """Choose the next tokens, (rows, 1), and add them to completions that are not complete."""
        chosen = self.choose(logits)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if row not in self.done:
                self.completions[row].append(token)
                if self.finished(self.completions[row]):
                    self.done.add(row)
        return chosen[:, None]


def align(mask: Tensor, end: int, columns: int) -> Tensor:
    """Give a mask in so many columns whose last one is before `end`: cut or padded on the left."""
    return torch.nn.functional.pad(mask, (end - mask.size(1), columns - end))


def replace(batch: Batch, alive: list[int], started: Batch) -> bool:
    """Put completions that start in the places of complete ones, and tell whether they fit."""
    finished = sorted(set(range(len(batch.rows))) - set(alive))
    if batch.full or started.end > batch.end or len(finished) != len(started.rows):
        return False
    places = torch.tensor(finished, device=batch.mask.device)
    batch.mask[places] = align(started.mask, batch.end, batch.mask.size(1))
    batch.last[places] = started.last
    for layer, other in zip(batch.cache.layers, started.cache.layers, strict=True):
        layer.put(places, other, started.index)
    for place, row in zip(finished, started.rows, strict=True):
        batch.rows[place] = row
    return True


def merge(parts: list[tuple[Batch, list[int]]]) -> Batch:
    """Give chosen completions of batches as one, without the columns that none of them needs."""
    chosen = [(batch, torch.tensor(numbers, device=batch.mask.device)) for batch, numbers in parts]
    width = max(int(batch.mask[own].sum(1).max()) for batch, own in chosen)
    layers = [
        RoomyLayer.of(
            [(batch.cache.layers[number], batch.index[own]) for batch, own in chosen], width
        )
        for number in range(len(parts[0][0].cache.layers))
    ]
    rows = [batch.rows[number] for batch, numbers in parts for number in numbers]
    mask = torch.cat(
        [align(batch.mask[own, : batch.end], width, width + ROOM) for batch, own in chosen]
    )
    last = torch.cat([batch.last[own] for batch, own in chosen])
    return Batch(
        rows, mask, last, Cache(layers=layers), torch.arange(len(rows), device=last.device)
    )
