"""Plan a run: all that is known of it, and checked, before the model's weights are loaded."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo_math.data.prompts import Asking, Prompt, asks_in_chat, recorded_asking
from grpo_math.data.styles import style_record
from grpo_math.data.tasks import Row, choose_style
from grpo_math.errors import UsageError, first_line
from grpo_math.launch.arguments import Options, read_mapping
from grpo_math.launch.processes import rank_line
from grpo_math.launch.settle import UNRECORDED, Facts
from grpo_math.launch.training_data import TrainingData
from grpo_math.models.fingerprint import starting_model
from grpo_math.models.loading import Loading, load_config, load_tokenizer
from grpo_math.models.source import ModelSource, resolve_model
from grpo_math.rewards.build import RewardFunction
from grpo_math.run_folder import RunRecord, build_record
from grpo_math.terminal import say

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase
    from trl import GRPOConfig, ModelConfig

# What TRL means by these columns is not what a row does, or they never reach a reward.
TRL_COLUMNS = {
    *("prompt", "prompts", "completion", "completions", "completion_ids", "image", "images"),
    *("environment", "environments", "trainer_state", "log_extra", "log_metric"),
}


@dataclass(frozen=True)
class Model:
    """A model without its weights."""

    source: ModelSource
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Questions:
    """What is asked: the training set, and the held-out rows with their prompts as token ids.

    `longest_prompt` is that of both, in tokens. `rates` are known pass rates, by id, where
    questions are drawn by what they can teach, else None.
    """

    dataset: Dataset
    held_out: list[Row]
    held_out_prompts: list[list[int]]
    longest_prompt: int
    rates: dict[str, float] | None


@dataclass(frozen=True)
class Plan:
    """A run as it is known before its weights are loaded; `lines` are for a person."""

    model: Model
    asking: Asking
    questions: Questions
    rewards: list[RewardFunction]
    args: GRPOConfig
    model_args: ModelConfig
    record: RunRecord
    lines: list[str]


def find_model(options: Options) -> ModelSource:
    """Find the weights to begin with.

    Raises:
        UsageError: no model is named, or there is none of that name.
    """
    if options.model is None:
        message = "no model: python train_grpo.py MODEL, where MODEL is a Hub id or a folder"
        raise UsageError(message)
    return resolve_model(options.model, options.model_revision)


def choose_asking(options: Options, rows: list[Row], source: ModelSource) -> tuple[Asking, str]:
    """Choose how questions are asked, and say in a line how and why.

    What is not chosen is as the model was trained, else as the task has it.
    """
    recorded, recorded_template = recorded_asking(source.record)
    style = choose_style(options.prompt or recorded, rows)
    template = recorded_template
    if options.chat_template_kwargs is not None:
        template = read_mapping(options.chat_template_kwargs, "--chat_template_kwargs")
    origin = f"the one that {source.name} was trained in"
    if options.prompt:
        origin = "as chosen"
    elif not recorded:
        origin = f"the default of task {rows[0]['task']}"
    line = f"prompt style {style.name}, {origin}"
    if options.chat_template_kwargs and not style.chat:
        raise UsageError(
            f"--chat_template_kwargs: prompt style {style.name} uses no chat template; leave it out"
        )
    if template:
        line += f"; chat template with {template}"
    return Asking(style, template), line


def read_model(source: ModelSource, given: Namespace) -> Model:
    """Read the model's configuration and tokenizer."""
    loading = Loading(revision=given.model_revision, trust_remote_code=given.trust_remote_code)
    return Model(source, load_config(source, loading), load_tokenizer(source, loading))


def build_questions(data: TrainingData, asking: Asking, model: Model) -> Questions:
    """Build the training set and the held-out prompts."""
    prompts = asking.prompts([row["question"] for row in data.rows], model.tokenizer)
    held_out = asking.prompts([row["question"] for row in data.held_out], model.tokenizer)
    held_out_ids = asking.token_ids(held_out, model.tokenizer)
    all_ids = asking.token_ids(prompts, model.tokenizer) + held_out_ids
    longest = max(map(len, all_ids))
    return Questions(
        build_dataset(data.rows, prompts), data.held_out, held_out_ids, longest, data.rates
    )


def build_dataset(rows: list[Row], prompts: list[Prompt]) -> Dataset:
    """Give a row per question: its prompt, and for the rewards every field that any row has.

    A field that a row lacks is None there. One whose name TRL uses is called `row_NAME`.
    """
    from datasets import Dataset

    columns: dict[str, list[object]] = {}
    for number, row in enumerate(rows):
        for key, value in row.items():
            name = f"row_{key}" if key in TRL_COLUMNS else key
            if name != key and name in row:
                raise UsageError(f"fields {key!r} and {name!r} of the rows: give one of the two")
            columns.setdefault(name, [None] * len(rows))[number] = value
    for name, values in columns.items():
        try:
            Dataset.from_dict({name: values})
        except Exception as error:  # pyarrow's errors for mixed types share no base of their own
            reason = first_line(error)
            raise UsageError(f"field {name!r} of the rows: not of one type ({reason})") from error
    return Dataset.from_dict(columns | {"prompt": prompts})


def collect_facts(model: Model, asking: Asking, questions: Questions, task: str) -> Facts:
    """Collect what TRL's arguments take from the model and the data."""
    return Facts(
        name=f"{model.source.name}-{task}",
        path=model.source.path,
        longest_prompt=questions.longest_prompt,
        context=getattr(model.config.get_text_config(), "max_position_embeddings", None),
        stop=asking.stop(model.tokenizer),
        template=asking.template,
    )


def describe_run(
    options: Options,
    data: TrainingData,
    given: Namespace,
    model: Model,
    asking: Asking,
    settled: tuple[GRPOConfig, ModelConfig],
) -> RunRecord:
    """Write the run's record: every argument, and what TRL does not know."""
    own = {
        "model": model.source.path,
        "task": data.rows[0]["task"],
        **style_record(asking.style),
        "chat": asks_in_chat(asking.style, model.tokenizer),
        **data.record,
        "reward_funcs": options.reward_funcs,
    }
    if options.advantage == "no_baseline":  # the others are TRL's
        own["advantage"] = options.advantage
    if not options.dry_run:  # which is not to read all weights for a digest
        own |= starting_model(model.source, model.config, settled[0].output_dir)
    record = build_record(*settled, own)
    record["arguments"] |= {name: getattr(given, name) for name in UNRECORDED}
    return record


def show(plan: Plan) -> None:
    """Print what the run would take, on every rank of the launch, without its weights."""
    from trl import get_peft_config

    from grpo_math.launch.memory import count_parameters, estimate, memory_lines

    args, model_args, longest = plan.args, plan.model_args, plan.questions.longest_prompt
    parameters = count_parameters(plan.model.config, get_peft_config(model_args))
    parts = estimate(parameters, plan.model.config, args, model_args, longest)
    first = plan.asking.token_ids([plan.questions.dataset[0]["prompt"]], plan.model.tokenizer)[0]
    print(rank_line(args.device), flush=True)
    for line in [
        *plan.lines,
        f"model        {plan.model.source.path}: {parameters.total:,} parameters, "
        f"{parameters.trained:,} of them trained",
        f"prompts      at most {longest} tokens, completions at most {args.max_completion_length}",
        *memory_lines(parts, args),
        f"first prompt {plan.model.tokenizer.decode(first)!r}",
    ]:
        say(line)
