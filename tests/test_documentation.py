"""Every command of the README, the docs and the scripts' own docstrings, run as it stands, or run by a test named here.

A folder has everything that the commands name: `Qwen/Qwen2.5-0.5B-Instruct` and its like are folders with the starter
model in them, `openai/gsm8k` is a folder with rows of our own, `outputs/RUN` is a run. What would take long is made
short by flags at the end (SHORT).
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from grpo_math.data.problems import sum_problems

from conftest import DRIVER, ROOT, STARTER, run_all, write_jsonl

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
# Commands that need what is not here, and where they are run, or why they are not.
ELSEWHERE = {
    r"sbatch|^make|^srun|^VLLM_": "a cluster or minutes: .ci/run, tests/test_cluster.py",
    r"^(\S*/)?pip|^source|^cd |^git ": "installation: the Makefile's own way is what a fresh clone tests",
    r"^accelerate launch": "several processes: tests/test_trainer.py, tests/test_cluster.py",
    r"serve_vllm|vllm_mode server": "a GPU: tests/test_vllm_server.py on a CPU",
    r"push_to_hub|^python download_model": "the Hub: tests/test_export.py, tests/test_offline.py with a stand-in",
    r"--backend (openai|vllm)": "a server or vLLM: tests/test_repl.py, tests/test_vllm_server.py",
    r"quickstart\.py": "three minutes of training: tests/test_starter_model.py trains less",
    r"^python benchmarks/|^OMP_": "minutes on a machine that does nothing else: make bench",
    r"\$GRPO|mine\.csv|^awk": "tests/test_extending.py",
    r"hf auth|pre-commit": "an account, or the author's own repository",
}
TRAIN = (
    "--max_steps 1 --report_to none --per_device_train_batch_size 8 --gradient_accumulation_steps 1 --use_vllm false "
)
TRAIN += "--num_generations 4 --max_completion_length 16 --gradient_checkpointing false --bf16 false --use_peft false"
SHORT = {
    "train_grpo.py": TRAIN.split(),
    "search_hyperparameters.py": ["--trials", "1", "--eval_size", "4", *TRAIN.split()],
    "evaluate_gsm8k_no_vllm.py": ["--max_tokens", "16"],
    "instruct_model_repl.py": ["--max_tokens", "16"],
}
HUB_MODELS = r"\b(?:Qwen|meta-llama|EleutherAI|models)/[\w.-]+\w"


def blocks(text):
    """Groups of commands that follow on each other: the fenced blocks, then each command in a table on its own."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.S):
        lines = block.replace("\\\n", " ").splitlines()
        yield [line for line in lines if line.strip() and not line.startswith("#")]
    for line in text.splitlines():
        if line.startswith("|"):
            yield from ([command] for command in re.findall(r"`(python [^`]+)`", line))
        elif re.match(r"    (python|accelerate|sbatch|make|CUDA|HF_)", line):
            yield [line.strip()]


def documented():
    pages = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    pages |= {name: ast.get_docstring(ast.parse((ROOT / name).read_text())).replace("\\\n", " ") for name in SCRIPTS}
    return [(page, block) for page, text in pages.items() for block in blocks(text)]


