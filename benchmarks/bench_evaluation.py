"""Evaluation without vLLM: this project's generation beside a loop of transformers' `generate` over fixed batches.

    OMP_NUM_THREADS=1 python benchmarks/bench_evaluation.py --write
    OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/bench_evaluation.py --vllm --write

A model of random weights in the starter model's shape, in which some tokens end a completion, so that greedy answers
are of mixed length. Both generate the same 256 answers, 64 at a time, and the answers are compared. With --vllm, vLLM
is measured too, and transformers' continuous batching with --continuous.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tables import machine, publish, ratio, spread, table

STARTER = Path(__file__).resolve().parent.parent / "starter_model"
ANSWERS, TOGETHER = 256, 64
# Name, tokens of 512 that end a completion, and the cap: one where the cap cuts many, one where few answers are long.
CASES = [("even", 6, 128), ("long-tailed", 12, 512)]


def make_model(folder: Path, ends: int) -> None:
    """Random weights, the starter model's tokenizer, and so many tokens that end a completion."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(STARTER, initializer_range=0.1, tie_word_embeddings=False)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    GenerationConfig(eos_token_id=list(range(20, 20 + ends)), pad_token_id=508).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(STARTER / name, folder)


def random_prompts() -> list[list[int]]:
    """Of 20 to 60 tokens, longest first, as the evaluators sort them."""
    import torch

    noise = torch.Generator().manual_seed(0)
    sizes = torch.randint(20, 61, (ANSWERS,), generator=noise).tolist()
    return sorted((torch.randint(60, 500, (size,), generator=noise).tolist() for size in sizes), key=len, reverse=True)


def fixed_batches(backend: Any, prompts: list[list[int]], sampling: Any) -> list[str]:
    """What one writes first: `generate` on one batch after another, each until its longest answer is finished."""
    import torch
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=sampling.max_tokens, do_sample=False, eos_token_id=backend.end_tokens, pad_token_id=508
    )
    texts = []
    for start in range(0, len(prompts), TOGETHER):
        inputs = backend.tokenizer.pad(
            {"input_ids": prompts[start : start + TOGETHER]}, padding_side="left", return_tensors="pt"
        ).to(backend.model.device)
        with torch.inference_mode():
            output = backend.model.generate(**inputs, generation_config=config)
        texts += backend.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def continuous_batching(backend: Any, prompts: list[list[int]], sampling: Any) -> list[str]:
    """transformers' own."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=sampling.max_tokens, do_sample=False, eos_token_id=backend.end_tokens, pad_token_id=508
    )
    outputs = backend.model.generate_batch(prompts, generation_config=config, progress_bar=False)
    return [backend.tokenizer.decode(output.generated_tokens, skip_special_tokens=True) for output in outputs.values()]


def this_project(backend: Any, prompts: list[list[int]], sampling: Any) -> list[str]:
    return [completions[0].text for completions in backend.generate(prompts, sampling)]


def timed(clock: Callable[[], float], function: Callable[[], list[str]]) -> tuple[float, list[str]]:
    started = clock()
    texts = function()
    return clock() - started, texts


def measure(name: str, ends: int, cap: int, args: argparse.Namespace) -> list[list[object]]:
    """Lines of the table for one distribution of lengths."""
    from grpo_math.generation import Loading, Sampling, load_tokenizer
    from grpo_math.runs import ModelSource
    from grpo_math.transformers_generation import TransformersBackend

    clock = time.process_time if args.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), ends)
        source, loading, options = ModelSource(folder, "random", None), Loading("float32"), argparse.Namespace()
        options.batch_size, options.seed, options.tensor_parallel_size, options.gpu_memory_utilization = (
            ANSWERS,
            0,
            1,
            0.9,
        )
        tokenizer = load_tokenizer(source, loading)
        backend = TransformersBackend(source, loading, tokenizer, 60 + cap, options)
        backend.in_flight = TOGETHER
        prompts, sampling = random_prompts(), Sampling(1, 0.0, 1.0, 0, cap, 0, ())
        ways: dict[str, Callable[[], list[str]]] = {
            "`generate` over fixed batches": lambda: fixed_batches(backend, prompts, sampling),
            "this project, without vLLM": lambda: this_project(backend, prompts, sampling),
        }
        if args.continuous:
            ways["transformers' continuous batching"] = lambda: continuous_batching(backend, prompts, sampling)
        if args.vllm:
            from grpo_math.vllm_generation import VllmBackend

            vllm = VllmBackend(source, loading, tokenizer, 60 + cap, options)
            ways["this project, with vLLM"] = lambda: this_project(vllm, prompts, sampling)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(args.rounds + 1):
            results = {way: timed(clock, function) for way, function in ways.items()}
            for way, (seconds, _) in results.items():
                times[way] += [seconds] if number else []  # the first warms up
        expected = results["`generate` over fixed batches"][1]
        sizes = sorted(completions[0].tokens for completions in backend.generate(prompts, sampling))
    shown = f"{name}: {sizes[0]} to {sizes[-1]} tokens, median {sizes[len(sizes) // 2]}"
    lines = []
    for way, seconds in times.items():
        same = sum(a == b for a, b in zip(results[way][1], expected, strict=True))
        per_second = f"{sum(sizes) / statistics.median(seconds):,.0f}"
        faster = ratio(times["`generate` over fixed batches"], seconds)
        lines.append([shown, way, spread(seconds), per_second, faster, f"{same}/{len(expected)}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of which medians are taken (default: 5)")
    parser.add_argument("--vllm", action="store_true", help="measure vLLM, too")
    parser.add_argument("--continuous", action="store_true", help="measure transformers' continuous batching, too")
    parser.add_argument(
        "--cpu_time", action="store_true", help="for a machine that others use: CPU time, not wall time"
    )
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    args = parser.parse_args()
    lines = [line for case in CASES for line in measure(*case, args)]
    header = ["answers", "", "s", "tokens/s", "times as fast as fixed batches", "same greedy answers"]
    text = f"{machine('transformers', *(['vllm'] if args.vllm else []))}\n\n{ANSWERS} answers, {TOGETHER} at a time, "
    text += f"random weights in the starter model's shape, float32; {'CPU' if args.cpu_time else 'wall'} time, medians "
    text += f"(and range) of {args.rounds} interleaved rounds.\n\n{table(header, lines)}"
    publish("evaluation with vLLM" if args.vllm else "evaluation", text, args.write)


if __name__ == "__main__":
    main()
