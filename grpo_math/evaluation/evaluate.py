"""The evaluation itself, the same for both evaluators: ask, grade, save, and go on after a stop.

Files of an evaluation called NAME:

    evals/NAME.jsonl          one row per completion, with its verdict; appended as they come
    evals/NAME.json           every setting, versions and digests; `results` once it is complete
    evals/NAME_analysis.txt   the same for a person, with examples

Strict accuracy counts right answers in the prompt style's own format, lenient accuracy those in
any recognisable form.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from grpo_math.data.prompts import Asking, asks_in_chat, recorded_asking
from grpo_math.data.rows import fingerprint, load_rows
from grpo_math.data.tasks import Row, choose_style, grade
from grpo_math.errors import UsageError, first_line
from grpo_math.evaluation.identity import (
    asked_settings,
    same_question,
    sampling_settings,
    versions,
)
from grpo_math.evaluation.options import check_arguments
from grpo_math.evaluation.progress import Live
from grpo_math.evaluation.reporting import analysis, result_lines
from grpo_math.evaluation.results import GradedRow, ResultsFile, column
from grpo_math.files import write_text_atomic
from grpo_math.generation.backend import Backend, Completion, EngineOptions, Sampling, check_context
from grpo_math.models.fingerprint import model_identity
from grpo_math.models.loading import Loading, load_config, load_tokenizer, resolve_dtype
from grpo_math.models.source import ModelSource, resolve_model


@dataclass(frozen=True)
class Questions:
    """What is asked: rows, each one's prompt as token ids, and how the prompts were made."""

    rows: list[Row]
    prompts: list[list[int]]
    asking: Asking


def evaluate(args: argparse.Namespace, backend_class: type[Backend]) -> None:
    """Run one of the two evaluators with its parsed arguments and print the results.

    Raises:
        UsageError: an argument, the data, the model or the output files cannot be used.
    """
    check_arguments(args)
    source = resolve_model(args.model, args.revision)
    loading = Loading(args.dtype, args.revision, args.trust_remote_code)
    rows = load_rows(args.data, args.task)[: args.num_samples]
    name, template = recorded_asking(source.record)
    asking = Asking(choose_style(args.prompt or name, rows), template)
    config = load_config(source, loading)
    tokenizer = load_tokenizer(source, loading)
    questions = ask(rows, asking, args.chat_template_kwargs, tokenizer)
    longest_prompt = max(map(len, questions.prompts))
    context = getattr(config, "max_position_embeddings", None)
    check_context(longest_prompt, args.max_tokens, context, "--max_tokens")
    sampling = Sampling(
        n=args.n,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        max_tokens=args.max_tokens,
        seed=args.seed,
        stop=asking.stop(tokenizer),
    )
    batch_size = args.batch_size or backend_class.default_batch
    own = {f.name: getattr(args, f.name) for f in fields(EngineOptions) if hasattr(args, f.name)}
    options = EngineOptions(**own)
    settings = {
        "model": source.path,
        **model_identity(source, config),
        "data": args.data,
        "data_sha256": fingerprint(args.data),
        **asked_settings(questions.rows, questions.prompts, questions.asking, tokenizer),
        **sampling_settings(sampling),
        "batch_size": batch_size,
        "dtype": resolve_dtype(args.dtype),
        **backend_class.settings(options),
    }
    path = args.output_dir / f"{args.name or default_name(source, args.data)}.jsonl"
    file = ResultsFile(path, settings, {"versions": versions(backend_class.packages)})
    warn_of_repeated(args.data, questions.rows)
    if file.results is None:
        print(f"loading {source.path}", flush=True)
        longest = longest_prompt + args.max_tokens
        backend = backend_class(source, loading, tokenizer, longest, options)
        file.begin()
        run_batches(backend, questions, sampling, batch_size, file)
    else:
        print(f"{path}: finished already")
    assert file.results is not None  # an evaluation ends with them
    print(f"{source.name} on {args.data}, prompt style {asking.style.name}")
    print("\n".join(result_lines(file.results)))
    print(f"rows in {path}, examples in {analysis_path(path)}")


