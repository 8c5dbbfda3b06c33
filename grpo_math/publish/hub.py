"""The Hub, where an exported model may go: checked before any work is done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from grpo_math.errors import UsageError


def check_push(name: str, private: bool) -> str:
    """Give the full name of the repository, which the login may write to and is not too public.

    Raises:
        UsageError: the name or the login will not do, or the repository is public and shall not be.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    with _one_line(name):
        validate_repo_id(name)
    if get_token() is None:
        raise UsageError("--push_to_hub: not logged in; `hf auth login`, or set HF_TOKEN")
    with _one_line(name):
        api = HfApi()
        user = api.whoami()["name"]
        full = name if "/" in name else f"{user}/{name}"
        public = False
        with contextlib.suppress(RepositoryNotFoundError):
            public = not api.model_info(full).private
    if public and private:
        way_out = "choose another name, or give --public"
        raise UsageError(f"--push_to_hub: {full} exists and is public; {way_out}")
    return full


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder to a model repository, made when it is not there; give its address.

    Raises:
        UsageError: the Hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    message = f"Export of {folder.name}"
    with _one_line(name):
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    return f"{api.endpoint}/{name}"


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Say what goes wrong with the Hub, without the token."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split()).replace(get_token() or "\0", "[token]")
        raise UsageError(f"--push_to_hub {name}: the Hub did not take it ({said[:300]})") from None
