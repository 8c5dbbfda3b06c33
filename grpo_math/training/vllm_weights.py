"""Give vLLM the weights of a LoRA model without touching the model.

TRL merges an adapter into the frozen weights before each generation and takes it out again after.
Both round to the weights' own precision, so in bfloat16 the frozen weights drift from step to step.
Here one layer at a time is copied in float32, merged there, and rounded once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from trl.generation.vllm_generation import VLLMGeneration


class LoraGeneration(VLLMGeneration):
    """TRL's generation with vLLM, whose weights are computed beside the model and not in it.

    An engine in this process and a server get the same. Every process of a launch walks over the
    same layers in the same order, as FSDP2 and ZeRO-3 gather what they have spread layer by layer.
    """

    @classmethod
    def of(cls, generation: VLLMGeneration) -> LoraGeneration:
        """Take over the engine or client that TRL's trainer has started."""
        new = cls.__new__(cls)
        new.__dict__.update(generation.__dict__)
        return new

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        model = self.model.get_base_model()
        adapted: list[tuple[str, BaseTunerLayer]] = []  # outermost ones: theirs may be nested
        for name, module in model.named_modules():
            if isinstance(module, BaseTunerLayer) and not _within(name, adapted):
                adapted.append((name, module))
        for name, parameter in model.named_parameters():
            if _within(name, adapted) or ".original_module." in name:
                continue
            name = name.replace("modules_to_save.default.", "")
            with self._dist.gather_params([parameter]):
                yield self._fix_param_name_to_vllm(name), self._gathered(parameter)
        for name, layer in adapted:
            for key, tensor in self._merged(layer):
                yield self._fix_param_name_to_vllm(f"{name}.{key}"), tensor

    def _merged(self, layer: BaseTunerLayer) -> Iterator[tuple[str, Tensor]]:
        """Give one layer's weights with the adapter added, in the precision of the layer."""
        parameters = list(cast(nn.Module, layer).parameters())
        copies: dict[int, object] = {}
        with self._dist.gather_params(parameters):
            for parameter in parameters:
                wide = self._gathered(parameter).to(torch.float32, copy=True)
                copies[id(parameter)] = nn.Parameter(wide, requires_grad=False)
        precision = {key: each.dtype for key, each in layer.get_base_layer().named_parameters()}
        merged = copy.deepcopy(layer, copies)  # takes these for the layer's own parameters
        merged.merge()
        for key, tensor in merged.get_base_layer().named_parameters():
            yield key, tensor.to(precision[key])

    def _gathered(self, parameter: Tensor) -> Tensor:
        """Give a parameter's values, of all processes where FSDP2 has spread them."""
        if self._dist.fsdp_version == 2:
            return parameter.detach().to(self.accelerator.device).full_tensor()
        return parameter.detach()


def _within(name: str, layers: list[tuple[str, BaseTunerLayer]]) -> bool:
    """Tell whether a module or parameter belongs to one of these layers."""
    return any(name.startswith(f"{layer}.") for layer, _ in layers)
