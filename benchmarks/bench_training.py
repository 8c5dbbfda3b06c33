"""Time the training phase of a step (log-probabilities, loss, backward) beside plain GRPOTrainer's.

    OMP_NUM_THREADS=1 python benchmarks/bench_training.py --write
    OMP_NUM_THREADS=1 python benchmarks/bench_training.py --rounds 1 --only real

Two shapes, in float32: the starter model, and four layers of Qwen2.5-0.5B with prompts and answers
as long as GSM8K's. Gradient checkpointing is on, which is TRL's default, or off; several shares of
groups are rewarded alike. Both trainers get the same completions, new ones in each round, one
trainer after the other within a round. Generation, rewards and the optimizer are not in the times.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tables import machine, publish, ratio, spread, table

STARTER = Path(__file__).resolve().parent.parent / "starter_model"
# Tokens at each tenth of GSM8K's training rows: questions; solutions without calculator marks.
QUESTIONS = (11, 33, 38, 42, 46, 51, 56, 62, 70, 83, 206)
SOLUTIONS = (22, 40, 49, 57, 65, 74, 84, 95, 109, 134, 331)
TEMPLATE = 40  # tokens around a question: chat template and instruction
VOCABULARY = 8192  # of the real shape; with Qwen's 151,936 the head alone would take the hour


@dataclass(frozen=True)
class Case:
    """One line of the table: `shares` are those of groups rewarded alike."""

    shape: str  # "starter" or "real"
    lengths: str  # "even" and "long-tailed" up to 96 tokens, or "GSM8K"
    alike: float
    checkpointing: bool
    iterations: int = 1

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Completions of a step, of a micro-batch and of a group, and the most tokens of one."""
        return (256, 64, 16, 96) if self.shape == "starter" else (16, 8, 4, 400)


CASES = [
    *(Case("starter", "even", alike, True) for alike in (0.0, 0.25, 0.5, 0.75)),
    Case("starter", "long-tailed", 0.0, True),
    *(Case("starter", "even", alike, False) for alike in (0.0, 0.25, 0.5, 0.75)),
    Case("starter", "long-tailed", 0.0, False),
    Case("starter", "even", 0.5, True, iterations=2),  # log-probabilities without a gradient first
    *(Case("real", "GSM8K", alike, True) for alike in (0.0, 0.5)),
]


def lengths(kind: str, count: int, cap: int, seed: int) -> list[int]:
    """Draw the lengths of completions."""
    import torch

    noise = torch.Generator().manual_seed(seed)
    if kind == "even":
        return torch.randint(8, cap + 1, (count,), generator=noise).tolist()
    if kind == "GSM8K":
        return between(SOLUTIONS, torch.rand(count, generator=noise).tolist())
    normal = torch.randn(count, generator=noise).tolist()
    drawn = [round(math.exp(math.log(24) + 0.6 * value)) for value in normal]
    return [min(cap, max(8, size)) for size in drawn]


def between(tenths: tuple[int, ...], shares: list[float]) -> list[int]:
    """Read the sizes at these shares of a distribution that is given at each tenth."""
    found = []
    for share in shares:
        tenth, rest = divmod(share * 10, 1)
        low, high = tenths[int(tenth)], tenths[int(tenth) + 1]
        found.append(round(low + rest * (high - low)))
    return found


def build_model(shape: str):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if shape == "starter":
        return AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=VOCABULARY,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=4,
        num_attention_heads=14,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        eos_token_id=507,
        pad_token_id=508,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def build_prompts(shape: str) -> list[list[int]]:
    """Token ids of 64 prompts."""
    import torch
    from transformers import AutoTokenizer

    from grpo_math.data.problems import sum_problems
    from grpo_math.data.prompts import Asking
    from grpo_math.data.styles import get_style

    if shape == "real":
        noise = torch.Generator().manual_seed(0)
        sizes = between(QUESTIONS, torch.rand(64, generator=noise).tolist())
        return [torch.randint(20, 500, (size + TEMPLATE,)).tolist() for size in sizes]
    tokenizer, asking = AutoTokenizer.from_pretrained(STARTER), Asking(get_style("answer_tag"))
    questions = [problem.question for problem in sum_problems(64, -99, 99, 0)]
    return asking.token_ids(asking.prompts(questions, tokenizer), tokenizer)


