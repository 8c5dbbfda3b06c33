"""docs/extending.md, done as it says: its files are written, its commands run, in a folder outside the project."""

import re

from conftest import ROOT, STARTER, read_rows
from test_end_to_end import run_all

PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def test_the_page_on_extending_works_as_written(tmp_path):
    for block in blocks("python"):
        name = re.match(r"# (\w+\.py)\n", block)[1]
        (tmp_path / name).write_text(block, encoding="utf-8")
    (rows,) = blocks("json")
    (tmp_path / "yes_no.jsonl").write_text(rows, encoding="utf-8")
    commands = [line.split()[1:] for line in blocks("bash")[-1].splitlines()]
    assert len(commands) == 4
    quick = ["--max_steps", "2", "--max_completion_length", "16", "--report_to", "none"]
    small = {"train_grpo.py": quick, "evaluate_gsm8k_no_vllm.py": ["--max_tokens", "16"]}
    done = []
    for script, *arguments in commands:
        name = script.removeprefix("$GRPO/")
        arguments = [str(STARTER) if argument == "MODEL" else argument for argument in arguments]
        done.append([name, *arguments, *small.get(name, [])])
    said = run_all(done, tmp_path)
    assert "after is " in said
    rows = read_rows(tmp_path / "evals/after.jsonl")
    assert [row["gold"] for row in rows] == ["yes", "no", "yes", "no"]
    steps = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all("rewards/mentions_divisors/mean" in row for row in steps)


def test_the_pages_tables_name_every_reward_task_and_style():
    from grpo_math.prompts import STYLES
    from grpo_math.rewards import REGISTRY
    from grpo_math.tasks import TASKS

    table = "\n".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| "))
    assert set(re.findall(r"`(\w+)`", table)) == REGISTRY.keys() | TASKS.keys() | STYLES.keys()
