"""A real vLLM server beside a trainer: waited for, watched, and left alone while it is well: make test-vllm."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from conftest import ROOT, STARTER, vllm_environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real server of the starter model, in a process group of its own, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    log = (folder / "log").open("w")
    command = [sys.executable, ROOT / "serve_vllm.py", STARTER, "--port", port, "--max_model_len", 256]
    process = subprocess.Popen(
        [str(part) for part in [*command, "--enforce-eager"]],
        stdout=log,
        stderr=log,
        env=vllm_environment(folder),
        start_new_session=True,
    )
    yield process, f"http://127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


WATCHER = """
import sys, time
from grpo_math.launch.vllm_server import ServerWatch, wait_for_server
wait_for_server(sys.argv[1], 300, print)
class Generation:
    def sync_weights(self):
        time.sleep(float(sys.argv[2]))
generation = Generation()
ServerWatch(sys.argv[1], 4).start(generation)
print("watching", flush=True)
generation.sync_weights()
print("transferred", flush=True)
time.sleep(60)
"""


def watcher(url, transfer):
    command = [sys.executable, "-c", WATCHER, url, str(transfer)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("watching"):
            return process
    raise AssertionError(process.stderr.read())


def test_a_silent_server_and_a_transfer_that_hangs_end_the_trainer(server):
    process, url = server
    hanging = watcher(url, 60)
    assert hanging.wait(30) == 1 and "giving weights to" in hanging.stderr.read()
    waiting = watcher(url, 0)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(8)  # longer than its limit: a healthy server is left alone
    os.killpg(process.pid, signal.SIGSTOP)
    assert waiting.wait(40) == 1 and "has been silent for 4 s" in waiting.stderr.read()
