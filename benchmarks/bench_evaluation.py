"""Evaluation without vLLM: this project's generation beside a loop of transformers' `generate` over fixed batches.

    OMP_NUM_THREADS=1 python benchmarks/bench_evaluation.py --write
    OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/bench_evaluation.py --vllm --write

Models of random weights in which some tokens end a completion, so that greedy answers are of mixed length. Both ways
generate the same answers, which are compared. With --vllm, vLLM is measured too, and transformers' continuous batching
with --continuous.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tables import machine, publish, ratio, spread, table

STARTER = Path(__file__).resolve().parent.parent / "starter_model"
# Layers of Qwen2.5-0.5B, 4 of its 24; 7 heads share keys and values.
QWEN = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 4,
    "layer_types": ["full_attention"] * 4,
}
QWEN |= {"num_attention_heads": 14, "num_key_value_heads": 2, "initializer_range": 0.1}


class Case(NamedTuple):
    name: str
    ends: int  # tokens, of 512, that end a completion
    cap: int
    answers: int = 256
    together: int = 64
    shape: dict[str, Any] = {"initializer_range": 0.1}  # noqa: RUF012


CASES = [
    Case("starter model, even", 6, 128),  # the cap cuts many
    Case("starter model, long-tailed", 12, 512),
    Case("4 layers of Qwen2.5-0.5B", 4, 256, 64, 32, QWEN),
]


def make_model(folder: Path, case: Case) -> None:
    """Random weights, the starter model's tokenizer, and so many tokens that end a completion."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(STARTER, tie_word_embeddings=False, **case.shape)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    GenerationConfig(
        eos_token_id=list(range(20, 20 + case.ends)), pad_token_id=508
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(STARTER / name, folder)


def random_prompts(count: int) -> list[list[int]]:
    """Of 20 to 60 tokens, longest first, as the evaluators sort them."""
    import torch

    noise = torch.Generator().manual_seed(0)
    sizes = torch.randint(20, 61, (count,), generator=noise).tolist()
    return sorted(
        (torch.randint(60, 500, (size,), generator=noise).tolist() for size in sizes),
        key=len,
        reverse=True,
    )


def fixed_batches(backend: Any, prompts: list[list[int]], sampling: Any) -> list[str]:
    """What one writes first: `generate` on one batch after another, each until its longest answer is finished."""
    import torch
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=sampling.max_tokens,
        do_sample=False,
        eos_token_id=backend.end_tokens,
        pad_token_id=508,
    )
    texts = []
    for start in range(0, len(prompts), backend.in_flight):
        inputs = backend.tokenizer.pad(
            {"input_ids": prompts[start : start + backend.in_flight]},
            padding_side="left",
            return_tensors="pt",
        ).to(backend.model.device)
        with torch.inference_mode():
            output = backend.model.generate(**inputs, generation_config=config)
        texts += backend.tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return texts


def continuous_batching(backend: Any, prompts: list[list[int]], sampling: Any) -> list[str]:
    """transformers' own."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=sampling.max_tokens,
        do_sample=False,
        eos_token_id=backend.end_tokens,
        pad_token_id=508,
    )
    outputs = backend.model.generate_batch(prompts, generation_config=config, progress_bar=False)
    return [
        backend.tokenizer.decode(output.generated_tokens, skip_special_tokens=True)
        for output in outputs.values()
    ]


def this_project(backend: Any, prompts: list[list[int]], sampling: Any) -> list[str]:
    return [completions[0].text for completions in backend.generate(prompts, sampling)]


def timed(clock: Callable[[], float], function: Callable[[], list[str]]) -> tuple[float, list[str]]:
    started = clock()
    texts = function()
    return clock() - started, texts


def measure(case: Case, args: argparse.Namespace) -> list[list[object]]:
    """Lines of the table for one case."""
    from grpo_math.generation.backend import EngineOptions, Sampling
    from grpo_math.generation.transformers_backend import TransformersBackend
    from grpo_math.models.loading import Loading, load_tokenizer
    from grpo_math.models.source import ModelSource

    clock = time.process_time if args.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), case)
        source, loading = ModelSource(folder, "random", None), Loading("float32")
        options = EngineOptions(batch_size=case.answers)
        tokenizer = load_tokenizer(source, loading)
        backend = TransformersBackend(source, loading, tokenizer, 60 + case.cap, options)
        backend.in_flight = case.together
        prompts, sampling = random_prompts(case.answers), Sampling(1, 0.0, 1.0, 0, case.cap, 0, ())
        ways: dict[str, Callable[[], list[str]]] = {
            "`generate` over fixed batches": lambda: fixed_batches(backend, prompts, sampling),
            "this project, without vLLM": lambda: this_project(backend, prompts, sampling),
        }
        if args.continuous:
            ways["transformers' continuous batching"] = lambda: continuous_batching(
                backend, prompts, sampling
            )
        if args.vllm:
            from grpo_math.generation.vllm_backend import VllmBackend

            vllm = VllmBackend(source, loading, tokenizer, 60 + case.cap, options)
            ways["this project, with vLLM"] = lambda: this_project(vllm, prompts, sampling)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(args.rounds + 1):
            results = {way: timed(clock, function) for way, function in ways.items()}
            for way, (seconds, _) in results.items():
                times[way] += [seconds] if number else []  # the first warms up
        expected = results["`generate` over fixed batches"][1]
        sizes = sorted(completions[0].tokens for completions in backend.generate(prompts, sampling))
    shown = f"{case.name}: {case.answers} answers of {sizes[0]} to {sizes[-1]} tokens, median {sizes[len(sizes) // 2]}, "
    shown += f"{case.together} at a time"
    lines = []
    for way, seconds in times.items():
        same = sum(a == b for a, b in zip(results[way][1], expected, strict=True))
        per_second = f"{sum(sizes) / statistics.median(seconds):,.0f}"
        faster = ratio(times["`generate` over fixed batches"], seconds)
        lines.append([shown, way, spread(seconds), per_second, faster, f"{same}/{len(expected)}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="of which medians are taken (default: 5)"
    )
    parser.add_argument("--vllm", action="store_true", help="measure vLLM, too")
    parser.add_argument(
        "--continuous", action="store_true", help="measure transformers' continuous batching, too"
    )
    parser.add_argument(
        "--cpu_time",
        action="store_true",
        help="for a machine that others use: CPU time, not wall time",
    )
    parser.add_argument(
        "--write", action="store_true", help="put the table into benchmarks/README.md"
    )
    args = parser.parse_args()
    lines = [line for case in CASES for line in measure(case, args)]
    header = [
        "answers",
        "",
        "s",
        "tokens/s",
        "times as fast as fixed batches",
        "same greedy answers",
    ]
    text = (
        f"{machine('transformers', *(['vllm'] if args.vllm else []))}\n\nRandom weights, float32; "
    )
    text += f"{'CPU' if args.cpu_time else 'wall'} time, medians (and range) of {args.rounds} interleaved rounds.\n\n"
    text += table(header, lines)
    publish("evaluation with vLLM" if args.vllm else "evaluation", text, args.write)


if __name__ == "__main__":
    main()
