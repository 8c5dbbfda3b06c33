"""LoRA in all its kinds: what vLLM gets and what is loaded from a checkpoint answer as the model that was trained."""

import re
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from grpo_math.errors import UsageError
from grpo_math.generation.vllm_backend import adapter_options
from grpo_math.launch.arguments import parse_options, parse_trl_arguments
from grpo_math.launch.settle import Facts, settle_arguments
from grpo_math.models.loading import Loading, load_weights
from grpo_math.models.lora import check_adapter
from grpo_math.models.source import resolve_model
from grpo_math.training.vllm_weights import LoraGeneration
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from trl.distributed import DistributedBackend

from conftest import STARTER

IDS = torch.randint(20, 500, (3, 17), generator=torch.Generator().manual_seed(1))
KINDS = {
    "plain": {"target_modules": ["q_proj", "down_proj"]},
    "all linear layers, ranks of their own": {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}},
    "rank-stabilised": {"target_modules": ["q_proj"], "use_rslora": True},
    "weight-decomposed": {"target_modules": ["q_proj", "up_proj"], "use_dora": True},
    "with a bias": {"target_modules": ["q_proj"], "lora_bias": True},
    "a module trained whole": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "a parameter": {"target_modules": [], "target_parameters": ["mlp.gate_proj.weight"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "embedding trained whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "head trained whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}
ON_TIED_WEIGHTS = [kind for kind in KINDS if kind.startswith(("embedding", "head"))]


def trained(kind, dtype=torch.float32, **options):
    """The starter model with an adapter whose weights have moved, as training moves them."""
    base = AutoModelForCausalLM.from_pretrained(STARTER, dtype=dtype)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, **KINDS[kind], **options)).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def generation(model):
    """TRL's generation as far as weights go, without an engine."""
    new = LoraGeneration.__new__(LoraGeneration)
    new.model, new.accelerator = model, Accelerator(cpu=True)
    new._dist = DistributedBackend(new.accelerator)
    return new


def frozen(model):
    return {name: each.detach().clone() for name, each in model.named_parameters() if not each.requires_grad}


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits.float()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ON_TIED_WEIGHTS])
def test_vllm_gets_the_model_that_is_trained(kind):
    model = trained(kind)
    before = frozen(model)
    sent = dict(generation(model)._iter_named_params())
    fresh = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32)
    assert set(sent) == {name for name, _ in fresh.named_parameters()}
    fresh.load_state_dict(sent, strict=False)  # all but the head, which is the embedding
    assert (logits(fresh) - logits(model)).abs().max() < 1e-4
    assert (logits(fresh) - logits(AutoModelForCausalLM.from_pretrained(STARTER))).abs().max() > 0.01
    for name, parameter in model.named_parameters():
        assert name not in before or torch.equal(parameter, before[name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_answers_as_the_model_that_was_trained(kind, tmp_path):
    """Loaded as the evaluators load it, and written whole as the export writes it. The starter model's head is tied."""
    model = trained(kind)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_weights(resolve_model(str(tmp_path / "adapter")), Loading(), torch.float32)
    assert (logits(loaded) - logits(model)).abs().max() < 1e-4
    assert loaded.config.tie_word_embeddings == (kind not in ON_TIED_WEIGHTS)
    loaded.save_pretrained(tmp_path / "whole")
    whole = load_weights(resolve_model(str(tmp_path / "whole")), Loading(), torch.float32)
    assert torch.equal(logits(whole), logits(loaded))


@pytest.mark.parametrize("kind", KINDS)
def test_the_evaluator_with_vllm_takes_what_vllm_runs_as_trained(kind, tmp_path):
    """And makes room for a rank that vLLM has no size for; of all others it says how to merge them."""
    trained(kind).save_pretrained(tmp_path)
    if kind in ("plain", "rank-stabilised"):
        assert adapter_options(tmp_path) == {"enable_lora": True, "max_lora_rank": 8}
    else:
        with pytest.raises(UsageError, match=r"vLLM cannot load an adapter with .*; export_model\.py"):
            adapter_options(tmp_path)


def test_the_sum_is_rounded_once():
    """In bfloat16: base and adapter are added in float32, whatever either was stored in."""
    model = trained("plain", torch.bfloat16)
    sent = dict(generation(model)._iter_named_params())
    for name, layer in model.get_base_model().named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        delta = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert torch.equal(sent[f"{name}.weight"], (layer.base_layer.weight.float() + delta).bfloat16())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--lora_target_modules q_proj", None),
        ("--lora_target_modules layers.0.self_attn.q_proj", None),
        ("--lora_target_modules .*layers.1.*q_proj", None),
        ("--lora_target_modules q_proj embed_tokens", None),
        ("--lora_target_modules all-linear --use_vllm true", None),
        ("--lora_modules_to_save norm --use_vllm true", None),
        ("--lora_target_parameters mlp.gate_proj.weight --use_vllm true", None),
        ("--lora_target_modules c_attn", "--use_peft: Target modules {'c_attn'} not found in the base model"),
        ("--lora_target_modules lm_head", "would not train an adapter of the output layer"),
        ("--lora_target_modules q_proj embed_tokens --use_vllm true", "share their weights, and in vLLM"),
        ("--lora_modules_to_save embed_tokens --use_vllm true", "share their weights, and in vLLM"),
        ("--lora_modules_to_save lm_head --use_vllm true", "share their weights, and in vLLM"),
    ],
)
def test_an_adapter_fits_the_model_or_is_refused_before_loading(flags, words):
    options = parse_options([str(STARTER), "--use_peft", "true", "--output_dir", "x", *flags.split()], "")
    args, model_args = settle_arguments(options, parse_trl_arguments(options, {"bf16": False}), Facts())
    config = AutoConfig.from_pretrained(STARTER)
    with nullcontext() if words is None else pytest.raises(UsageError, match=re.escape(words)):
        check_adapter(config, args, model_args)


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_weights_that_fsdp2_spreads_are_gathered_layer_by_layer(one_process):
    """As in an unspread model; the group has one process, but every parameter is a distributed tensor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    spread = trained("plain")
    sent = {name: tensor.clone() for name, tensor in generation(spread)._iter_named_params()}
    mesh = init_device_mesh("cpu", (1,))
    for layer in [*spread.get_base_model().model.layers, spread]:
        fully_shard(layer, mesh=mesh)
    engine = generation(spread)
    engine._dist.fsdp_version = 2
    gathered = dict(engine._iter_named_params())
    assert gathered.keys() == sent.keys()
    assert all(torch.equal(gathered[name], sent[name]) for name in sent)