def build(kind: type, folder: str, case: Case):
    """Build a trainer whose completions are given: `trainer.case` says how long they are."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig

    rows, micro_batch, group, cap = case.sizes
    prompts = build_prompts(case.shape)

    def given(trainer, prompt_ids, *_, **__):
        noise = torch.Generator().manual_seed(trainer.round)
        sizes = lengths(trainer.case.lengths, len(prompt_ids), cap, trainer.round)
        ids = [torch.randint(20, 500, (size,), generator=noise).tolist() for size in sizes]
        return [[*each[:-1], trainer.eos_token_ids[0]] for each in ids], None

    def tokenize(trainer, texts):
        return [prompts[int(text)] for text in texts], None, {}

    def reward(completion_ids, **_):
        alike = round(trainer.case.alike * rows / group)
        numbers = range(len(completion_ids))
        return [1.0 if number // group < alike else float(number % 2) for number in numbers]

    args = GRPOConfig(
        output_dir=folder,
        report_to="none",
        bf16=False,
        use_cpu=True,
        num_generations=group,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=rows // micro_batch,
        max_completion_length=cap,
        gradient_checkpointing=case.checkpointing,
        dataloader_pin_memory=False,
        loss_type="dr_grpo",
        scale_rewards="none",
        num_iterations=case.iterations,
    )
    data = Dataset.from_list([{"prompt": str(number)} for number in range(len(prompts))])
    methods = {"_generate_single_turn": given, "_tokenize_prompts": tokenize}
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    kind = type("Given", (kind,), methods)
    trainer = kind(build_model(case.shape), reward, args, data, processing_class=tokenizer)
    trainer.create_optimizer_and_scheduler(1)
    trainer.model.train()
    if case.checkpointing:  # as `train` does
        trainer.model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
    trainer.current_gradient_accumulation_steps = rows // micro_batch
    trainer.round = 0
    return trainer, next(iter(trainer.get_train_dataloader()))


def training_phase(trainer, batch, case: Case, clock: Callable[[], float]) -> float:
    """Time one generation's training without generation and rewards, in seconds."""
    outside = [0.0]
    timed = {name: getattr(trainer, name) for name in ("_generate", "_calculate_rewards")}
    for name, function in timed.items():

        def left_out(*args, function=function, **kwargs):
            started = clock()
            result = function(*args, **kwargs)
            outside[0] += clock() - started
            return result

        setattr(trainer, name, left_out)
    trainer._step, trainer.round, trainer.case = 0, trainer.round + 1, case
    passes = trainer.current_gradient_accumulation_steps
    started = clock()
    for micro in range(case.iterations * passes):
        trainer.accelerator.gradient_state._set_sync_gradients((micro + 1) % passes == 0)
        trainer.training_step(trainer.model, batch, None)
    seconds = clock() - started - outside[0]
    trainer.model.zero_grad()
    for name in timed:
        delattr(trainer, name)
    return seconds


def measure(case: Case, rounds: int, clock: Callable[[], float]) -> list[object]:
    """Give a line of the table."""
    from trl import GRPOTrainer

    from grpo_math.training.trainer import MathGRPOTrainer

    times: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        trainers = [build(kind, folder, case) for kind in (GRPOTrainer, MathGRPOTrainer)]
        for _ in range(rounds + 1):
            for each, (trainer, batch) in zip(times, trainers, strict=True):
                each.append(training_phase(trainer, batch, case, clock))
    plain, ours = (each[1:] for each in times)  # the first warms up
    checkpointing = "on" if case.checkpointing else "off"
    policy = "on-policy" if case.iterations == 1 else f"num_iterations {case.iterations}"
    about = [case.shape, checkpointing, policy, case.lengths, f"{case.alike:.0%}"]
    return [*about, spread(plain), spread(ours), ratio(plain, ours)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="of which medians are taken (5)")
    parser.add_argument("--only", choices=["starter", "real"], help="one of the shapes")
    parser.add_argument("--cpu_time", action="store_true", help="CPU time, not wall time")
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/README.md")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    lines = []
    for case in CASES:
        if args.only in (None, case.shape):
            lines.append(measure(case, args.rounds, clock))
            print(*lines[-1], sep="  ", flush=True)
    header = ["shape", "checkpointing", "", "lengths", "groups alike"]
    header += ["GRPOTrainer, s", "this project, s", "times as fast"]
    text = f"""{machine("transformers", "trl")}

Float32; {"CPU" if args.cpu_time else "wall"} time, medians (and range) of {args.rounds} rounds.

- starter: the starter model (0.7M parameters); 256 completions of at most 96 tokens in
  micro-batches of 64 and groups of 16.
- real: four layers of Qwen2.5-0.5B with a vocabulary of {VOCABULARY:,}; 16 completions in
  micro-batches of 8 and groups of 4, prompts and completions as long as GSM8K's questions (and
  {TEMPLATE} tokens around them) and solutions.

{table(header, lines)}"""
    publish("training", text, args.write)


if __name__ == "__main__":
    main()