def runnable(line):
    """The words of a command that this test runs, None where another does."""
    line = re.sub(r"\s#.*|\s[|>].*", "", line).strip()
    if any(re.search(pattern, line) for pattern in ELSEWHERE):
        return None
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    assert words[0] == "python" and words[1] in SCRIPTS, f"{line}: neither run here nor named in ELSEWHERE"
    name, *arguments = words[1:]
    if name == "evaluate_gsm8k.py":  # the same arguments, but for vLLM's own
        name, arguments = "evaluate_gsm8k_no_vllm.py", re.sub(r"--tensor_parallel_size \d", "", shlex.join(arguments))
        arguments = shlex.split(arguments)
    arguments = ["starter_model" if word == "MODEL" else word for word in arguments]
    if "--prompt" not in arguments and name in ("train_grpo.py", "evaluate_gsm8k_no_vllm.py"):
        arguments += ["--prompt", "answer_tag"]
    if name == "evaluate_gsm8k_no_vllm.py" and not {"--n", "--num_samples"} & {*arguments}:
        arguments += ["--num_samples", "8"]
    return [name, *arguments, *([] if "--dry_run" in arguments else SHORT.get(name, []))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Everything that a documented command may name."""
    folder = tmp_path_factory.mktemp("world")
    rows = [{"question": each.question, "answer": str(each.answer)} for each in sum_problems(80, -9, 9, seed=1)]
    solved = [{**row, "answer": f"That is easy.\n#### {row['answer']}"} for row in rows]
    maths = [
        {"problem": row["question"], "solution": f"It is $\\boxed{{{row['answer']}}}$.", "answer": row["answer"],
         "level": f"Level {1 + n % 5}", "subject": ["Algebra", "Number Theory"][n % 2]}
        for n, row in enumerate(rows)
    ]  # fmt: skip
    for place in ("openai/gsm8k", "path/to/gsm8k_folder"):
        write_jsonl(folder / place / "train.jsonl", solved[:60])
        write_jsonl(folder / place / "test.jsonl", solved[60:])
    for place in ("nlile/hendrycks-MATH-benchmark", "path/to/folder"):
        write_jsonl(folder / place / "train.jsonl", maths[:60])
        write_jsonl(folder / place / "test.jsonl", maths[60:])
    write_jsonl(folder / "train.jsonl", rows[:60])
    write_jsonl(folder / "test.jsonl", rows[60:])
    write_jsonl(folder / "questions.jsonl", rows[:4])
    names = set(re.findall(HUB_MODELS, "\n".join(line for _, block in documented() for line in block)))
    recipes = "\n".join(path.read_text() for path in (ROOT / "recipes").glob("*.yaml"))
    for name in {*names, *re.findall(HUB_MODELS, recipes), "starter_model"}:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copytree(STARTER, folder / name, ignore=shutil.ignore_patterns("*.py"))
        config = folder / name / "config.json"
        config.write_text(re.sub(r'("max_position_embeddings": )\d+', r"\g<1>9000", config.read_text()))
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    evaluate = ["evaluate_gsm8k_no_vllm.py", "starter_model", "--num_samples", "8", "--max_tokens", "16", "--name"]
    train = ["train_grpo.py", "starter_model", *TRAIN.split(), "--train_data", "data/arithmetic/train.jsonl"]
    train += ["--save_steps", "1"]
    said = run_all(
        [
            ["prepare_gsm8k.py"],
            ["prepare_math.py"],
            ["prepare_arithmetic.py", "--num_problems", "200"],
            ["prepare_arithmetic.py", "--kind", "mixed", "--num_problems", "200"],
            [*evaluate, "base"],
            *([*train, "--output_dir", f"outputs/{name}"] for name in ("RUN", "A", "B", "mine", "mini", "quickstart")),
        ],
        folder,
    )
    assert "checkpoint-final" in said
    (folder / "outputs/RUN/checkpoint-1").rename(folder / "outputs/RUN/checkpoint-100")
    for name in ("trained", "step100", "step200", "before", "after", "seed1", "seed2", "seed3"):
        for kind in ("jsonl", "json"):
            shutil.copy(folder / f"evals/base.{kind}", folder / f"evals/{name}.{kind}")
    return folder


def test_every_command_is_run_by_some_test():
    """Here or, named, elsewhere; nobody adds one that is run nowhere."""
    words = [runnable(line) for _, block in documented() for line in block]
    assert sum(each is not None for each in words) > 40


@pytest.mark.slow
@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS])
def test_commands_run_as_they_stand(page, world, tmp_path):
    own = [block for name, block in documented() if name == page]
    commands = [[words for line in block if (words := runnable(line))] for block in own]
    if not any(commands):
        pytest.skip(f"{page}: its commands are run elsewhere, see ELSEWHERE")
    folder = tmp_path / "world"
    shutil.copytree(world, folder)
    for block in filter(None, commands):
        for words in block:
            for flag, where in (("--name", "evals/{}.jsonl"), ("--name", "evals/{}.json"), ("--output_dir", "{}")):
                if flag in words:  # made anew by this command
                    path = folder / where.format(words[words.index(flag) + 1])
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        paths = [[str(ROOT / name), *rest] for name, *rest in block]
        (folder / "commands.json").write_text(json.dumps(paths))
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", DRIVER], cwd=folder, env=env, capture_output=True, text=True, timeout=600,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
