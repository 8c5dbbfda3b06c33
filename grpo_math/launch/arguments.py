"""Read the arguments of `train_grpo.py`: the project's own, and TRL's under their own names.

Defaults < machine < YAML recipe (`--config`) < command line. The project's own are read first and
without TRL, whose import takes seconds, so that `--help` and most mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from grpo_math.data.styles import STYLES
from grpo_math.errors import UsageError
from grpo_math.launch.training_data import QUESTION_SAMPLING, DataOptions, add_data_flags
from grpo_math.rewards.build import graded_place
from grpo_math.rewards.functions import REGISTRY

if TYPE_CHECKING:
    from trl import TrlParser

Arguments = Mapping[str, object]  # of TRL, by name

# What this project sets otherwise than TRL, and why.
DEFAULTS: Arguments = {
    # Dr. GRPO (arXiv 2503.20783): no division by a completion's own length, none by the group's
    # deviation, no KL.
    "loss_type": "dr_grpo",
    "scale_rewards": "none",
    "beta": 0.0,
    "gradient_accumulation_steps": 4,
    # TRL's 256 cuts more than half of a 0.5B model's GSM8K answers.
    "max_completion_length": 512,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
    "logging_steps": 1,
    "save_steps": 50,
    "save_total_limit": 3,
    "eval_steps": 50,  # of --eval_size
    # TRL samples with it: what is trained would not be what has written the completions.
    "lora_dropout": 0.0,
    "log_completions": True,
    "num_completions_to_print": 0,
    "report_to": ["tensorboard"],
    "project": "grpo-math",  # of W&B and Trackio
}
REWARDS = ["accuracy", "format", "length"]
# What --advantage says in TRL's terms; TRL has no advantages without a baseline.
SCALE_REWARDS = {"no_baseline": None, "group_mean": "none", "group_normalized": "group"}
# Arguments of TRL that are needed before TRL is imported.
READ_AHEAD = ("model_name_or_path", "model_revision", "chat_template_kwargs")

COMMON_TRL_FLAGS = """\
TRL's and transformers' flags, under their own names (most changed ones; --help_all lists all):
  --output_dir DIR                     run folder (default: outputs/MODEL-TASK)
  --learning_rate LR                   (default: 1e-6)
  --max_steps N                        optimizer steps; overrides --num_train_epochs (default: 3.0 epochs)
  --per_device_train_batch_size N      completions per device and micro-batch (default: 8)
  --gradient_accumulation_steps N      micro-batches per step (default: 4)
  --num_generations G                  completions per question, the group (default: 8)
  --max_completion_length N            tokens; longer completions are cut (default: 512)
  --eval_steps N                       steps between measurements of --eval_size (default: 50)
  --temperature T                      of sampling in training (default: 1.0)
  --loss_type NAME                     (default: dr_grpo, with --advantage group_mean and --beta 0)
  --report_to NAME ...                 tensorboard, wandb, trackio, none (default: tensorboard, and wandb if logged in)
  --reward_weights W ...               one for each reward (default: 1 0.25 0.5 for the default rewards, else 1 each)
  --use_vllm false                     generate with transformers (default: vLLM, where it is installed on a GPU)
  --use_peft true                      train a LoRA adapter (--lora_r, --lora_alpha, ...)
"""  # noqa: E501


@dataclass(kw_only=True)
class Options(DataOptions):
    """The project's own arguments, and TRL's as given, in the recipe and in the `rest` of the line.

    `model` is the one that is meant, wherever it was named.
    """

    model: str | None
    config: str | None
    prompt: str | None
    reward_funcs: list[str]
    resume: bool
    dry_run: bool
    give_up_after: int
    help_all: bool
    recipe: dict[str, Any]
    rest: list[str]
    advantage: str | None = None
    skip_zero_advantage: bool = True
    model_revision: str = "main"
    chat_template_kwargs: object = None

    def gives(self, name: str) -> bool:
        """Tell whether the recipe or the command line sets TRL's argument `name`."""
        return name in self.recipe or any(word.split("=")[0] == f"--{name}" for word in self.rest)


def parse_options(argv: list[str], doc: str) -> Options:
    """Read the project's own arguments from a recipe and the command line.

    Raises:
        UsageError: the recipe cannot be read, a flag has no usable value, or two models are named.
    """
    argv = [_spelled(word) for word in argv]
    parser = _own_parser(doc)
    config = parser.parse_known_args(argv)[0].config
    recipe = _read_recipe(config) if config else {}
    known = {action.dest for action in parser._actions}
    own = known - {*READ_AHEAD}
    settings = {key: value for key, value in recipe.items() if key in known}
    parser.set_defaults(**(settings | {"model_name_or_path": None}))
    # Unknown flags are TRL's, and a value behind one would pass for the model: MODEL comes first.
    first = argv[0] if argv and not argv[0].startswith("-") else None
    namespace, rest = parser.parse_known_args(argv[1:] if first else argv)
    values = vars(namespace)
    flag = values.pop("model_name_or_path")
    if first and flag and first != flag:
        raise UsageError(f"MODEL {first} and --model_name_or_path {flag}: give one of the two")
    model = first or flag or recipe.get("model_name_or_path")
    trl_recipe = {key: value for key, value in recipe.items() if key not in own}
    options = Options(**values, model=model, recipe=trl_recipe, rest=rest)
    _check_sampling(options)
    return options


