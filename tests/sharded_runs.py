"""Full gradients of spread models, by plain GRPOTrainer and by this project's, for test_sharded.py to compare.

In each process of a launch: python sharded_runs.py FOLDER CASE... ; a case is that of trainer_runs.py. "uneven" gives
one process a long completion among short ones, and the other lengths of all kinds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DeepSpeedPlugin
from grpo_math.training.trainer import MathGRPOTrainer
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

import trainer_runs
from trainer_runs import CAP, SHAPES, WithPositions, build

made = DeepSpeedPlugin.__post_init__


def spread_small_weights(plugin):
    import deepspeed.ops

    # Its own way between processes on one machine would have to be compiled; gloo is there.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    made(plugin)
    zero = plugin.deepspeed_config["zero_optimization"]
    zero["stage3_param_persistence_threshold"] = 0  # or ZeRO-3 keeps so small a model whole everywhere


DeepSpeedPlugin.__post_init__ = spread_small_weights


def uneven_completions(trainer, prompt_ids, *_, **__):
    noise = torch.Generator().manual_seed(1000 * trainer._step)
    sizes = [CAP] + [1] * (len(prompt_ids) - 1)
    if trainer.accelerator.process_index:
        sizes = torch.randint(1, CAP + 1, (len(prompt_ids),), generator=noise).tolist()
    return [torch.randint(20, 500, (size,), generator=noise).tolist() for size in sizes], None


class Gradients(TrainerCallback):
    """Full gradients of each optimizer step, of FSDP2."""

    def __init__(self, trainer):
        self.trainer, self.found = trainer, []

    def on_pre_optimizer_step(self, args, state, control, **_):
        if not self.trainer.is_deepspeed_enabled:
            named = self.trainer.model.named_parameters()
            self.found.append({name: whole(p.grad) for name, p in named if p.grad is not None})


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().float().clone()


def watch_engine(trainer, found):
    """Keep DeepSpeed's full gradients, which are there when its engine makes a step and nowhere else."""
    from deepspeed.utils import safe_get_full_grad

    backward, watched = trainer.accelerator.backward, []

    def watching(loss, **more):
        engine = trainer.deepspeed
        if not watched:
            watched.append(engine)
            step = engine.step

            def keep(*args, **kwargs):
                if engine.is_gradient_accumulation_boundary():
                    named = [(name, safe_get_full_grad(p)) for name, p in trainer.model.named_parameters()]
                    found.append({name: grad.float().clone() for name, grad in named if grad is not None})
                return step(*args, **kwargs)

            engine.step = keep
        return backward(loss, **more)

    trainer.accelerator.backward = watching


def run(kind, folder, case):
    shape, alike, loss_type, *more = case.split()
    arguments = {**SHAPES[shape], "loss_type": loss_type, "max_steps": 2}
    arguments |= {name: json.loads(value) for name, value in (word.split("=", 1) for word in more)}
    plain = trainer_runs.random_completions
    if alike == "uneven":
        trainer_runs.random_completions, alike = uneven_completions, "none"
    trainer = build(kind, folder, alike, **arguments)
    trainer_runs.random_completions = plain
    recorder = Gradients(trainer)
    trainer.add_callback(recorder)
    if trainer.is_deepspeed_enabled:
        watch_engine(trainer, recorder.found)
    trainer.train()
    spread = str(trainer.accelerator.distributed_type.value)
    return recorder.found, spread, getattr(trainer, "packs", None)


if __name__ == "__main__":
    folder, *cases = sys.argv[1:]
    folder = Path(folder)
    for number, case in enumerate(cases):
        for kind, name in ((WithPositions, "theirs"), (MathGRPOTrainer, "ours")):
            gradients, spread, packs = run(kind, folder, case)
            if PartialState().is_main_process:
                torch.save(gradients, folder / f"{number}-{name}.pt")
                (folder / "spread.json").write_text(json.dumps({"type": spread, "packs": packs}))
            PartialState().wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