def ask(
    rows: list[Row], asking: Asking, template: dict[str, object] | None, tokenizer: Any
) -> Questions:
    """Build the prompts, with the chat template's arguments given, else those of training.

    Raises:
        UsageError: arguments were given and the model has no use for them.
    """
    if template is not None:
        asking = Asking(asking.style, template)
        if template and not asks_in_chat(asking.style, tokenizer):
            raise UsageError(
                "--chat_template_kwargs: this model is asked in plain text, without a chat template"
                f" (prompt style {asking.style.name}); leave it out"
            )
    try:
        texts = [row["question"] for row in rows]
        prompts = asking.token_ids(asking.prompts(texts, tokenizer), tokenizer)
    except Exception as error:  # a template raises what it likes
        if not asking.template:
            raise
        raise UsageError(
            f"--chat_template_kwargs {json.dumps(dict(asking.template))}: the chat template does "
            f"not take them ({first_line(error)})"
        ) from error
    return Questions(rows, prompts, asking)


def warn_of_repeated(data: str, rows: list[Row]) -> None:
    """Say that questions are there more than once, which makes less of a file than its rows."""
    texts = [same_question(row["question"]) for row in rows]
    if repeated := len(texts) - len(set(texts)):
        print(
            f"warning: {data}: {repeated} of {len(texts)} questions repeat another one; the "
            "intervals take equal questions for one"
        )


def run_batches(
    backend: Backend, questions: Questions, sampling: Sampling, batch_size: int, file: ResultsFile
) -> None:
    """Generate and grade what is missing.

    The longest prompts come first, so that memory runs out at once or never. Batches are the same
    in every run of the same settings and each has a seed of its own, so a resumed evaluation ends
    with the rows that an uninterrupted one would have had.
    """
    rows, prompts = questions.rows, questions.prompts
    per_batch = max(1, batch_size // sampling.n)
    order = sorted(range(len(rows)), key=lambda i: -len(prompts[i]))
    batches = [order[i : i + per_batch] for i in range(0, len(order), per_batch)]
    complete = file.resume([len(batch) * sampling.n for batch in batches])
    asked = sum(map(len, batches[:complete]))
    if complete:
        print(f"{file.path}: going on after {asked} of {len(rows)} questions")
    right = graded = 0
    with Live(len(rows) * sampling.n, asked * sampling.n) as live:
        for number, batch in enumerate(batches[complete:], start=complete):
            seeded = replace(sampling, seed=sampling.seed + number)
            completions = backend.generate([prompts[i] for i in batch], seeded, live)
            new = graded_rows(backend, questions, batch, completions)
            file.append(new)
            asked += len(batch)
            right += sum(column(new, "strict"))
            graded += len(new)
            live.saved(graded, sum(column(new, "tokens")))
            so_far = f"{asked}/{len(rows)} questions  strict so far {right / graded:.1%}"
            print(f"{so_far}  {live.speed()}  {live.seconds():.0f} s", flush=True)
    speed = round(live.tokens / live.seconds(), 1)
    finished = file.finish([row["id"] for row in rows], {"tokens_per_second": speed})
    write_text_atomic(analysis_path(file.path), analysis(file.info, finished))


def graded_rows(
    backend: Backend,
    questions: Questions,
    batch: list[int],
    completions: list[list[Completion]],
) -> list[GradedRow]:
    """Grade the completions of some questions, which are given by their numbers."""
    new = []
    for number, samples in zip(batch, completions, strict=True):
        prompt = backend.tokenizer.decode(questions.prompts[number])
        for sample, completion in enumerate(samples):
            row = questions.rows[number]
            new.append(graded_row(row, prompt, sample, completion, questions.asking))
    return new


def graded_row(
    row: Row, prompt: str, sample: int, completion: Completion, asking: Asking
) -> GradedRow:
    """Grade a completion, the question's `sample`th from 0."""
    verdict = grade(row, completion.text, asking.style)
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
