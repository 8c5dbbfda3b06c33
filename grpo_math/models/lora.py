"""Check that an adapter fits its model, before the model's weights are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_math.errors import UsageError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from trl import GRPOConfig, ModelConfig


def check_adapter(config: PreTrainedConfig, args: GRPOConfig, model_args: ModelConfig) -> None:
    """Wrap the model as training will, on PyTorch's meta device, which holds no numbers.

    Raises:
        UsageError: the adapter names modules that are not there, would not be trained, or would
            not reach vLLM.
    """
    if not model_args.use_peft:
        return
    import torch
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper
    from transformers import AutoModelForCausalLM
    from trl import get_peft_config

    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, trust_remote_code=args.trust_remote_code)
        try:
            model = get_peft_model(plain, get_peft_config(model_args))
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UsageError(f"--use_peft: {first_line(error)}") from error
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if isinstance(head, BaseTunerLayer):
        raise UsageError(
            "--lora_target_modules: TRL would not train an adapter of the output layer; leave that "
            "module out, or train it whole with --lora_modules_to_save"
        )
    wrappers = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    changed = isinstance(head, wrappers) or isinstance(embedding, wrappers)
    if args.use_vllm and changed and getattr(config, "tie_word_embeddings", False):
        raise UsageError(
            "--use_vllm: this model's embedding and output layer share their weights, and in vLLM "
            "they cannot differ; leave both out of the adapter, or add --use_vllm false"
        )
