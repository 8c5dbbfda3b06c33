"""Choose the services that a run reports to, and let it go on there as the same run."""

from __future__ import annotations

import importlib.util
import json
import netrc
import os
import secrets
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_math.errors import UsageError, first_line
from grpo_math.files import write_text_atomic
from grpo_math.launch.arguments import read_mapping
from grpo_math.run_folder import IDENTITY
from grpo_math.terminal import is_main_process

if TYPE_CHECKING:
    from trl import GRPOConfig

SERVICES = ("tensorboard", "wandb", "trackio")


def choose_trackers(given: Namespace, chosen: bool, say: Callable[[str], None]) -> list[str]:
    """Name the services to report to: those `chosen`, else W&B as well when logged in there.

    Without a login, or where its server cannot be reached, W&B is kept offline, under the run's
    folder. Trackio is local unless --trackio_space_id is given.

    Raises:
        UsageError: a service is not known or not installed, or an argument holds a token.
    """
    refuse_tokens(given)
    named = given.report_to
    if isinstance(named, str):  # in a recipe
        named = [named]
    services = [name for name in named if name != "none"]
    if not chosen and wandb_login() and importlib.util.find_spec("wandb"):
        services = ["tensorboard", "wandb"]
    for name in services:
        if name not in SERVICES:
            known = ", ".join(SERVICES)
            raise UsageError(f"--report_to {name}: known services are {known}, and none")
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"--report_to {name}: is not installed; pip install -c constraints.txt {name}"
            )
    if "wandb" in services and "WANDB_MODE" not in os.environ:
        logged_out = "not logged in (wandb login, or WANDB_API_KEY)"
        missing = wandb_silence() if wandb_login() else logged_out
        if missing:
            os.environ["WANDB_MODE"] = "offline"
            say(f"W&B: {missing}, so the run is kept offline; `wandb sync` sends it later")
    return services


def wandb_silence() -> str | None:
    """Say why W&B's server cannot be spoken with; `wandb.init` would try for a minute and raise."""
    import httpx

    server = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    try:
        httpx.head(server, timeout=10)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        # It answers where a certificate is wrong, and W&B may know some that httpx does not.
        if "CERTIFICATE" not in str(error):
            return f"{server} cannot be reached ({first_line(error)})"
    return None


def wandb_login() -> bool:
    """Tell whether there is a key for W&B, in the environment or where `wandb login` puts it."""
    try:
        stored = netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        stored = False
    return stored or bool(os.environ.get("WANDB_API_KEY"))


def refuse_tokens(given: Namespace) -> None:
    """Refuse tokens among the arguments, which are recorded, shown in reports and sent out."""
    way_out = "would be recorded with the run; use `hf auth login` or HF_TOKEN"
    if given.hub_token:
        raise UsageError(f"--hub_token: {way_out}")
    if "token" in read_mapping(given.model_init_kwargs, "--model_init_kwargs"):
        raise UsageError(f"--model_init_kwargs token: {way_out}")


def identify_run(args: GRPOConfig) -> None:
    """Give the run the id and name that it keeps with every service, however often it is continued.

    W&B goes by the id, Trackio by the name: so a name that was not chosen ends in a part of the id.
    What the environment sets (WANDB_RUN_ID, WANDB_DIR, ...) stands.

    Raises:
        UsageError: the file that holds id and name cannot be read or written.
    """
    if not is_main_process():
        return  # only the main process reports
    folder = Path(args.output_dir).resolve()
    path = folder / IDENTITY
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        run_id = os.environ.get("WANDB_RUN_ID") or known.get("id") or secrets.token_hex(4)
        args.run_name = args.run_name or known.get("name") or f"{folder.name}-{run_id[:4]}"
    except (OSError, ValueError, AttributeError) as error:
        reason = f"cannot be read ({error}); delete it to go on as a new run of W&B"
        raise UsageError(f"{path}: {reason}") from error
    write_text_atomic(path, json.dumps({"id": run_id, "name": args.run_name}) + "\n")
    wanted = {"RUN_ID": run_id, "RESUME": "allow", "DIR": str(folder), "PROJECT": args.project}
    for name, value in wanted.items():
        os.environ.setdefault(f"WANDB_{name}", value)
