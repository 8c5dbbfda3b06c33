"""Serve a model for training elsewhere: `vllm serve`, ready for new weights after each step.

    CUDA_VISIBLE_DEVICES=1 python serve_vllm.py Qwen/Qwen2.5-3B-Instruct --max_model_len 2048
    CUDA_VISIBLE_DEVICES=0 python train_grpo.py Qwen/Qwen2.5-3B-Instruct --use_vllm true \\
        --vllm_mode server

Its control endpoints ask for no password, so it listens on this machine alone, or with --host on a
private network. Flags that are not known here go to `vllm serve`. submit_grpo.slurm starts it on a
node of its own with VLLM_NODES=1.
"""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import os
import shutil
import socket
import sys
from pathlib import Path

from grpo_math.errors import UsageError, run


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", help="Hub id, folder, checkpoint or run")
    add("--host", default="127.0.0.1", help="to listen on (default: this machine alone)")
    add("--port", type=int, default=8000)
    copy = "GPUs that hold one copy (default: 1)"
    add("--tensor_parallel_size", type=int, default=1, help=copy)
    add("--max_model_len", type=int, default=4096, help="tokens of prompt and completion")
    return parser.parse_known_args()


def private_address(host: str) -> str:
    """Give the IPv4 address of a host name, of this machine's loopback or a private network.

    Raises:
        UsageError: the name has no address, or a public one.
    """
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        raise UsageError(f"--host {host}: cannot be resolved ({error.strerror})") from error
    if not ipaddress.ip_address(address).is_private or address == "0.0.0.0":
        reason = "where strangers may reach it, and the server asks for no password"
        way_out = "give an address of a private network"
        raise UsageError(f"--host {host}: is {address}, {reason}; {way_out}")
    return address


def find_program() -> str:
    """Find the command `vllm`, first beside this Python. Raises UsageError when there is none."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    program = shutil.which("vllm", path=os.pathsep.join(places))
    if program is None:
        raise UsageError("vllm is not installed: pip install vllm on a machine with a GPU")
    return program


def gpu_flags(tensor_parallel_size: int) -> list[str]:
    """Give the flags that spread the model over the GPUs here; none where there is no GPU."""
    import torch

    gpus = torch.cuda.device_count()
    if gpus % tensor_parallel_size:
        size = f"--tensor_parallel_size {tensor_parallel_size}"
        raise UsageError(f"{size}: does not divide the {gpus} GPUs here")
    if not gpus:
        if importlib.util.find_spec("vllm"):
            from grpo_math.generation.vllm_backend import check_device

            check_device()
        cannot = "cannot be given new weights (NCCL needs GPUs)"
        print(f"no GPU: this server answers, but {cannot}", file=sys.stderr)
        return []
    flags = ["--tensor-parallel-size", str(tensor_parallel_size)]
    flags += ["--data-parallel-size", str(gpus // tensor_parallel_size)]
    return [*flags, "--weight-transfer-config", '{"backend": "nccl"}']


def main() -> None:
    args, rest = parse_args()
    from grpo_math.models.source import resolve_model

    address = private_address(args.host)
    source = resolve_model(args.model)
    command = [find_program(), "serve", source.path, "--host", address, "--port", str(args.port)]
    command += ["--max-model-len", str(args.max_model_len)]
    # The probabilities that tokens were drawn with, which the trainer corrects for.
    command += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    command += gpu_flags(args.tensor_parallel_size)
    # The endpoints through which the trainer gives it weights.
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.execv(command[0], [*command, *rest])


if __name__ == "__main__":
    run(main)