def _check_sampling(options: Options) -> None:
    chosen = options.question_sampling
    if chosen not in QUESTION_SAMPLING:
        raise UsageError(
            f"--question_sampling {chosen}: must be one of {', '.join(QUESTION_SAMPLING)}"
        )
    if chosen == "informative" and graded_place(options.reward_funcs) is None:
        raise UsageError(
            "--question_sampling informative: learns from accuracy what the model can do; add "
            "accuracy or accuracy_lenient to --reward_funcs"
        )


def _spelled(word: str) -> str:
    """Spell a flag with underscores; transformers takes dashes as well."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, like every error here."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _own_parser(doc: str) -> argparse.ArgumentParser:
    parser = _Parser(
        usage="%(prog)s MODEL [--config YAML] [flags]",
        description=doc,
        epilog=COMMON_TRL_FLAGS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    text = "recipe: flags as `name: value`; the command line wins"
    add("--config", metavar="YAML", help=text)
    add_data_flags(parser)
    text = "how answers are checked: a known name or the dotted path of your own "
    add("--task", help=text + "(default: what the rows say)")
    text = "prompt style (default: the one that the model was trained in, else the task's): "
    add("--prompt", help=text + ", ".join(STYLES))
    text = f"(default: {' '.join(REWARDS)}) dotted paths of your own, or, with settings as in "
    text += f"accuracy:wrong=-1: {', '.join(REGISTRY)}"
    add("--reward_funcs", nargs="+", metavar="NAME", default=REWARDS, help=text)
    text = "no_baseline (the reward itself), group_mean (less its group's mean; the default), or "
    text += "group_normalized (and divided by the group's standard deviation)"
    add("--advantage", type=_advantage, metavar="NAME", help=text)
    text = "train on no completion and padding that add nothing to the gradient (default: true, "
    text += "where that is exact)"
    add("--skip_zero_advantage", type=_truth, default=True, metavar="BOOL", help=text)
    add("--resume", action="store_true", help="insist on continuing from a checkpoint of this run")
    text = "stop after N steps in a row in which nothing could be learned (default: 50; 0: never)"
    add("--give_up_after", type=int, default=50, metavar="N", help=text)
    text = "print what the run would take and whether it can work; load no weights"
    add("--dry_run", action="store_true", help=text)
    add("--help_all", action="store_true", help="all flags, TRL's and transformers' included")
    add("--model_name_or_path", help=argparse.SUPPRESS)
    add("--model_revision", default="main", help=argparse.SUPPRESS)
    add("--chat_template_kwargs", help=argparse.SUPPRESS)
    return parser


def _advantage(text: str) -> str:
    if text not in SCALE_REWARDS:
        known = ", ".join(SCALE_REWARDS)
        raise argparse.ArgumentTypeError(f"unknown advantage {text!r}: known are {known}")
    return text


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def read_mapping(value: object, flag: str) -> dict[str, object]:
    """Read an argument that is a mapping: JSON on the command line, empty where it is not given."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{flag} {value}: must be a JSON object, such as '{{\"name\": true}}'")
    return value


def _read_recipe(path: str) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"--config {path}: not a YAML file ({reason})") from error
    if not isinstance(recipe, dict):
        raise UsageError(f"--config {path}: must hold lines of `name: value`")
    return recipe


def trl_parser() -> TrlParser:
    """Make TRL's own parser of GRPOConfig and ModelConfig, with this project's defaults."""
    from trl import GRPOConfig, ModelConfig, TrlParser

    class Parser(_Parser, TrlParser):
        pass

    parser = Parser((GRPOConfig, ModelConfig), allow_abbrev=False)  # type: ignore[arg-type]
    parser.set_defaults(**DEFAULTS)
    # A list, which TRL's parser would read as one name.
    report_to = next(action for action in parser._actions if action.dest == "report_to")
    report_to.nargs = "+"
    return parser


def parse_trl_arguments(options: Options, machine: Arguments) -> argparse.Namespace:
    """Read TRL's arguments from the machine's defaults, the recipe and the command line.

    Raises:
        UsageError: a key of the recipe or a flag is unknown, or a value cannot be read.
    """
    parser = trl_parser()
    known = {action.dest: action for action in parser._actions}
    for key, value in options.recipe.items():
        if key not in known:
            raise UsageError(
                f"--config {options.config}: unknown key {key!r}{_suggest(key, known)}"
            )
        choices = known[key].choices  # argparse looks at those of flags alone
        if choices and value not in choices:
            raise UsageError(
                f"--config {options.config}: {key}: {value!r} is none of {', '.join(choices)}"
            )
    parser.set_defaults(**machine)
    parser.set_defaults(**options.recipe)
    parser.set_defaults(
        model_name_or_path=options.model,
        model_revision=options.model_revision,
        chat_template_kwargs=options.chat_template_kwargs,
    )
    namespace, unknown = parser.parse_known_args(options.rest)
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-")
        own = {action.dest for action in _own_parser("")._actions}
        if not unknown[0].startswith("-"):
            raise UsageError(f"unexpected {unknown[0]!r}: MODEL comes first, before any flag")
        raise UsageError(f"unknown argument {unknown[0]!r}{_suggest(name, {*known, *own})}")
    return namespace


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]!r}?" if close else "; --help_all lists all"
