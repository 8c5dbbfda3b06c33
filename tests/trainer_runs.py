"""Training runs on random completions, with TRL's trainer and with this project's, for test_trainer.py to compare.

As a script, in each process of a launch: python trainer_runs.py FOLDER CASE... writes what `compare` returns.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from grpo_math.training.trainer import MathGRPOTrainer
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from conftest import STARTER

GROUP, CAP = 4, 12
QUESTIONS = [f"What is {a} plus {b}?" + " Say it." * (a % 3) for a in range(8) for b in (3, 41)]
# How micro-batches, optimizer steps and generations lie to each other.
SHAPES = {
    "single": {"per_device_train_batch_size": 8, "num_iterations": 2, "max_steps": 4},
    "accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_steps": 2},
    "short_generations": {
        **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        **{"steps_per_generation": 2, "max_steps": 2},
    },
    "long_generations": {
        **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        **{"steps_per_generation": 4, "num_iterations": 2, "max_steps": 4},
    },
    "misaligned": {
        **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        **{"steps_per_generation": 6, "max_steps": 3},
    },
}
# Which completions have an advantage of zero: of each group, which are rewarded alike.
ALIKE = {
    "none": lambda process, group: False,
    "half": lambda process, group: group % 2 == 0,
    "most": lambda process, group: group > 0,
    "rank": lambda process, group: process == 1,
    "all": lambda process, group: True,
}


class Recorder(TrainerCallback):
    """The gradients of each optimizer step, and the weights that they were computed at."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_) -> None:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.gradients.append({name: p.grad.clone() for name, p in trained})
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})


class WithPositions(GRPOTrainer):
    """TRL's trainer, whose model counts positions without the padding before a prompt."""

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        def forward(**inputs):
            return model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0))

        return super()._get_per_token_logps_and_entropies(forward, *args, **kwargs)


def random_completions(trainer: GRPOTrainer, prompt_ids: list, *_, **__) -> tuple[list[list[int]], None]:
    """Of 1 to CAP tokens, different on each process and in each generation; those below CAP end as they should."""
    noise = torch.Generator().manual_seed(1000 * trainer._step + trainer.accelerator.process_index)
    completions = []
    for _ in prompt_ids:
        length = int(torch.randint(1, CAP + 1, (), generator=noise))
        ids = torch.randint(20, 500, (length,), generator=noise).tolist()
        completions.append([*ids[:-1], trainer.eos_token_ids[0]] if length < CAP else ids)
    return completions, None


def tiny_model(kind: str = "qwen2") -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "eos_token_id": 507, "bos_token_id": None}
    more = {
        "mixtral": {"num_local_experts": 2},
        "gpt_bigcode": {"attn_pdrop": 0.0},  # a number there, which disable_dropout does not reach
        "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4, "window_size": 6},
    }
    config = AutoConfig.for_model(kind, **sizes | more.get(kind, {}))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.config._name_or_path = str(STARTER)  # whence TRL takes a reference model
    return model


def build(
    kind: type[GRPOTrainer], folder: Path, alike: str, model: str = "qwen2", lora: bool = False, **arguments
) -> GRPOTrainer:
    """A trainer of a tiny model whose completions are random and whose rewards are a function of them."""
    own = {name: arguments.pop(name) for name in ("baseline", "skip_zero_advantage") if name in arguments}
    settings = {
        **{"output_dir": str(folder), "report_to": "none", "save_strategy": "no", "logging_steps": 1},
        **{"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False},
        **{"optim": "sgd", "lr_scheduler_type": "constant", "learning_rate": 0.02, "max_grad_norm": 0.0},
        **{"num_generations": GROUP, "max_completion_length": CAP, "disable_tqdm": True},
    }
    if torch.distributed.is_torchelastic_launched():
        settings["ddp_backend"] = "gloo"
    args = GRPOConfig(**settings | arguments)

    def reward(completion_ids, **_):
        return [
            0.5 if ALIKE[alike](args.process_index, row // GROUP) else sum(ids) % 3 / 2 + row % GROUP
            for row, ids in enumerate(completion_ids)
        ]  # exact in floats, so that rewards that are alike leave an advantage of zero

    data = Dataset.from_list([{"prompt": [{"role": "user", "content": question}]} for question in QUESTIONS])
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    fake = type("WithRandomCompletions", (kind,), {"_generate_single_turn": random_completions})
    if lora:
        targets = ["q_proj", "v_proj", "down_proj"]
        own["peft_config"] = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
        torch.manual_seed(1)
    base = tiny_model(model)
    torch.manual_seed(2)  # whatever the model has drawn
    return fake(base, reward, args, data, processing_class=tokenizer, **own)


def train(kind: type[GRPOTrainer], *args, **kwargs) -> tuple[Recorder, list[dict]]:
    """What a run did in each step, and what it logged."""
    trainer, recorder = build(kind, *args, **kwargs), Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    return recorder, trainer.state.log_history[:-1]


def relative_error(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Of whole gradients as vectors; 0 where both are 0."""
    assert one.keys() == other.keys()
    difference = torch.cat([(one[name] - other[name]).flatten() for name in one]).norm()
    size = torch.cat([other[name].flatten() for name in one]).norm()
    return float(difference / size) if difference else 0.0


def compare(case: str, folder: Path) -> dict:
    """Both trainers on one case, "shape alike loss_type [name=value ...]"."""
    shape, alike, loss_type, *more = case.split()
    arguments = {**SHAPES[shape], "loss_type": loss_type, "epsilon": 0.1}
    arguments |= {name: json.loads(value) for name, value in (word.split("=") for word in more)}
    plain_arguments = {name: value for name, value in arguments.items() if name != "skip_zero_advantage"}
    theirs, plain = train(WithPositions, folder, alike, **plain_arguments)
    ours, logged = train(MathGRPOTrainer, folder, alike, **arguments)
    assert len(theirs.gradients) == len(ours.gradients) == arguments["max_steps"]
    errors = [relative_error(a, b) for a, b in zip(ours.gradients, theirs.gradients, strict=True)]
    return {"errors": errors, "theirs": plain, "ours": logged}


if __name__ == "__main__":
    from accelerate import PartialState

    folder, *cases = sys.argv[1:]
    results = {case: compare(case, Path(folder)) for case in cases}
    if PartialState().is_main_process:
        (Path(folder) / "results.json").write_text(json.dumps(results))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
