"""The command that trains a model again: where its run's record differs from the defaults."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import cast

from grpo_math.data.styles import STYLES
from grpo_math.run_folder import FREE, RunRecord

Arguments = Mapping[str, object]  # TRL's, by name

# A run may change these when it goes on, and they matter.
STEPS = ("max_steps", "num_train_epochs")
# Their defaults are the machine's, and so are other ones elsewhere.
ALWAYS = ("bf16", "use_vllm", "attn_implementation")
# Said otherwise, or made by TRL from other arguments, or of a machine without a GPU.
NEVER = {"model_name_or_path", "generation_batch_size", "generation_kwargs"}
NEVER |= {"use_cpu", "ddp_backend", "dataloader_pin_memory"}


def matters(argument: str) -> bool:
    """Tell whether training depends on an argument: others tell only of the machine it ran on."""
    return argument in STEPS or not FREE.fullmatch(argument)


def public_path(path: str) -> str:
    """Give a path as others may read it: from the working folder, and elsewhere its last part."""
    full = Path(path).expanduser()
    if not full.is_absolute():
        return path
    here = Path.cwd()
    return str(full.relative_to(here)) if full.is_relative_to(here) else full.name


def public_record(record: RunRecord) -> RunRecord:
    """Give a run's record without what tells only of the machine that it ran on."""
    kept: dict[str, object] = {**record}
    kept.pop("model_at", None)
    arguments = record["arguments"]
    kept["arguments"] = {name: arguments[name] for name in arguments if matters(name)}
    return cast(RunRecord, _without_paths(kept))


def _without_paths(value: object) -> object:
    """Shorten every absolute path in a setting; a text such as a stop string is none."""
    if isinstance(value, dict):
        return {name: _without_paths(each) for name, each in value.items()}
    if isinstance(value, list):
        return list(map(_without_paths, value))
    if isinstance(value, str) and value.startswith(("/", "~/")) and value.count("/") > 1:
        return public_path(value)
    return value


def training_command(record: RunRecord, defaults: Arguments, name: str) -> str:
    """Give the command that trains a model again, from the project's folder, as lines for a shell.

    `defaults` are the arguments of a run for which none was given, `name` is the model's.
    """
    record = public_record(record)
    lines = [[*_launcher(record), record["model"]], *_own_flags(record)]
    lines += differing_flags(record, defaults)
    lines.append(["--output_dir", f"outputs/{name}-again"])
    return " \\\n    ".join(map(shlex.join, lines))


def _launcher(record: RunRecord) -> list[str]:
    processes = record["world_size"]
    if processes == 1:
        return ["python", "train_grpo.py"]
    config = "cpu" if record["arguments"].get("use_cpu") else "ddp"
    config_file = f"accelerate_configs/{config}.yaml"
    launch = ["accelerate", "launch", "--config_file", config_file]
    return [*launch, "--num_processes", str(processes), "train_grpo.py"]


def _own_flags(record: RunRecord) -> Iterator[list[str]]:
    """Give the project's own flags, which choose data, prompt and rewards."""
    yield ["--train_data", record["train_data"]["path"]]
    if held_out := record.get("eval_data"):
        yield ["--eval_size", str(held_out["questions"])]
        yield ["--eval_data", held_out["path"]]
    if difficulty := record.get("difficulty"):
        yield ["--difficulty", difficulty["path"]]
        yield ["--min_pass", str(difficulty["min_pass"])]
        yield ["--max_pass", str(difficulty["max_pass"])]
    yield ["--task", record["task"], "--prompt", record["prompt"]]
    yield ["--reward_funcs", *record["reward_funcs"]]
    if "advantage" in record:
        yield ["--advantage", record["advantage"]]


def differing_flags(record: RunRecord, defaults: Arguments) -> Iterator[list[str]]:
    """Give TRL's flags with other values than the defaults."""
    arguments = record["arguments"]
    for name, value in arguments.items():
        if value is None or name in NEVER or not matters(name):
            continue
        default = defaults.get(name)
        if name == "steps_per_generation":
            default = arguments["gradient_accumulation_steps"]
        if name in ALWAYS or value != default:
            yield [f"--{name}", *_words(value)]
    own = _without_stop(record, arguments.get("generation_kwargs") or {})
    if own:
        yield ["--generation_kwargs", json.dumps(own)]


def _without_stop(record: RunRecord, generation: Arguments) -> Arguments:
    """Leave out the stop strings of the prompt style, which it brings by itself."""
    style = STYLES.get(record["prompt"])
    stop = generation.get("stop_strings", generation.get("stop"))
    if style is None or stop != list(style.stop):
        return generation
    brought = ("stop_strings", "stop", "include_stop_str_in_output")
    return {name: value for name, value in generation.items() if name not in brought}


def _words(value: object) -> Iterable[str]:
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, list):
        return map(str, value)
    if isinstance(value, dict):
        return [json.dumps(value)]
    return [str(value)]
