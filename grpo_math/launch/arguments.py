"""Arguments of `train_grpo.py`: the project's own, then TRL's and transformers' under their own names.

Defaults < YAML recipe (`--config`) < command line. The project's own are read first and without TRL, whose import takes
seconds, so that `--help` and most mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from grpo_math.data.prompts import STYLES
from grpo_math.errors import UsageError
from grpo_math.launch.training_data import DataOptions, add_data_flags
from grpo_math.rewards.functions import REGISTRY

if TYPE_CHECKING:
    from trl import GRPOConfig, ModelConfig

# What this project sets otherwise than TRL, and why.
DEFAULTS: dict[str, Any] = {
    # Dr. GRPO (arXiv 2503.20783): no division by a completion's own length, none by the group's deviation, no KL.
    "loss_type": "dr_grpo",
    "scale_rewards": "none",
    "beta": 0.0,
    "gradient_accumulation_steps": 4,
    "max_completion_length": 512,  # TRL's 256 cuts more than half of a 0.5B model's GSM8K answers
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
    "logging_steps": 1,
    "save_steps": 50,
    "save_total_limit": 3,
    "eval_steps": 50,  # of --eval_size
    "lora_dropout": 0.0,  # TRL samples with it: what is trained would not be what has written the completions
    "log_completions": True,
    "num_completions_to_print": 0,
    "report_to": ["tensorboard"],
    "project": "grpo-math",  # of W&B and Trackio
}
REWARDS = ["accuracy", "format", "length"]
# Of the rewards above, when neither names nor weights are given. Halves and quarters add up exactly in floats: with a
# weight of 0.2, TRL takes the rounding of equal rewards for variance, and frac_reward_zero_std stays 0.
REWARD_WEIGHTS = [1.0, 0.25, 0.5]
# What --advantage says in TRL's terms; TRL has no advantages without a baseline.
SCALE_REWARDS = {"no_baseline": None, "group_mean": "none", "group_normalized": "group"}

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
"""


@dataclass(kw_only=True)
class Options(DataOptions):
    """The project's own arguments, and TRL's as they were given: `recipe` from YAML, `rest` from the command line."""

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

    def gives(self, name: str) -> bool:
        """Whether the recipe or the command line sets TRL's argument `name`."""
        return name in self.recipe or any(word.split("=")[0] == f"--{name}" for word in self.rest)


def parse_options(argv: list[str], doc: str) -> Options:
    """Read the project's own arguments from a recipe and the command line.

    Raises:
        UsageError: the recipe cannot be read, or an own flag has no usable value.
    """
    parser = _own_parser(doc)
    config = _config_path(argv)
    recipe = _read_recipe(config) if config else {}
    own = {action.dest for action in parser._actions}
    parser.set_defaults(**{key: value for key, value in recipe.items() if key in own})
    # Unknown flags are TRL's, and a value behind one would pass for the model: so the model comes first.
    model = argv[:1] if argv and not argv[0].startswith("-") else []
    namespace, rest = parser.parse_known_args(argv[len(model) :])
    namespace.model = model[0] if model else recipe.get("model_name_or_path")
    trl_recipe = {key: value for key, value in recipe.items() if key not in own}
    return Options(**vars(namespace), recipe=trl_recipe, rest=rest)


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
    parser.add_argument(
        "--config", metavar="YAML", help="recipe: any flag as `name: value`; the command line wins"
    )
    add_data_flags(parser)
    parser.add_argument(
        "--task",
        help="how answers are checked: a known name or the dotted path of your own (default: what the rows say)",
    )
    parser.add_argument("--prompt", help=f"prompt style (default: the task's): {', '.join(STYLES)}")
    parser.add_argument(
        "--reward_funcs",
        nargs="+",
        metavar="NAME",
        default=REWARDS,
        help=f"(default: {' '.join(REWARDS)}) dotted paths of your own, or, with settings as in accuracy:wrong=-1: "
        f"{', '.join(REGISTRY)}",
    )
    parser.add_argument(
        "--advantage",
        type=_advantage,
        metavar="NAME",
        help="no_baseline (the reward itself), group_mean (less its group's mean; the default), or group_normalized "
        "(and divided by the group's standard deviation)",
    )
    parser.add_argument(
        "--skip_zero_advantage",
        type=_truth,
        default=True,
        metavar="BOOL",
        help="train on no completion and padding that add nothing to the gradient (default: true, where that is exact)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="insist on continuing from a checkpoint of this run"
    )
    parser.add_argument(
        "--give_up_after",
        type=int,
        default=50,
        metavar="N",
        help="stop after N steps in a row in which nothing could be learned (default: 50; 0: never)",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print what the run would take and whether it can work; load no weights",
    )
    parser.add_argument(
        "--help_all", action="store_true", help="all flags, TRL's and transformers' included"
    )
    return parser


