"""The model card of an exported model: what it is, how it was made, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from grpo_math.data.prompts import build_prompt
from grpo_math.data.styles import STYLES
from grpo_math.evaluation.reporting import percent
from grpo_math.publish.command import Arguments, public_path, training_command
from grpo_math.publish.measured import Measured, training_note
from grpo_math.run_folder import RunRecord

# The terms of the training data by task, and its name on the Hub.
MADE = "made by `prepare_arithmetic.py`; free of rights of others"
DATA = {
    "gsm8k": ("GSM8K, by OpenAI, MIT licence", "openai/gsm8k"),
    "math": ("MATH, by Hendrycks et al., MIT licence", None),
    "arithmetic": (f"sums and differences {MADE}", None),
    "polynomial": (f"polynomials {MADE}", None),
}
UNKNOWN_DATA = ("the user's own data; its licence is not known to this project", None)
# The arguments that a run is told from another by, in the order in which the card shows them.
ARGUMENTS = (
    "max_steps num_train_epochs learning_rate lr_scheduler_type warmup_steps weight_decay "
    "adam_beta1 adam_beta2 max_grad_norm per_device_train_batch_size gradient_accumulation_steps "
    "num_generations num_iterations max_completion_length temperature loss_type scale_rewards "
    "beta epsilon reward_weights seed bf16 dtype gradient_checkpointing use_vllm"
)
LORA = " lora_r lora_alpha lora_dropout lora_target_modules"


@dataclass(frozen=True)
class Card:
    """What a card is about; of `measured`, "before" says whether it is of the base model.

    `base` is the base model, `merged` whether a LoRA adapter went into it, and `defaults` are the
    arguments of a run for which none was given.
    """

    name: str
    record: RunRecord | None
    base: str | None
    merged: bool
    measured: list[tuple[Measured, bool]]
    defaults: Arguments

    def text(self) -> str:
        """Write the README.md of an exported model."""
        record = self.record
        parts = [_metadata(self), f"# {self.name}", _summary(self)]
        if record:
            parts += ["## How to ask it", _asking(record)]
        parts += ["## Measured", _results(self)]
        if record:
            parts += ["## Training data", _training_data(record), "## Training", _settings(record)]
            command = training_command(record, self.defaults, self.name)
            versions = ", ".join(f"{name} {each}" for name, each in record["versions"].items())
            parts += ["## To train it again", f"```bash\n{command}\n```", f"With {versions}."]
        licence = "The licence of the base model holds for these weights; see there."
        return "\n\n".join([*parts, "## Licence", licence]) + "\n"


def hub_id(base: str | None, record: RunRecord | None) -> str | None:
    """Give the base model's name if it is one on the Hub, and not a folder of some machine."""
    if base is None or Path(base).expanduser().is_dir():
        return None
    digest = str((record or {}).get("model_sha256", ""))
    if digest and (record or {}).get("model") == base:
        return base if digest.startswith("commit ") else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:  # of an adapter, whose base has just been loaded, or a run that recorded no digest
        cached = try_to_load_from_cache(base, "config.json")
    except HFValidationError:
        return None
    return base if isinstance(cached, str) else None


def _summary(card: Card) -> str:
    origin = "of unrecorded origin"
    if card.base:
        origin = f"made from `{public_path(card.base)}`"
        if not hub_id(card.base, card.record):
            origin += " (a model in a folder of its author)"
    text = f"A language model {origin}"
    if card.record:
        task = card.record["task"]
        text += f" by GRPO on questions of the task {task}, whose answers can be checked"
    text += "."
    if card.merged:
        text += " A LoRA adapter was trained and is merged into the weights."
    return text


def _asking(record: RunRecord) -> str:
    style = STYLES[record["prompt"]]
    prompt = build_prompt(style, "...", chat=record["chat"])
    if isinstance(prompt, str):
        stops = " and ".join(map(repr, style.stop))
        how = f"Plain text, to be stopped at {stops}:\n\n```\n{prompt}\n```"
    else:
        turns = "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
        how = f"Chat messages:\n\n```\n{turns}\n```"
    template = record["arguments"].get("chat_template_kwargs")
    if template:
        how += f"\n\nThe chat template is given `{template}`."
    return f"{how}\n\nA well-formed answer:\n\n```\n{style.example}\n```"


def _results(card: Card) -> str:
    """Give a line for each evaluation: of which model, how asked, and how right."""
    if not card.measured:
        why = "or the evaluation was not found at the export"
        return f"Nothing was measured with this project, {why}."
    head = ["model", "data", "questions x samples", "temperature"]
    head += ["strict accuracy [95% interval]", "lenient accuracy"]
    rows = [head, ["---"] * len(head)]
    for each, before in card.measured:
        name = card.name
        if before:
            name = f"`{public_path(str(card.base))}`, before"
        data = f"`{public_path(each.data)}`" + training_note(each, card.record or {})
        asked = data, f"{each.questions} x {each.samples}"
        accuracies = percent(each.strict), percent(each.lenient)
        rows.append([name, *asked, f"{each.temperature:g}", *accuracies])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    most = max(each.max_tokens for each, _ in card.measured)
    lines += [
        "",
        "Strict: right, and in the prompt style's format. Lenient: right in any recognisable form. "
        f"At most {most} tokens for an answer.",
    ]
    return "\n".join(lines)


def _training_data(record: RunRecord) -> str:
    data, terms = record["train_data"], DATA.get(record["task"], UNKNOWN_DATA)[0]
    text = f"`{public_path(data['path'])}`: {data['rows']:,} questions, "
    if difficulty := record.get("difficulty"):
        text += f"of which {difficulty['rows']:,} were chosen by their difficulty, "
    return f"{text}SHA-256 {data['sha256']}..., task {record['task']}: {terms}."


def _settings(record: RunRecord) -> str:
    arguments = record["arguments"]
    names = ARGUMENTS.split()
    if arguments.get("use_peft"):
        names += LORA.split()
    steps = arguments.get("max_steps") or 0
    names.remove("num_train_epochs" if steps > 0 else "max_steps")
    rewards = ", ".join(record["reward_funcs"])
    lines = [
        f"GRPO with TRL, rewards {rewards}, {record['world_size']} process(es); "
        "`run.json` holds every argument.",
        "",
        "| setting | value |",
        "| --- | --- |",
        *(f"| {name} | {arguments[name]} |" for name in names if arguments.get(name) is not None),
    ]
    return "\n".join(lines)


def _metadata(card: Card) -> str:
    """Give the block that the Hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    data = ModelCardData(
        base_model=hub_id(card.base, card.record),
        library_name="transformers",
        pipeline_tag="text-generation",
    )
    dataset = None
    if card.record:
        data.tags = ["grpo", "trl"]
        dataset = DATA.get(card.record["task"], UNKNOWN_DATA)[1]
    if dataset:
        data.datasets = [dataset]
    scores = []
    for each, before in card.measured:
        if before or training_note(each, card.record or {}):
            continue
        score = EvalResult(
            task_type="text-generation",
            dataset_type=dataset or "custom",
            dataset_name=public_path(each.data),
            metric_type="accuracy",
            metric_value=round(each.strict["accuracy"], 4),
        )
        scores.append(score)
    if scores:
        data.model_name, data.eval_results = card.name, scores
    return f"---\n{data.to_yaml()}\n---"
