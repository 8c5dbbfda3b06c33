"""The model card of an exported model: what it is, how it was made, what was measured, and on what terms."""

from __future__ import annotations

import shlex
from typing import Any, cast

from grpo_math.data.prompts import build_prompt
from grpo_math.data.styles import STYLES
from grpo_math.evaluation.reporting import percent
from grpo_math.run_folder import RunRecord

# The terms of the training data by task, and its name on the Hub.
DATA = {
    "gsm8k": ("GSM8K, by OpenAI, MIT licence", "openai/gsm8k"),
    "math": ("MATH, by Hendrycks et al., MIT licence", None),
    "arithmetic": (
        "sums and differences made by `prepare_arithmetic.py`; free of rights of others",
        None,
    ),
    "polynomial": ("polynomials made by `prepare_arithmetic.py`; free of rights of others", None),
}
UNKNOWN_DATA = ("the user's own data; its licence is not known to this project", None)
# The arguments that a run is told from another by, in the order in which the card shows them.
ARGUMENTS = (
    *(
        "max_steps",
        "num_train_epochs",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
    ),
    *(
        "adam_beta1",
        "adam_beta2",
        "max_grad_norm",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
    ),
    *(
        "num_generations",
        "num_iterations",
        "max_completion_length",
        "temperature",
        "loss_type",
        "scale_rewards",
    ),
    *(
        "beta",
        "epsilon",
        "reward_weights",
        "seed",
        "bf16",
        "dtype",
        "gradient_checkpointing",
        "use_vllm",
    ),
)
LORA = ("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")


def training_settings(record: RunRecord) -> dict[str, Any]:
    """The settings of a run that are worth a line, by TRL's and transformers' names."""
    arguments = record["arguments"]
    names = ARGUMENTS + (LORA if arguments.get("use_peft") else ())
    unused = "num_train_epochs" if (arguments.get("max_steps") or 0) > 0 else "max_steps"
    return {
        name: arguments[name]
        for name in names
        if arguments.get(name) is not None and name != unused
    }


def training_command(record: RunRecord) -> str:
    """The command that trains this model again, from the project's folder."""
    words = [
        "python",
        "train_grpo.py",
        record["model"],
        "--train_data",
        record["train_data"]["path"],
    ]
    words += [
        "--task",
        record["task"],
        "--prompt",
        record["prompt"],
        "--reward_funcs",
        *record["reward_funcs"],
    ]
    words += ["--advantage", record["advantage"]] if "advantage" in record else []
    lines = [shlex.join(words)]
    for name, value in training_settings(record).items():
        values = value if isinstance(value, list) else [value]
        text = [str(item).lower() if isinstance(item, bool) else str(item) for item in values]
        lines.append(shlex.join([f"--{name}", *text]))
    return " \\\n    ".join(lines)


def results_table(measured: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """A line for each evaluation: which model ("this model" or the base), settings and results."""
    if not measured:
        return [
            "Nothing was measured with this project, or the evaluation was not found at the export."
        ]
    lines = [
        "| model | data | questions x samples | temperature | strict accuracy [95% interval] | lenient accuracy |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, info in measured:
        settings, results = info["settings"], info["results"]
        lines.append(
            f"| {name} | `{settings['data']}` | {results['questions']} x {results['samples_per_question']} | "
            f"{settings['temperature']:g} | {percent(results['strict'])} | {percent(results['lenient'])} |"
        )
    return [
        *lines,
        "",
        "Strict: right, and in the prompt style's format. Lenient: right in any recognisable form. At most "
        f"{max(info['settings']['max_tokens'] for _, info in measured)} tokens for an answer.",
    ]


def model_card(
    name: str,
    record: RunRecord | None,
    base: str | None,
    merged: bool,
    measured: list[tuple[str, dict[str, Any]]],
) -> str:
    """The README.md of an exported model. `base` is its base model, `merged` whether a LoRA adapter went into it."""
    parts = [_metadata(name, record, base, measured), f"# {name}", _summary(record, base, merged)]
    if record:
        parts += ["## How to ask it", _asking(record)]
    parts += ["## Measured", "\n".join(results_table(measured))]
    if record:
        terms, _ = DATA.get(record["task"], UNKNOWN_DATA)
        data = record["train_data"]
        rows = [f"| {key} | {value} |" for key, value in training_settings(record).items()]
        versions = ", ".join(
            f"{package} {version}" for package, version in record["versions"].items()
        )
        parts += [
            "## Training data",
            f"`{data['path']}`: {data['rows']:,} questions, SHA-256 {data['sha256']}..., task {record['task']}: "
            f"{terms}.",
            "## Training",
            "\n".join(
                [
                    f"GRPO with TRL, rewards {', '.join(record['reward_funcs'])}, {record['world_size']} process(es); "
                    "`run.json` holds every argument.",
                    "",
                    "| setting | value |",
                    "| --- | --- |",
                    *rows,
                ]
            ),
            "## To train it again",
            f"```bash\n{training_command(record)}\n```",
            f"With {versions}.",
        ]
    parts += ["## Licence", "The licence of the base model holds for these weights; see there."]
    return "\n\n".join(parts) + "\n"


def _summary(record: RunRecord | None, base: str | None, merged: bool) -> str:
    origin = f"made from `{base}`" if base else "of unrecorded origin"
    how = (
        f" by GRPO on questions of the task {record['task']}, whose answers can be checked"
        if record
        else ""
    )
    lora = " A LoRA adapter was trained and is merged into the weights." if merged else ""
    return f"A language model {origin}{how}.{lora}"


def _asking(record: RunRecord) -> str:
    style = STYLES[record["prompt"]]
    if record["chat"]:
        messages = cast(list[dict[str, str]], build_prompt(style, "...", chat=True))
        turns = "\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)
        how = f"Chat messages:\n\n```\n{turns}\n```"
    else:
        stops = " and ".join(repr(stop) for stop in style.stop)
        prompt = build_prompt(style, "...", chat=False)
        how = f"Plain text, to be stopped at {stops}:\n\n```\n{prompt}\n```"
    return f"{how}\n\nA well-formed answer:\n\n```\n{style.example}\n```"


def _metadata(
    name: str,
    record: RunRecord | None,
    base: str | None,
    measured: list[tuple[str, dict[str, Any]]],
) -> str:
    """The block that the Hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    dataset = DATA.get((record or {}).get("task", ""), UNKNOWN_DATA)[1]
    scores = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset or "custom",
            dataset_name=info["settings"]["data"],
            metric_type="accuracy",
            metric_value=round(info["results"]["strict"]["accuracy"], 4),
        )
        for model, info in measured
        if model == name
    ]
    on_hub = base is not None and base.count("/") == 1 and not base.startswith((".", "~", "/"))
    data = ModelCardData(
        base_model=base if on_hub else None,
        datasets=[dataset] if dataset else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["grpo", "trl"] if record else None,
        model_name=name if scores else None,
        eval_results=scores or None,
    )
    return f"---\n{data.to_yaml()}\n---"
