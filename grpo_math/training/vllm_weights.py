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
        modules = model.named_modules()
        layers = {name: module for name, module in modules if isinstance(module, BaseTunerLayer)}
        for name, parameter in model.named_parameters():
            if _outermost(name, layers) is None and ".original_module." not in name:
                with self._dist.gather_params([parameter]):
                    name = name.replace("modules_to_save.default.", "")
                    yield self._fix_param_name_to_vllm(name), self._whole(parameter)
        for name, layer in layers.items():
            if _outermost(name, layers) is None:
                yield from self._merged(name, layer)

    def _merged(self, name: str, layer: BaseTunerLayer) -> Iterator[tuple[str, Tensor]]:
        """Give one layer's weights with the adapter added, in the precision of the layer."""
        module = cast(nn.Module, layer)
        parameters = list(module.parameters())
        with self._dist.gather_params(parameters):
            wide = {id(each): self._whole(each).to(torch.float32, copy=True) for each in parameters}
            memo = {key: nn.Parameter(tensor, False) for key, tensor in wide.items()}
            merged = copy.deepcopy(layer, memo)  # the copy's parameters are those of `memo`
            dtypes = {key: each.dtype for key, each in layer.get_base_layer().named_parameters()}
        merged.merge()
        for key, tensor in merged.get_base_layer().named_parameters():
            yield self._fix_param_name_to_vllm(f"{name}.{key}"), tensor.to(dtypes[key])

    def _whole(self, parameter: Tensor) -> Tensor:
        """Give a parameter's values, of all processes where FSDP2 has spread them."""
        if self._dist.fsdp_version == 2:
            return parameter.detach().to(self.accelerator.device).full_tensor()
        return parameter.detach()


def _outermost(name: str, layers: dict[str, BaseTunerLayer]) -> str | None:
    """Give the name of the adapted layer that lies around a module or parameter, if any does."""
    return next((layer for layer in layers if name.startswith(f"{layer}.")), None)
