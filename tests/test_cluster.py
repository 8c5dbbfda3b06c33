"""The Slurm script on a real cluster: munged, slurmctld and two slurmd on this machine: make test-cluster.

Needs root and Debian's packages slurm-wlm and munge. The nodes are called 127.0.0.1 and 127.0.0.2, so that their names
resolve everywhere; their GPUs are device files that only Slurm counts. Two nodes share the cores of one machine, so
every process has one thread.
"""

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from grpo_math.data.problems import sum_problems

from conftest import ROOT, STARTER, read_rows, write_jsonl

pytestmark = pytest.mark.slow
VLLM_VENV = str(ROOT / ".venv-vllm")
SMALL = [
    *("--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 2, "--num_generations", 4),
    *("--max_completion_length", 12, "--gradient_checkpointing", "false", "--reward_funcs", "accuracy", "format"),
    *("--report_to", "none", "--learning_rate", "1e-4", "--train_data", "train.jsonl"),
]
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=26817
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=requeue_delay=1
SchedulerTimeSlice=5
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=20
GresTypes=gpu
MpiDefault=none
NodeName=127.0.0.[1-2] NodeHostname={host} Port=[27001-27002] CPUs=4 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:2
"""


def run(*command, **kwargs):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60, **kwargs)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A running cluster of two nodes, known to sbatch and its friends through SLURM_CONF."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, host=socket.gethostname().split(".")[0]))
    (folder / "gres.conf").write_text("NodeName=127.0.0.[1-2] Name=gpu File=/dev/tty[0-1]\n")
    os.environ["SLURM_CONF"] = str(conf)
    key = Path("/etc/munge/munge.key")
    if not key.exists():
        run("mungekey", "--create", "--keyfile", key)
    run("chown", "munge:munge", key)
    Path("/run/munge").mkdir(exist_ok=True)
    run("chown", "munge:munge", "/run/munge")
    if subprocess.run(["munge", "-n"], capture_output=True).returncode:
        run("runuser", "-u", "munge", "--", "munged")
    daemons = [subprocess.Popen(["slurmctld", "-D"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]
    for node in ("127.0.0.1", "127.0.0.2"):
        (folder / node).mkdir()
        daemons.append(
            subprocess.Popen(["slurmd", "-D", "-N", node], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
    try:
        ready = ["sinfo", "-h", "-t", "idle", "-o", "%D"]
        wait_for(lambda: subprocess.run(ready, capture_output=True, text=True).stdout.strip() == "2", 60)
        yield folder
        subprocess.run(["scancel", "--user=root"], capture_output=True)
        wait_for(lambda: not run("squeue", "-h"), 60)
    finally:
        for daemon in reversed(daemons):
            daemon.kill()
            daemon.wait(20)


def wait_for(condition, timeout):
    deadline = time.time() + timeout
    while time.time() < deadline:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError(f"not within {timeout} s")


def make_project(folder):
    """The project as it is checked out, seen from a folder of its own, with data."""
    for name in ("submit_grpo.slurm", "train_grpo.py", "serve_vllm.py", "grpo_math", "accelerate_configs", "recipes"):
        (folder / name).symlink_to(ROOT / name)
    problems = sum_problems(300, -9, 9, seed=1)
    rows = [{"question": p.question, "answer": str(p.answer), "task": "arithmetic"} for p in problems]
    write_jsonl(folder / "train.jsonl", rows)


@pytest.fixture
def project(cluster, tmp_path):
    make_project(tmp_path)
    return tmp_path


class Job:
    def __init__(self, project, *arguments, options=(), **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_JOB", "WANDB", "HF_"))}
        env = clean | {"VENV": str(Path(os.sys.executable).parent.parent), "OMP_NUM_THREADS": "1", **environment}
        env |= {"HF_HUB_OFFLINE": "1", "ACCELERATE_CONFIG": environment.get("ACCELERATE_CONFIG", "cpu")}
        command = ["sbatch", "--parsable", *options, "submit_grpo.slurm", *arguments]
        (project / "logs").mkdir(exist_ok=True)  # sbatch itself does not make it
        self.id = run(*command, cwd=project, env=env)
        self.log_file = project / f"logs/grpo-{self.id}.log"

    def field(self, name):
        return re.search(rf"\b{name}=(\S+)", run("scontrol", "show", "job", self.id))[1]

    def log(self):
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def saw(self, text, timeout=240):
        wait_for(lambda: text in self.log() or self.ended(), timeout)
        assert text in self.log(), self.log()[-3000:]
        return self

    def ended(self):
        return self.field("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def wait(self, state="COMPLETED", timeout=400):
        wait_for(self.ended, timeout)
        assert self.field("JobState") == state, self.log()[-5000:]
        return self.log()


def steps(run_dir):
    rows = read_rows(run_dir / "metrics.jsonl")
    return {row["step"]: (row["grad_norm"], row["reward"]) for row in rows if "reward" in row}


def test_two_nodes_train(project):
    log = Job(project, STARTER, *SMALL, "--max_steps", 2, "--output_dir", "run", options=["--nodes=2"]).wait()
    assert "2 x 1 processes" in log and "8 questions x 4 completions = 32" in log
    assert list(steps(project / "run")) == [1, 2]
    assert log.splitlines()[-1].endswith("has done its work")


LONG = [*SMALL, "--max_steps", 12, "--save_steps", 3, "--output_dir", "run"]
UNSAVED = [*LONG, "--save_steps", 100]  # the only checkpoint on the way is the one that a signal asks for


@pytest.fixture(scope="module")
def uninterrupted(cluster, tmp_path_factory):
    """Reward and gradient norm of each step of the run that the jobs below interrupt."""
    folder = tmp_path_factory.mktemp("whole")
    make_project(folder)
    Job(folder, STARTER, *LONG, options=["--nodes=2"]).wait()
    return steps(folder / "run")


def requeued_to_the_end(job, project, uninterrupted):
    """The job must have gone on by itself, to the same last step, by the same steps."""
    log = job.wait()
    assert "is queued again" in log or job.field("Restarts") != "0"
    assert "start 2:" in log and "continuing from run/checkpoint-" in log
    rows = steps(project / "run")
    assert list(rows) == list(range(1, 13))
    for step, values in uninterrupted.items():
        # Not bit-equal: two processes' gradients are summed in the order in which they arrive.
        assert rows[step] == pytest.approx(values, rel=1e-3, abs=1e-5), step
    return log


def test_usr1_saves_and_requeues(project, uninterrupted):
    job = Job(project, STARTER, *UNSAVED, options=["--nodes=2"]).saw("step 4/12")
    run("scancel", "--batch", "--signal=USR1", job.id)
    log = requeued_to_the_end(job, project, uninterrupted)
    stopped = int(re.search(r"stopped after step (\d+), checkpoint saved", log)[1])
    assert f"continuing from run/checkpoint-{stopped}," in log  # no step is lost or made twice


def ranks(project):
    """Process ids of the training processes whose working directory is the project's."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            if b"train_grpo.py" in command[:3] and (folder / "cwd").readlink() == project:  # not the launcher's
                found.append(int(folder.name))
        except OSError:  # ended meanwhile
            continue
    return found


def test_scontrol_requeue_goes_on(project, uninterrupted):
    job = Job(project, STARTER, *LONG, options=["--nodes=2"]).saw("step 5/12")
    run("scontrol", "requeue", job.id)
    requeued_to_the_end(job, project, uninterrupted)


def test_a_killed_rank_goes_on(project, uninterrupted):
    job = Job(project, STARTER, *LONG, options=["--nodes=2"]).saw("step 5/12")
    os.kill(ranks(project)[-1], signal.SIGKILL)
    log = requeued_to_the_end(job, project, uninterrupted)
    assert "a process was lost" in log


def test_a_kill_in_the_middle_of_a_checkpoint_goes_on(project, uninterrupted):
    often = [*LONG[:-4], "--save_steps", 1, "--save_total_limit", 2, "--output_dir", "run"]
    job = Job(project, STARTER, *often, options=["--nodes=2"]).saw("step 3/12")
    for step in range(4, 12):  # until one is caught before it is complete
        folder = project / f"run/checkpoint-{step}"
        while not folder.exists() and not job.ended():
            pass
        caught = ranks(project)
        for pid in caught:
            os.kill(pid, signal.SIGSTOP)
        cut_off = not (folder / "complete").exists()
        for pid in caught:
            os.kill(pid, signal.SIGKILL if cut_off else signal.SIGCONT)
        if cut_off:
            break
    log = requeued_to_the_end(job, project, uninterrupted)
    assert f"run/checkpoint-{step}: was cut off while it was written; passed over, not deleted" in log
    assert f"continuing from run/checkpoint-{step - 1}," in log


def test_a_cancelled_job_saves_and_stays_away(project):
    job = Job(project, STARTER, *UNSAVED, options=["--nodes=2"]).saw("step 4/12")
    run("scancel", job.id)
    job.wait("CANCELLED")
    step = int(wait_for(lambda: re.search(r"stopped after step (\d+), checkpoint saved", job.log()), 30)[1])
    assert (project / f"run/checkpoint-{step}/complete").exists()


def test_two_jobs_at_once_on_the_same_nodes(project):
    short = [*SMALL, "--max_steps", 4]
    jobs = [Job(project, STARTER, *short, "--output_dir", name, options=["--nodes=2"]) for name in ("a", "b")]
    wait_for(lambda: all(job.field("JobState") == "RUNNING" for job in jobs), 30)
    for job in jobs:
        job.wait()
    for step, values in steps(project / "a").items():
        assert steps(project / "b")[step] == pytest.approx(values, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "environment", "last"),
    [
        (["no-such/model", *SMALL], {}, "no-such/model: this model cannot be loaded"),
        ([STARTER, *SMALL, "--train_data", "nowhere.jsonl"], {}, "error: nowhere.jsonl: no such file"),
        ([STARTER, *SMALL], {"MAIN_ADDRESS": "no-such-host.invalid"}, "host no-such-host.invalid cannot be resolved"),
        ([STARTER, *SMALL], {"ACCELERATE_CONFIG": "zero9"}, "ACCELERATE_CONFIG=zero9: known are cpu ddp fsdp2"),
        ([STARTER, *SMALL], {"VENV": "/nowhere"}, "VENV=/nowhere holds no bin/accelerate"),
        ([STARTER, *SMALL], {"VLLM_NODES": "2"}, "VLLM_NODES=2: one node serves"),
        ([STARTER, *SMALL, "--num_generations", 5], {}, "--num_generations 5 does not divide the 32 completions"),
        (
            [STARTER, *SMALL],
            {"VLLM_NODES": "1", "VENV": VLLM_VENV},
            "--vllm_mode server: weights go to the server over",
        ),
        ([STARTER, *SMALL], {"VLLM_NODES": "1", "VLLM_ARGS": "--port x"}, "the vLLM server ended; its last lines"),
        ([STARTER, *SMALL], {"VLLM_NODES": "1", "VLLM_ARGS": "--host 8.8.8.8"}, "the vLLM server ended; its last"),
        (["--max_steps", 1], {}, "no model: sbatch submit_grpo.slurm MODEL"),
    ],
)
def test_mistakes_end_the_job_within_a_minute(project, arguments, environment, last):
    job = Job(project, *arguments, "--output_dir", "run", options=["--nodes=2"], **environment)
    log = job.wait("FAILED", timeout=60)
    assert last in log.splitlines()[-1], log
    assert job.field("ExitCode") == "2:0" and not (project / "run").exists()


