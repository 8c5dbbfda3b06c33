"""A training step on a GPU, by phase, with random weights in the real shapes of Qwen2.5: no network, no data.

    python benchmarks/bench_gpu.py --shapes 0.5B 1.5B 3B 7B --write
    python benchmarks/bench_gpu.py --shapes tiny --completions 16 --completion_length 24       (also on a CPU)

One GPU, bfloat16 weights and optimizer states, gradient checkpointing, random completions of even length between 8 and
the cap. For each shape: generation with transformers, then log-probabilities, loss and backward with plain GRPOTrainer
and with this project's, then the optimizer. Beside each the two floors: the time that its arithmetic takes at the GPU's
peak, and that its bytes take at its bandwidth. `utilisation` (MFU) is arithmetic floor over time, with 2 FLOP per
parameter and token forward and 6 forward and backward; what gradient checkpointing computes again is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tables import machine, publish, table

STARTER = Path(__file__).resolve().parent.parent / "starter_model"
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def shape(sizes: tuple[int, int, int, int], **others: Any) -> dict[str, Any]:
    """Settings of a model of Qwen2.5, as in its config.json on the Hub; `sizes` are those of SIZES."""
    shared = {"vocab_size": 151936, "num_key_value_heads": 2, "tie_word_embeddings": True}
    shared |= {"max_position_embeddings": 32768, "rope_theta": 1e6}
    return shared | dict(zip(SIZES, sizes, strict=True)) | others


SHAPES = {
    "tiny": shape((64, 128, 2, 4), vocab_size=512),
    "0.5B": shape((896, 4864, 24, 14)),
    "1.5B": shape((1536, 8960, 28, 12)),
    "3B": shape((2048, 11008, 36, 16)),
    "7B": shape(
        (3584, 18944, 28, 28), vocab_size=152064, num_key_value_heads=4, tie_word_embeddings=False
    ),
}
# Dense bfloat16 TFLOP/s and TB/s from the makers' data sheets; others by --peak_tflops and --bandwidth.
GPUS = {
    "H200": (989, 4.8),
    "H100": (989, 3.35),
    "A100": (312, 2.0),
    "L40S": (362, 0.864),
    "4090": (165, 1.008),
}


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(function: Callable[[], Any]) -> float:
    synchronize()
    started = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - started


def build(kind: type, model: Any, args: argparse.Namespace, folder: str) -> Any:
    """A trainer of random completions; `args.alike` of its groups are rewarded alike."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig

    def given(trainer: Any, prompt_ids: list, *_: Any, **__: Any) -> tuple[list, None]:
        noise = torch.Generator().manual_seed(0)
        sizes = torch.randint(
            8, args.completion_length + 1, (len(prompt_ids),), generator=noise
        ).tolist()
        return [torch.randint(20, 500, (size,), generator=noise).tolist() for size in sizes], None

    def reward(completion_ids: list, **_: Any) -> list[float]:
        alike = round(args.alike * len(completion_ids) / args.group)
        return [
            1.0 if row // args.group < alike else float(row % 2)
            for row in range(len(completion_ids))
        ]

    cuda = torch.cuda.is_available()
    config = GRPOConfig(
        output_dir=folder,
        report_to="none",
        bf16=cuda,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        beta=0.0,
        loss_type="dr_grpo",
        scale_rewards="none",
        gradient_checkpointing=True,
        num_generations=args.group,
        per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=args.completions // args.micro_batch,
        max_completion_length=args.completion_length,
    )
    words = " ".join(["12 plus 5"] * (args.prompt_length // 3))
    data = Dataset.from_list(
        [{"prompt": f"{number} {words}"} for number in range(args.completions)]
    )
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    kind = type("Given", (kind,), {"_generate_single_turn": given})
    trainer = kind(model, reward, config, data, processing_class=tokenizer)
    trainer.create_optimizer_and_scheduler(1)
    trainer.current_gradient_accumulation_steps = config.gradient_accumulation_steps
    return trainer


def phases(name: str, args: argparse.Namespace) -> list[list[object]]:
    """Lines of the table for one shape."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import GRPOTrainer

    from grpo_math.generation.decoder import Decoder, chooser, finisher
    from grpo_math.training.trainer import MathGRPOTrainer

    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32
    with torch.device("cuda" if cuda else "cpu"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("qwen2", **SHAPES[name]), dtype=dtype
        )
    parameters, size = sum(p.numel() for p in model.parameters()), dtype.itemsize
    peak, bandwidth = peaks(args)
    lines: list[list[object]] = []

    def add(phase: str, seconds: float, tokens: int, flops: float, moved: float) -> None:
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if cuda else "-"
        floors = ["-"] * 3
        if peak:
            used = f"{flops / peak / seconds:.0%}"
            floors = [f"{flops / peak:.3f}", f"{moved / bandwidth:.3f}", used]
        lines.append([name, phase, f"{seconds:.3f}", f"{tokens / seconds:,.0f}", *floors, memory])
        if cuda:
            torch.cuda.reset_peak_memory_stats()

    prompts = []
    for number in range(args.completions // args.group):
        prompts += [[20 + number % 400] * args.prompt_length] * args.group
    decoder = Decoder(model.eval(), chooser(1.0), finisher([], args.completion_length), 508)
    timed(lambda: decoder.complete(prompts[: args.group], args.group))  # warms up
    seconds = timed(lambda: decoder.complete(prompts, len(prompts)))
    generated = args.completions * args.completion_length
    cache = 2 * model.config.num_hidden_layers * model.config.num_key_value_heads * size
    cache *= model.config.hidden_size // model.config.num_attention_heads
    read = args.completion_length * (
        parameters * size
        + args.completions * cache * (args.prompt_length + args.completion_length / 2)
    )
    add("generation, transformers", seconds, generated, 2 * parameters * generated, read)
    for kind, who in ((GRPOTrainer, "GRPOTrainer"), (MathGRPOTrainer, "this project")):
        with tempfile.TemporaryDirectory() as folder:
            trainer = build(kind, model, args, folder)
            model.train()
            batch = next(iter(trainer.get_train_dataloader()))
            times = []
            for _ in range(args.rounds + 1):
                trainer._step = 0
                trainer._prepare_inputs(batch)  # completions and rewards, which are not in the time
                times.append(timed(partial(train, trainer, batch)))
                model.zero_grad()
            useful = args.completions * (args.prompt_length + args.completion_length / 2)
            passes = args.completions // args.micro_batch
            flops, moved = 6 * parameters * useful, passes * 4 * parameters * size
            add(
                f"loss and backward, {who}", statistics.median(times[1:]), int(useful), flops, moved
            )
    optimizer = trainer.optimizer
    train(trainer, batch)
    seconds = timed(optimizer.step)
    add("optimizer (AdamW)", seconds, generated, 12 * parameters, 7 * parameters * size)
    return lines


def train(trainer: Any, batch: Any) -> None:
    """All micro-batches of a step; completions were generated before."""
    passes = trainer.current_gradient_accumulation_steps
    trainer._step = 0
    buffered = trainer._buffered_inputs
    for micro in range(passes):
        trainer.accelerator.gradient_state._set_sync_gradients(micro == passes - 1)
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model_wrapped, buffered[micro])
        trainer.accelerator.backward(loss)


def peaks(args: argparse.Namespace) -> tuple[float, float]:
    """FLOP/s and bytes/s of this machine, 0 where they are not known."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    known = next((values for key, values in GPUS.items() if key in name), (0.0, 0.0))
    return (args.peak_tflops or known[0]) * 1e12, (args.bandwidth or known[1]) * 1e12


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B", "3B", "7B"])
    parser.add_argument("--completions", type=int, default=256, help="of a step (default: 256)")
    parser.add_argument("--micro_batch", type=int, default=8, help="completions (default: 8)")
    parser.add_argument(
        "--group", type=int, default=8, help="completions per question (default: 8)"
    )
    parser.add_argument("--prompt_length", type=int, default=120, help="tokens (default: 120)")
    parser.add_argument(
        "--completion_length", type=int, default=512, help="the cap, in tokens (default: 512)"
    )
    parser.add_argument(
        "--alike", type=float, default=0.5, help="share of groups rewarded alike (default: 0.5)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="of which medians are taken (default: 5)"
    )
    parser.add_argument(
        "--peak_tflops", type=float, default=0.0, help="dense bfloat16 (default: the data sheet's)"
    )
    parser.add_argument(
        "--bandwidth", type=float, default=0.0, help="TB/s (default: the data sheet's)"
    )
    parser.add_argument(
        "--write", action="store_true", help="put the table into benchmarks/README.md"
    )
    args = parser.parse_args()
    lines = [line for name in args.shapes for line in phases(name, args)]
    header = ["shape", "phase", "s", "tokens/s", "arithmetic floor, s", "bytes floor, s"]
    header += ["utilisation", "peak GiB"]
    text = f"{machine('transformers', 'trl')}\n\n{args.completions} completions of 8 to {args.completion_length} tokens "
    text += f"in micro-batches of {args.micro_batch}, prompts of {args.prompt_length}, {args.alike:.0%} of groups rewarded "
    text += f"alike; medians of {args.rounds} rounds.\n\n{table(header, lines)}"
    publish("GPU", text, args.write)


if __name__ == "__main__":
    main()
