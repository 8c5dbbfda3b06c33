"""What is added to TRL's GRPOTrainer, and nothing else.

- A micro-batch runs as one packed row: `packed_rows`.
- Completions without an advantage do not run, as their gradient is zero: `regroup`.
- With vLLM on-policy, the importance ratio comes from the training pass; there is no other.
- Without vLLM, generation from which complete rows leave the batch; stop strings.
- Advantages without a baseline: the rewards themselves.

Metrics are TRL's, over all completions, with one exception. What only a forward pass can tell,
`entropy` and with vLLM on-policy `sampling/...`, is over the completions that ran, and over an
optimizer step at once. `skipped/completions` and `skipped/positions` are the shares of completions,
and of tokens with padding, that only TRL would have run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration

from grpo_math.models.traits import position_note, why_not_packed, with_positions
from grpo_math.terminal import say
from grpo_math.training.completing import decode, decodes, greedy, stopped_after
from grpo_math.training.exactness import note, why_not_exact
from grpo_math.training.importance import sampling_ratio
from grpo_math.training.packed_attention import use_packed_attention
from grpo_math.training.packed_rows import LayoutIgnored, log_probs, pack
from grpo_math.training.regroup import (
    SIDES,
    Batch,
    loss_mask,
    positions,
    regroup,
    shares_of,
    trained,
)
from grpo_math.training.sampling import EpochSampler, InformativeDraws
from grpo_math.training.step_metrics import StepMetrics
from grpo_math.training.vllm_weights import LoraGeneration


@dataclass(frozen=True)
class Scored:
    """What the model gave for a micro-batch, (B, T) each. TRL's loss gets it as its model."""

    log_probs: Tensor
    entropies: Tensor


