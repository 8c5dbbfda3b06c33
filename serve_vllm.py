"""Serve a model for training elsewhere: `vllm serve`, ready to be given new weights after each step.

    CUDA_VISIBLE_DEVICES=1 python serve_vllm.py Qwen/Qwen2.5-3B-Instruct --max_model_len 2048
    CUDA_VISIBLE_DEVICES=0 python train_grpo.py Qwen/Qwen2.5-3B-Instruct --use_vllm true --vllm_mode server

Its control endpoints ask for no password, so it listens on this machine alone, or with --host on a private network.
Flags that are not known here go to `vllm serve`. submit_grpo.slurm starts it on a node of its own with VLLM_NODES=1.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import shutil
import socket
import sys
from pathlib import Path

from grpo_math.errors import UsageError, run
from grpo_math.models.source import resolve_model


def private_address(host: str) -> str:
    """The IPv4 address of a host name, which must be this machine's loopback or on a private network.

    Raises:
        UsageError: the name has no address, or a public one.
    """
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        raise UsageError(f"--host {host}: cannot be resolved ({error.strerror})") from error
    if not ipaddress.ip_address(address).is_private or address == "0.0.0.0":
        raise UsageError(
            f"--host {host}: is {address}, where strangers may reach it, and the server asks for no password; give an "
            "address of a private network"
        )
    return address


def visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="Hub id, folder, checkpoint or run")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--tensor_parallel_size", type=int, default=1, help="GPUs that hold one copy (default: 1)"
    )
    parser.add_argument(
        "--max_model_len", type=int, default=4096, help="tokens of prompt and completion together"
    )
    args, rest = parser.parse_known_args()
    address = private_address(args.host)
    source = resolve_model(args.model)
    program = shutil.which(
        "vllm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    if program is None:
        raise UsageError("vllm is not installed: pip install vllm on a machine with a GPU")
    gpus = visible_gpus()
    if gpus % args.tensor_parallel_size:
        raise UsageError(
            f"--tensor_parallel_size {args.tensor_parallel_size}: does not divide the {gpus} GPUs here"
        )
    command = [program, "serve", source.path, "--host", address, "--port", str(args.port)]
    command += ["--max-model-len", str(args.max_model_len)]
    # The probabilities that tokens were drawn with, which the trainer corrects for.
    command += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    if gpus:
        command += ["--tensor-parallel-size", str(args.tensor_parallel_size)]
        command += ["--data-parallel-size", str(gpus // args.tensor_parallel_size)]
        command += ["--weight-transfer-config", '{"backend": "nccl"}']
    else:
        print(
            "no GPU: this server answers, but cannot be given new weights (NCCL needs GPUs)",
            file=sys.stderr,
        )
    os.environ["VLLM_SERVER_DEV_MODE"] = (
        "1"  # the endpoints through which the trainer gives it weights
    )
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.execv(program, [*command, *rest])


if __name__ == "__main__":
    run(main)