def test_two_processes_on_each_of_two_nodes(project):
    options = ["--nodes=2", "--gres=gpu:2"]
    job = Job(project, STARTER, *SMALL, "--max_steps", 1, "--output_dir", "run", options=options)
    log = job.wait()
    assert "2 x 2 processes" in log and "16 questions x 4 completions = 64" in log
    assert len(list((project / "run/checkpoint-1").glob("rng_state_*.pth"))) == 4


def first_step(project, name, per_device, options):
    """What one step of plain gradient descent on given completions (greedy ones) adds to the weights."""
    from safetensors.torch import load_file

    greedy = ["--top_k", 1, "--advantage", "no_baseline", "--reward_funcs", "format", "accuracy_lenient"]
    descent = ["--optim", "sgd", "--learning_rate", 1, "--warmup_steps", 0, "--max_grad_norm", 0, "--max_steps", 1]
    sizes = ["--per_device_train_batch_size", per_device]
    job = Job(project, STARTER, *SMALL, *greedy, *descent, *sizes, "--output_dir", name, options=options)
    assert "64 completions a step" in job.wait()
    before, after = (load_file(f / "model.safetensors") for f in (STARTER, project / name / "checkpoint-final"))
    return {key: after[key] - before[key] for key in before}


def test_gradients_do_not_depend_on_the_number_of_processes(project):
    import torch

    alone = first_step(project, "one", 32, ["--nodes=1"])
    size = torch.cat([change.flatten() for change in alone.values()]).norm()
    assert size > 0
    for name, per_device, options in (("two", 16, ["--nodes=2"]), ("four", 8, ["--nodes=2", "--gres=gpu:2"])):
        other = first_step(project, name, per_device, options)
        difference = torch.cat([(other[key] - alone[key]).flatten() for key in alone]).norm()
        assert difference <= 1e-4 * size, (name, difference / size)  # of differences of float32 weights


def test_dry_run_shows_the_launchers_view(project):
    log = Job(project, STARTER, *SMALL, "--dry_run", options=["--nodes=2", "--gres=gpu:2"]).wait()
    assert {int(rank) for rank in re.findall(r"rank (\d) of 4: \S+ local rank [01], cpu", log)} == {0, 1, 2, 3}
    assert "GiB for each process" in log and not list(project.glob("outputs/*"))
