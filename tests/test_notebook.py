"""The notebook, executed from its first cell to its last with the starter model: make test-notebook.

Its outputs are renewed, in a fresh clone, by `jupyter execute --inplace notebooks/grpo_gsm8k.ipynb`.
"""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from grpo_math.launch.arguments import parse_options, parse_trl_arguments
from grpo_math.launch.checks import check_arguments
from grpo_math.launch.processes import machine_defaults
from grpo_math.launch.settle import Facts, settle_arguments

from conftest import ROOT

nbformat = pytest.importorskip("nbformat", reason="the notebook extra is not installed: make test-notebook")
nbclient = pytest.importorskip("nbclient", reason="the notebook extra is not installed: make test-notebook")
pytestmark = pytest.mark.slow
NOTEBOOK = ROOT / "notebooks/grpo_gsm8k.ipynb"


def printed(notebook):
    """What each code cell printed, by its source."""
    return {
        cell.source: "".join(output.get("text", "") for output in cell.outputs).replace("\r\n", "\n")
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def output_of(notebook, word):
    """What the one code cell printed whose source has that word."""
    (text,) = [text for source, text in printed(notebook).items() if word in source]
    return text


def strict(text):
    return float(re.search(r"^ +strict +([\d.]+)%", text, re.M)[1])


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after its execution in a copy of the project."""
    project = tmp_path_factory.mktemp("project")
    for name in ("grpo_math", "recipes", "starter_model", "notebooks"):
        shutil.copytree(ROOT / name, project / name)
    for path in [*ROOT.glob("*.py"), ROOT / "constraints.txt"]:
        shutil.copy(path, project)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("HF_HUB_OFFLINE", "1")
        notebook = nbformat.read(project / "notebooks/grpo_gsm8k.ipynb", as_version=4)
        client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": project / "notebooks"}})
        client.execute()
    return notebook


def test_it_runs_and_the_model_gets_better(executed):
    before, after = (strict(output_of(executed, f"--name notebook-{when}")) for when in ("before", "after"))
    assert after > before + 10
    assert "saved" in output_of(executed, "!python train_grpo.py") and "right" in output_of(executed, "/grade")
    pictures = [o for c in executed.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 1
    card = output_of(executed, "export_model.py")
    assert f"{after:.1f}%" in card and f"{before:.1f}%" in card
    for text in printed(executed).values():
        assert "error" not in text.lower() and "Traceback" not in text, text


def test_the_settings_for_a_gpu_are_accepted():
    """All but the download and the training, which takes a GPU."""
    (cell,) = [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if "SETTINGS = " in c.source]
    names = {"SMALL": False, "LONGEST": 400}
    exec(cell.source.partition("\n!")[0], names)
    options = parse_options(["Qwen/Qwen2.5-0.5B-Instruct", *shlex.split(names["SETTINGS"])], "")
    arguments = parse_trl_arguments(options, machine_defaults()[0])
    plan = check_arguments(arguments, options.reward_funcs, rows=7473)
    args, model_args = settle_arguments(options, arguments, Facts())
    assert (plan.questions_per_generation, plan.steps) == (4, 150)
    assert model_args.use_peft and args.max_completion_length == 400


def test_what_stands_in_it_is_from_such_a_run(executed):
    """Every cell was run, in order, and what does not depend on the machine is what comes out here."""
    kept = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(kept)
    cells = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for word in ("PREPARE}", "style.name)", "verdict = "):
        assert output_of(kept, word) == output_of(executed, word)
    assert strict(output_of(kept, "--name notebook-before")) == strict(output_of(executed, "--name notebook-before"))
    assert strict(output_of(kept, "--name notebook-after")) > strict(output_of(kept, "--name notebook-before")) + 10
