"""docs/extending.md, done as it says: its files are written, its commands run, in a folder outside the project."""

import csv
import re
import subprocess
import sys

import pytest
from grpo_math.data.styles import STYLES
from grpo_math.data.tasks import TASKS
from grpo_math.rewards.functions import REGISTRY

from conftest import ROOT, STARTER, read_rows
from test_end_to_end import run_all

PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
QUICK = {
    "train_grpo.py": ["--max_steps", "2", "--max_completion_length", "16", "--report_to", "none"],
    "evaluate_gsm8k_no_vllm.py": ["--max_tokens", "16"],
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def commands(block):
    """A block's commands, on the starter model and made quick."""
    for line in block.replace("\\\n", " ").splitlines():
        name, *arguments = line.removeprefix("python $GRPO/").split()
        arguments = [str(STARTER) if argument == "MODEL" else argument for argument in arguments]
        yield [name, *arguments, *QUICK.get(name, [])]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder, and what was said there, after both blocks of four commands."""
    cwd = tmp_path_factory.mktemp("own")
    with (cwd / "mine.csv").open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow(["question", "answer", "topic"])
        table.writerows([f'What is {n} plus {n},\nin "all"?', f"{2 * n:,}.0", "sums"] for n in range(990, 1030))
    convert, data, train = blocks("bash")
    path = {"PATH": f"{sys.executable.rpartition('/')[0]}:/usr/bin:/bin"}
    subprocess.run(convert, shell=True, cwd=cwd, env=path, check=True, timeout=60)
    for block in blocks("python"):
        name = re.match(r"# (\w+\.py)\n", block)[1]
        (cwd / name).write_text(block, encoding="utf-8")
    (rows,) = blocks("json")
    (cwd / "yes_no.jsonl").write_text(rows, encoding="utf-8")
    first, second = list(commands(data)), list(commands(train))
    assert len(first) == len(second) == 4
    second = [[part.replace("before", "before-2").replace("after", "after-2") for part in each] for each in second]
    return cwd, run_all(first + second, cwd)


@pytest.mark.slow
def test_from_a_table_to_a_compared_model_in_four_commands(done):
    folder, said = done
    assert "after is " in said
    train, test = (read_rows(folder / f"{name}.jsonl") for name in ("train", "test"))
    assert (len(train), len(test)) == (36, 4)
    assert train[0] == {"question": 'What is 990 plus 990,\nin "all"?', "answer": "1,980.0", "topic": "sums"}
    assert [row["gold"] for row in read_rows(folder / "evals/after.jsonl")] == ["1998", "2018", "2038", "2058"]
    assert len(read_rows(folder / "outputs/mine/metrics.jsonl")) >= 2


@pytest.mark.slow
def test_a_task_and_a_reward_in_files_outside_the_project(done):
    folder, said = done
    assert "after-2 is " in said
    assert [row["gold"] for row in read_rows(folder / "evals/after-2.jsonl")] == ["yes", "no", "yes", "no"]
    steps = [row for row in read_rows(folder / "run/metrics.jsonl") if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all("rewards/mentions_divisors/mean" in row for row in steps)


def test_the_pages_tables_name_every_reward_task_and_style():
    first = "\n".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| "))
    assert set(re.findall(r"`(\w+)`", first)) == REGISTRY.keys() | TASKS.keys() | STYLES.keys()
