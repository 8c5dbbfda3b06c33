"""What is added to TRL's GRPOTrainer, and nothing else.

- No work whose gradient is zero: TRL's micro-batches are made again by `grpo_math.training.micro_batches`.
- A prompt runs once for the completions of a micro-batch that continue it: `grpo_math.training.shared_prompts`.
- Without vLLM, generation in which finished completions leave the batch and a prompt is computed once for its group.
- Advantages without a baseline: the rewards themselves.

Where work is skipped, metrics are TRL's over the same completions, with two differences. `entropy` is a mean over the
completions that were trained on. Means are over the tokens of an optimizer step (TRL: of a micro-batch, and then over
micro-batches), and the smallest and largest clip ratios are those of a step. `skipped/completions` and
`skipped/positions` are the shares of completions, and of tokens with padding, that only TRL would have run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.models import unwrap_model_for_generation

from grpo_math.generation.decoder import Decoder, can_decode, chooser, finisher, without_adapter
from grpo_math.training.micro_batches import (
    LOSS_TYPES,
    Batch,
    cut,
    micro_batches,
    removable_padding,
    repack,
)
from grpo_math.training.sampling import EpochSampler
from grpo_math.training.shared_prompts import log_probs, same_prompts, why_not_shared
from grpo_math.training.step_metrics import Size, StepMetrics
from grpo_math.training.vllm_weights import LoraGeneration


class MathGRPOTrainer(GRPOTrainer):
    """GRPOTrainer that can do without a `baseline`, without work whose gradient is zero and without work done before.

    `skip_note` and `share_note` say in words what is skipped and shared, or why nothing is.
    """

    _buffered_inputs: list[Batch]
    vllm_generation: VLLMGeneration

    def __init__(
        self, *args: Any, baseline: bool = True, skip_zero_advantage: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.use_vllm and isinstance(self.model, PeftModel):
            self.vllm_generation = LoraGeneration.of(self.vllm_generation)
        self.baseline = baseline
        reason = self._why_not_exact() if skip_zero_advantage else "--skip_zero_advantage false"
        self.skips = reason is None
        self.skip_note = (
            f"nothing: {reason}"
            if reason
            else "completions of zero advantage; the gradient is the same"
        )
        base = without_adapter(self.model)
        launch = str(self.accelerator.distributed_type.value)
        alone = reason or why_not_shared(base, self.args.gradient_checkpointing, launch)
        self.shares, self._backbone = alone is None, base.base_model
        self.share_note = (
            f"nothing: {alone}"
            if alone
            else "prompts, run once for a group; the gradient is the same"
        )
        self._removable = (*removable_padding(self.model.config), self.pad_to_multiple_of or 1)
        self._step_metrics = StepMetrics(self.importance_sampling_level == "sequence")

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochSampler:
        positions = super()._get_train_sampler(dataset)
        return EpochSampler(positions, lambda: int(self.state.epoch or 0))

    def _run_epoch(self, **arguments: Any) -> None:
        """Make no step beyond the last; transformers makes one when it continues from the last."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**arguments)
        else:
            self.control.should_training_stop = True

    def _why_not_exact(self) -> str | None:
        if self.beta != 0:
            return f"with --beta {self.beta:g} the KL term acts on every completion"
        if self._entropy_bonus_enabled:
            return "the entropy bonus acts on every completion"
        if self.top_entropy_quantile < 1:
            return f"--top_entropy_quantile {self.top_entropy_quantile:g} compares the tokens of a micro-batch"
        if self.aux_loss_enabled:
            return "the experts' auxiliary loss acts on every completion"
        if self._is_vlm:
            return "images are not handled"
        return (
            None if self.loss_type in LOSS_TYPES else f"--loss_type {self.loss_type} is not handled"
        )

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.skips or not self.model.training or self._buffered_inputs is before:
            return inputs
        plain, self._buffered_inputs = self._buffered_inputs, []
        # What is both of one generation and of one optimizer step, whichever of the two is longer.
        window = math.gcd(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
        for start in range(0, len(plain), window):
            batches = plain[start : start + window]
            new = repack(batches, self.loss_type, *self._removable, self.shares)
            new[0]["plain"] = Size.of(batches)
            self._buffered_inputs += new
        self._log_skipped(Size.of(plain), Size.of(self._buffered_inputs, self.shares))
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _log_skipped(self, plain: Size, run: Size) -> None:
        sizes = torch.tensor([[plain, run]], dtype=torch.float32, device=self.accelerator.device)
        plain, run = (Size(*size) for size in self.accelerator.gather(sizes).sum(0).tolist())
        self._metrics["train"]["skipped/completions"].append(
            1 - run.completions / plain.completions
        )
        self._metrics["train"]["skipped/positions"].append(1 - run.positions / plain.positions)

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        if not self.skips or not self.model.training:
            return super()._compute_loss(model, inputs)
        logged, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        # TRL would gather metrics of each micro-batch, whose sizes now differ between processes.
        with without_collectives(self.accelerator):
            loss = super()._compute_loss(model, inputs)
        local, self._metrics["train"] = self._metrics["train"], logged
        values = {key: single for key, (single,) in local.items()}
        self._step_metrics.add(values, Size.of([inputs]), inputs.get("plain", Size()))
        if self.accelerator.sync_gradients:
            for key, value in self._step_metrics.merge(
                self.accelerator.gather, loss.device
            ).items():
                logged[key].append(value)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Where TRL asks for chunks of `batch_size`, which is without a gradient: the cheapest ones, cut to length."""
        if batch_size is None or not self.skips:
            return self._log_probs(
                model, input_ids, attention_mask, logits_to_keep, batch_size, **more
            )
        names = ("prompt_ids", "completion_ids", "prompt_mask", "completion_mask")
        start = input_ids.size(1) - logits_to_keep
        sides = (
            input_ids[:, :start],
            input_ids[:, start:],
            attention_mask[:, :start],
            attention_mask[:, start:],
        )
        prompts, completions = (side.sum(1).cpu().numpy() for side in sides[2:])
        numbers = same_prompts(sides[0], sides[2])[1].cpu().numpy() if self.shares else None
        count, most = -(-len(input_ids) // batch_size), batch_size * input_ids.size(1)
        logps = torch.zeros(sides[1].shape, device=input_ids.device)
        for rows in micro_batches(prompts, completions, count, most, batch_size, numbers):
            rows = torch.from_numpy(rows).to(input_ids.device)
            chunk = cut(
                {name: side[rows] for name, side in zip(names, sides, strict=True)},
                *self._removable,
            )
            ids, mask = (
                torch.cat([chunk[f"prompt_{kind}"], chunk[f"completion_{kind}"]], 1)
                for kind in ("ids", "mask")
            )
            width = chunk["completion_ids"].size(1)
            logps[rows, :width] = self._log_probs(model, ids, mask, width, **more)[0].to(
                logps.dtype
            )
        return logps, None, None

    def _log_probs(
        self,
        model: Any,
        ids: Tensor,
        mask: Tensor,
        completion: int,
        batch_size: int | None = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if not self.shares:
            return super()._get_per_token_logps_and_entropies(
                model, ids, mask, completion, batch_size, **more
            )
        with self.accelerator.autocast():
            entropy = more.get("compute_entropy", False)
            return *log_probs(model, self._backbone, ids, mask, completion, entropy), None

    def _generates_by_itself(self) -> bool:
        """Whether `grpo_math.generation.decoder` samples as this trainer's settings ask, from weights that are whole here."""
        args, launch = self.args, str(self.accelerator.distributed_type.value)
        otherwise = (
            *(
                self.use_vllm,
                self.use_transformers_continuous_batching,
                args.cache_implementation,
                self._is_vlm,
            ),
            *(
                self.min_p,
                self.repetition_penalty != 1,
                set(args.generation_kwargs or {}) - {"stop_strings"},
            ),
        )
        whole = launch == "NO" or launch.startswith("MULTI_")
        return (
            whole and not any(otherwise) and can_decode(self.accelerator.unwrap_model(self.model))
        )

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *more: Any, **named: Any
    ) -> tuple[list, list | None]:
        if not self._generates_by_itself():
            return super()._generate_single_turn(prompt_ids, *more, **named)
        stop = tuple((self.args.generation_kwargs or {}).get("stop_strings", ()))
        finished = finisher(self.eos_token_ids, self.max_completion_length, stop, self._tokenizer)
        checkpointing = self.args.gradient_checkpointing_kwargs
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gradient_checkpointing_kwargs=checkpointing
        ) as model:
            choose = chooser(self.temperature, self.top_p, self.top_k)
            decoder = Decoder(model, choose, finished, self._tokenizer.pad_token_id)
            return decoder.complete(prompt_ids, len(prompt_ids)), None

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards = super()._calculate_rewards(
            *args, **kwargs
        )  # (completions of all processes, functions)
        return self._rewards

    def _log_masked(self, ratio: Tensor) -> None:
        """Log the share of vLLM's samples (or tokens) that TRL leaves out because their ratio is beyond its limits."""
        mode = "train" if self.model.training else "eval"
        share = self.accelerator.gather((ratio == 0).float().mean())
        self._metrics[mode]["sampling/masked_fraction"].append(share.mean().item())

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        batch = super()._generate_and_score_completions(inputs)
        if "mask" in self.vllm_importance_sampling_mode and "importance_sampling_ratio" in batch:
            self._log_masked(batch["importance_sampling_ratio"])
        if self.baseline:
            return batch
        rewards = (self._rewards * self.reward_weights.to(self._rewards.device)).nansum(1)
        logged = self._logs["advantages"]
        earlier = list(logged)[: -len(rewards)]
        logged.clear()
        logged.extend([*earlier, *rewards.tolist()])
        own = self.accelerator.process_index * len(inputs)
        return batch | {"advantages": rewards[own : own + len(inputs)]}


@contextmanager
def without_collectives(accelerator: Accelerator) -> Iterator[None]:
    """What would be gathered from all processes, or summed over them, stays this one's."""
    accelerator.gather = accelerator.reduce = lambda tensor, *_, **__: tensor
    try:
        yield
    finally:
        del accelerator.gather, accelerator.reduce
