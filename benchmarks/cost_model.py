"""What a GRPO step takes on one to many GPUs, on paper: the tables of docs/scaling.md.

    python benchmarks/cost_model.py
    python benchmarks/cost_model.py --models 7B 32B --gpus 8 64 --completions 1024 --tokens 2000 --longest 8000

Seconds of each phase from a model's size, the GPU's peaks and the efficiencies given. Nothing here is measured: with
numbers of your own from benchmarks/bench_gpu.py, set --utilisation and --bandwidth_share.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """Parameters, and bytes of keys and values per token in bfloat16: 2 x layers x key-value heads x head size x 2."""

    parameters: float
    cache: int


MODELS = {
    "0.5B": Model(0.49e9, 2 * 24 * 2 * 64 * 2),
    "1.5B": Model(1.54e9, 2 * 28 * 2 * 128 * 2),
    "3B": Model(3.09e9, 2 * 36 * 2 * 128 * 2),
    "7B": Model(7.62e9, 2 * 28 * 4 * 128 * 2),
    "14B": Model(14.8e9, 2 * 48 * 8 * 128 * 2),
    "32B": Model(32.8e9, 2 * 64 * 8 * 128 * 2),
    "70B": Model(70.6e9, 2 * 80 * 8 * 128 * 2),
}
PHASES = ("generation", "log-probs", "backward", "communication", "weight sync", "step")


@dataclass(frozen=True)
class Setting:
    """How the work is spread: `split` is how the weights are, `parallel` over how many GPUs vLLM spreads one copy."""

    split: str
    parallel: int
    state: float  # GiB of weights, gradients and optimizer on each GPU


def choose(model: Model, gpus: int, memory: float) -> Setting | None:
    """The simplest way in which training and vLLM fit together on each GPU; None where there is none.

    Full fine-tuning with AdamW: 16 bytes per parameter in mixed precision (float32 weights, gradients and two moments).
    A quarter of the memory is left to activations and a quarter to vLLM's weights and cache.
    """
    room, gib = memory / 2, 2**30
    parallel = 2 ** math.ceil(math.log2(max(1.0, 2 * model.parameters / gib / (memory / 5))))
    if parallel > gpus:
        return None
    shares = {"one GPU" if gpus == 1 else "DDP": 16, "ZeRO-2": 4 + 12 / gpus, "FSDP": 16 / gpus}
    for split, share in shares.items():
        if share * model.parameters / gib <= room:
            return Setting(split, parallel, share * model.parameters / gib)
    return None


def seconds(
    model: Model, gpus: int, setting: Setting, args: argparse.Namespace
) -> dict[str, float]:
    """Of each of PHASES."""
    n, peak = model.parameters, args.tflops * 1e12 * args.utilisation
    read = args.bandwidth * 1e12 * args.bandwidth_share
    link = (args.link if gpus <= 8 else args.network) * 1e9  # bytes/s and GPU
    rows = args.completions * setting.parallel / gpus
    weights = 2 * n / setting.parallel
    rows *= (
        args.tokens / args.longest
    )  # that are not finished yet, on average over the steps of decoding
    caches = rows * model.cache * (args.prompt + args.tokens / 2) / setting.parallel
    decode = (
        max((weights + caches) / read, 2 * n * rows / setting.parallel / peak) + args.overhead / 1e3
    )
    decode *= args.longest
    prefill = 2 * n * args.completions / args.group * args.prompt / gpus / peak
    tokens = args.completions * (args.prompt + args.tokens) / gpus
    kept = 1 - args.skipped
    passes = max(1, round(args.completions / gpus / args.micro_batch))
    moved = {"one GPU": 0.0, "DDP": 8 * n, "ZeRO-2": 4 * n * passes, "FSDP": 3 * 2 * n * passes}[
        setting.split
    ]
    found = {
        "generation": prefill + decode,
        "log-probs": 2 * n * tokens / peak,
        "backward": 8
        * n
        * tokens
        * kept
        / peak,  # forward, backward, and forward again: gradient checkpointing
        "communication": moved / link,
        "weight sync": 2 * n / read + (2 * n / link if setting.split == "FSDP" else 0.0),
    }
    return found | {"step": sum(found.values())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 4, 8, 16, 64])
    parser.add_argument("--completions", type=int, default=512, help="of a step (default: 512)")
    parser.add_argument(
        "--group", type=int, default=8, help="completions per question (default: 8)"
    )
    parser.add_argument(
        "--micro_batch", type=int, default=8, help="completions per GPU and pass (default: 8)"
    )
    parser.add_argument("--prompt", type=int, default=150, help="tokens (default: 150)")
    parser.add_argument(
        "--tokens", type=int, default=250, help="of a completion, mean (default: 250)"
    )
    parser.add_argument("--longest", type=int, default=1024, help="of a completion (default: 1024)")
    parser.add_argument(
        "--skipped", type=float, default=0.5, help="share of zero advantage (default: 0.5)"
    )
    parser.add_argument("--memory", type=float, default=80, help="GiB of a GPU (default: 80)")
    parser.add_argument(
        "--tflops", type=float, default=989, help="peak, dense bfloat16 (default: 989, an H100)"
    )
    parser.add_argument(
        "--bandwidth", type=float, default=3.35, help="of memory, TB/s (default: 3.35, an H100)"
    )
    parser.add_argument(
        "--link", type=float, default=300, help="GB/s and GPU in a node (default: 300, NVLink)"
    )
    parser.add_argument(
        "--network", type=float, default=40, help="GB/s and GPU between nodes (default: 40)"
    )
    parser.add_argument(
        "--utilisation", type=float, default=0.35, help="share of peak reached (default: 0.35)"
    )
    parser.add_argument(
        "--bandwidth_share", type=float, default=0.6, help="of bandwidth reached (default: 0.6)"
    )
    parser.add_argument(
        "--overhead", type=float, default=3.0, help="ms of vLLM per token (default: 3)"
    )
    args = parser.parse_args()
    print(f"| model | GPUs | weights | vLLM over | {' | '.join(PHASES)} |")
    print(f"|{' --- |' * (4 + len(PHASES))}")
    for name in args.models:
        for gpus in args.gpus:
            setting = choose(MODELS[name], gpus, args.memory)
            if setting is None:
                print(f"| {name} | {gpus} | does not fit |{' |' * (1 + len(PHASES))}")
                continue
            found = seconds(MODELS[name], gpus, setting, args)
            times = " | ".join(f"{found[phase]:.1f}" for phase in PHASES)
            print(f"| {name} | {gpus} | {setting.split} | {setting.parallel} | {times} |")


if __name__ == "__main__":
    main()