class MathGRPOTrainer(GRPOTrainer):
    """GRPOTrainer without padding, and without work that changes nothing or was done before.

    baseline: whether advantages are rewards less a baseline, or the rewards themselves.
    skip_zero_advantage: whether completions without a gradient stay out, where that is exact.
    draws: which questions to ask, where that is by what they can teach.
    `notes` says in lines for the user what is skipped and packed, or why nothing is.
    """

    _buffered_inputs: list[Batch]
    vllm_generation: VLLMGeneration

    def __init__(
        self,
        *args: Any,
        baseline: bool = True,
        skip_zero_advantage: bool = True,
        draws: InformativeDraws | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.draws = draws
        if self.use_vllm and isinstance(self.model, PeftModel):
            self.vllm_generation = LoraGeneration.of(self.vllm_generation)
        self.baseline = baseline
        not_exact = why_not_exact(self) if skip_zero_advantage else "--skip_zero_advantage false"
        whole = "images and the balance of experts need whole prompts"
        not_packed = whole if self._whole_prompts else why_not_packed(self.model)
        self.skips, self.packs = not_exact is None, not_packed is None
        self.skip_note = note("completions of zero advantage", not_exact)
        self.pack_note = note("micro-batches in one row, each prompt once", not_packed)
        if self.packs:
            use_packed_attention(self.model)
            if self.ref_model is not None:
                use_packed_attention(self.ref_model)
        self.step_metrics = StepMetrics()
        kind = "stop" if self.use_vllm else "stop_strings"
        self.stop = (self.args.generation_kwargs or {}).get(kind) or []
        if self.stop and not self.use_vllm:
            # TRL hands no tokenizer to `generate`, which needs one to find stop strings.
            self.model.generate = partial(self.model.generate, tokenizer=self._tokenizer)

    @property
    def notes(self) -> list[str]:
        """Say what is left out and how, in a run's first lines."""
        attention = self.model.config.get_text_config()._attn_implementation
        how = "by segment" if self.packs else "padded"
        lines = [f"skipping     {self.skip_note}", f"packing      {self.pack_note}"]
        lines.append(f"attention    {attention}, {how}")
        about_positions = position_note(self.model)
        return lines + ([f"positions    {about_positions}"] if about_positions else [])

    @property
    def _whole_prompts(self) -> bool:
        """Whether a micro-batch has to run as TRL cut it."""
        return self._is_vlm or self.aux_loss_enabled

    @property
    def _corrects(self) -> bool:
        """Whether vLLM's samples are weighted by the trainer's probabilities over vLLM's."""
        return self.use_vllm and self.args.vllm_importance_sampling_correction

    @property
    def _on_policy(self) -> bool:
        """Whether the weights are those that generated, in all of an optimizer step."""
        generations = self.args.steps_per_generation * self.num_iterations
        return self.args.gradient_accumulation_steps % generations == 0

    # Which questions, and for how long.

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochSampler:
        positions = super()._get_train_sampler(dataset)
        if self.draws:
            return self.draws.sampler(positions, self._epochs_finished)
        return EpochSampler(positions, self._epochs_finished)

    def _epochs_finished(self) -> int:
        return int(self.state.epoch or 0)

    def _run_epoch(self, **arguments: Any) -> None:
        """Make no step beyond the last; transformers makes one when it continues from the last."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**arguments)
        else:
            self.control.should_training_stop = True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # A process that makes no step must not replace the last step's completions by none.
        self.log_completions = self.args.log_completions and len(self._logs["prompt"]) > 0
        super().log(logs, start_time)

    # Training: which completions run, what they score, and the loss.

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.skips or not self.model.training or self._buffered_inputs is before:
            return inputs
        plain, self._buffered_inputs = self._buffered_inputs, []
        # Windows that cross neither a generation nor an optimizer step.
        window = math.gcd(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
        for start in range(0, len(plain), window):
            self._buffered_inputs += regroup(plain[start : start + window], self.loss_type)
        self._log_skipped()
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _log_skipped(self) -> None:
        sizes = torch.zeros(4)
        for batch in self._buffered_inputs:
            runs, width = trained(batch), batch["prompt_ids"].size(1)
            width += batch["completion_ids"].size(1)
            run = positions(batch, self.packs)
            sizes += torch.tensor([int(runs.sum()), len(runs), run, len(runs) * width])
        total = self.accelerator.gather(sizes.to(self.accelerator.device)[None]).sum(0).tolist()
        logged = self._metrics["train"]
        logged["skipped/completions"].append(1 - total[0] / total[1])
        logged["skipped/positions"].append(1 - total[2] / total[3])

    def _compute_loss(self, model: nn.Module, inputs: Batch) -> Tensor:
        if not self.model.training or self._whole_prompts:
            return super()._compute_loss(model, inputs)
        runs = torch.ones_like(inputs["advantages"], dtype=torch.bool)
        if self.skips:
            runs = trained(inputs)
        scored = self._score(model, inputs, runs)
        if self._corrects and "importance_sampling_ratio" not in inputs:
            ratio, metrics = sampling_ratio(self.args, scored.log_probs.detach(), inputs, runs)
            inputs = inputs | {"importance_sampling_ratio": ratio}
            for name, values in metrics.items():
                self.step_metrics.add(name, values)
        loss = super()._compute_loss(scored, inputs)
        logged = self._metrics["train"]
        if self.skips:
            earlier = logged.pop("entropy")[
                :-1
            ]  # without TRL's, which takes 0 for what did not run
            if earlier:
                logged["entropy"] = earlier
            counted = loss_mask(inputs).bool() & runs[:, None]
            self.step_metrics.add("entropy", scored.entropies[counted])
        if self.accelerator.sync_gradients:
            for name, value in self.step_metrics.merge(self.accelerator.gather).items():
                logged[name].append(value)
        return loss

    def _score(self, model: nn.Module, inputs: Batch, runs: Tensor) -> Scored:
        """Run the completions of `runs`, (B,), for their log-probabilities and entropies.

        Others get a ratio of 1. Where none runs, one token does, with a gradient of 0, as the
        processes of a launch meet in every forward and backward pass.
        """
        sides = [inputs[name] for name in SIDES]
        entropies = torch.zeros(sides[2].shape, device=runs.device)
        given = inputs.get("old_per_token_logps", entropies)
        rows = runs.nonzero().squeeze(1)
        if not len(rows):
            token = [side[:1, -1:] for side in sides[:2]] + [side[:1, :1] for side in sides[2:]]
            found, _ = self._forward(model, token)
            return Scored(given + 0 * found.sum(), entropies)
        found, spread = self._forward(model, [side[rows] for side in sides])
        logps = given.to(found.dtype).index_copy(0, rows, found)
        return Scored(logps, entropies.to(spread.dtype).index_copy(0, rows, spread))

    def _forward(self, model: nn.Module, sides: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Give log-probabilities and entropies of completions, (B, T) each.

        sides: ids and mask of prompts, (B, P), and of completions, (B, T).
        """
        if self.packs:
            try:
                with self.accelerator.autocast():
                    return log_probs(model, pack(*sides))
            except LayoutIgnored:
                self.packs = False
                say("packing      nothing after all: this model's attention is not told the layout")
        ids, mask = torch.cat(sides[::2], 1), torch.cat(sides[1::2], 1)
        logps, entropies, _ = super()._get_per_token_logps_and_entropies(
            with_positions(model, self.model), ids, mask, sides[2].size(1), compute_entropy=True
        )
        return logps, entropies

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module | Scored,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Give what TRL asks for outside the training pass, in as many passes as TRL makes."""
        if isinstance(model, Scored):
            return model.log_probs, model.entropies, None
        if not self.packs:
            return super()._get_per_token_logps_and_entropies(
                with_positions(model, self.model),
                input_ids,
                attention_mask,
                logits_to_keep,
                **options,
            )
        start = input_ids.size(1) - logits_to_keep
        sides = [input_ids[:, :start], attention_mask[:, :start]]
        sides += [input_ids[:, start:], attention_mask[:, start:]]
        room = options.get("batch_size") or len(input_ids)
        every = torch.arange(len(input_ids), device=input_ids.device)
        found = [torch.zeros(sides[2].shape, device=input_ids.device) for _ in range(2)]
        for rows in shares_of(sides, every, -(-len(every) // room), room):
            chosen = every[rows]
            part = self._forward(model, [side[chosen] for side in sides])
            for number, values in enumerate(part):
                found[number] = found[number].to(values.dtype).index_copy(0, chosen, values)
        return found[0], found[1] if options.get("compute_entropy") else None, None

    # Generation: prompts in, token ids and their text out.

    def complete(self, prompts: list[list[int]]) -> list[list[int]]:
        """Complete prompts greedily, all of them token ids; training does not notice it."""
        with greedy(self):
            return self._generate_single_turn(prompts, None, {}, 1)[0]

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *more: Any, **named: Any
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Generate, and put an end token behind a stop string, in the place of padding."""
        if self.use_vllm:
            ids, logprobs = super()._generate_single_turn(prompt_ids, *more, **named)
        else:
            logprobs = None
            with self.accelerator.autocast():  # around all tokens: weights are cast once
                if decodes(self):
                    ids = decode(self, prompt_ids, self.stop)
                else:
                    ids, _ = super()._generate_single_turn(prompt_ids, *more, **named)
        for number, completion in enumerate(ids):
            end = stopped_after(self, completion, self.stop)
            if end is not None:
                ids[number] = [*completion[:end], self.eos_token_ids[0]]
                if logprobs is not None:
                    logprobs[number] = [*logprobs[number][:end], 0.0]
        return ids, logprobs

    def _generate(self, prompts: list) -> tuple:
        """Keep the end token behind a stop string out of the loss, as the model has not written it.

        Rewards judge the text of the token ids, of which a tokenizer's parser may leave out parts.
        """
        prompt_ids, ids, mask, completions, *rest = super()._generate(prompts)
        if self.stop:
            mask = [[1] * len(each) for each in ids]
            for number, completion in enumerate(ids):
                end = stopped_after(self, completion, self.stop)
                if end is not None:
                    mask[number][end] = 0
        if isinstance(completions[0], list) and not self.tools:
            texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
            completions = [[{"role": "assistant", "content": text}] for text in texts]
        return prompt_ids, ids, mask, completions, *rest

    # Rewards, advantages and vLLM's importance ratios.

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *answers: Any) -> Tensor:
        rewards = super()._calculate_rewards(inputs, *answers)
        self._rewards = rewards  # (completions of all processes, functions)
        if self.draws and self.model.training:
            for name, value in self.draws.observe(inputs, rewards).items():
                self._metrics["train"][name].append(value)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, object]]) -> Batch:
        without_second_pass = self._corrects and self._on_policy and self.model.training
        if without_second_pass and not self._whole_prompts:
            self.vllm_importance_sampling_correction = False
        try:
            batch = super()._generate_and_score_completions(inputs)
        finally:
            self.vllm_importance_sampling_correction = self.args.vllm_importance_sampling_correction
        if "mask" in self.vllm_importance_sampling_mode and "importance_sampling_ratio" in batch:
            mode = "train" if self.model.training else "eval"
            masked = (batch["importance_sampling_ratio"] == 0).float().mean()
            share = self.accelerator.gather(masked).mean().item()
            self._metrics[mode]["sampling/masked_fraction"].append(share)
        if self.baseline:
            return batch
        rewards = (self._rewards * self.reward_weights.to(self._rewards.device)).nansum(1)
        logged = self._logs["advantages"]
        earlier = list(logged)[: -len(rewards)]
        logged.clear()
        logged.extend([*earlier, *rewards.tolist()])
        own = self.accelerator.process_index * len(inputs)
        return batch | {"advantages": rewards[own : own + len(inputs)]}

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """Write none: TRL's knows no base model; export_model.py writes what is true of a model."""