def _advantage(text: str) -> str:
    if text not in SCALE_REWARDS:
        raise argparse.ArgumentTypeError(
            f"unknown advantage {text!r}: known are {', '.join(SCALE_REWARDS)}"
        )
    return text


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _config_path(argv: list[str]) -> str | None:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    return parser.parse_known_args(argv)[0].config


def _read_recipe(path: str) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--config {path}: not a YAML file ({' '.join(str(error).split())[:200]})"
        ) from error
    if not isinstance(recipe, dict):
        raise UsageError(f"--config {path}: must hold lines of `name: value`")
    return recipe


def trl_parser() -> Any:
    """TRL's own parser of GRPOConfig and ModelConfig, with this project's defaults. Imports TRL."""
    from trl import GRPOConfig, ModelConfig, TrlParser

    class Parser(_Parser, TrlParser):
        pass

    make: Any = Parser  # argparse's signature hides TRL's
    parser = make((GRPOConfig, ModelConfig), allow_abbrev=False)
    parser.set_defaults(**DEFAULTS)
    next(
        action for action in parser._actions if action.dest == "report_to"
    ).nargs = "+"  # a list, read as one name
    return parser


def parse_trl_arguments(options: Options, machine: dict[str, Any]) -> argparse.Namespace:
    """TRL's arguments from the machine's defaults, the recipe and the command line, not yet made into its dataclasses.

    Raises:
        UsageError: a key of the recipe or a flag is unknown, or a value cannot be read.
    """
    parser = trl_parser()
    known = {action.dest for action in parser._actions}
    parser.set_defaults(**machine)
    for key in options.recipe:
        if key not in known:
            raise UsageError(
                f"--config {options.config}: unknown key {key!r}{_suggest(key, known)}"
            )
    parser.set_defaults(**options.recipe)
    namespace, unknown = parser.parse_known_args(options.rest)
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-")
        own = {action.dest for action in _own_parser("")._actions}
        if not unknown[0].startswith("-"):
            raise UsageError(f"unexpected {unknown[0]!r}: MODEL comes first, before any flag")
        raise UsageError(f"unknown argument {unknown[0]!r}{_suggest(name, known | own)}")
    return namespace


def set_advantage(options: Options, arguments: argparse.Namespace) -> None:
    """Put `--advantage` into TRL's arguments.

    Raises:
        UsageError: TRL's own arguments ask for other advantages.
    """
    if options.advantage is None:
        return
    scale = SCALE_REWARDS[options.advantage]
    if options.gives("scale_rewards") and arguments.scale_rewards != scale:
        raise UsageError(
            f"--advantage {options.advantage} and --scale_rewards {arguments.scale_rewards}: give one of the two"
        )
    if arguments.multi_objective_aggregation != "sum_then_normalize":
        raise UsageError(
            f"--advantage {options.advantage} and --multi_objective_aggregation "
            f"{arguments.multi_objective_aggregation}: give one of the two"
        )
    arguments.scale_rewards = scale or arguments.scale_rewards


def build_configs(namespace: argparse.Namespace) -> tuple[GRPOConfig, ModelConfig]:
    """TRL's dataclasses from a parsed namespace.

    Raises:
        UsageError: TRL refuses the combination; its own words are passed on.
    """
    from dataclasses import fields

    from trl import GRPOConfig, ModelConfig

    values = vars(namespace)
    try:
        return tuple(
            kind(
                **{
                    field.name: values[field.name]
                    for field in fields(kind)
                    if field.init and field.name in values
                }
            )
            for kind in (GRPOConfig, ModelConfig)
        )
    except (ValueError, ImportError, TypeError) as error:
        raise UsageError(" ".join(str(error).split())) from error


def _suggest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]!r}?" if close else "; --help_all lists all"
