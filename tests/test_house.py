"""How the project is built: sizes, the direction of imports, how lines read, and a README that names every room."""

import ast
import graphlib
import re
import subprocess
import sys
from statistics import median

import pytest

from conftest import ROOT
from house_measures import code_files, measure

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
LIBRARY = sorted((ROOT / "grpo_math").rglob("*.py"))
CODE = [*ROOT.glob("*.py"), *LIBRARY, *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "starter_model").glob("*.py")]

BELOW = ("errors", "files", "terminal")
MODELS = (*BELOW, "run_folder", "models")
EVALUATION = (*MODELS, "grading", "data", "rewards", "generation", "evaluation")
# What each room of the library may import, besides itself.
MAY_IMPORT = {
    "errors": (),
    "files": ("errors",),
    "terminal": ("errors", "files"),
    "grading": BELOW,
    "data": (*BELOW, "grading"),
    "rewards": (*BELOW, "grading", "data"),
    "run_folder": BELOW,
    "models": (*BELOW, "run_folder"),
    "generation": (*MODELS, "grading", "data"),
    "evaluation": (*MODELS, "grading", "data", "rewards", "generation"),
    "launch": EVALUATION,
    "training": EVALUATION,
    "chat": EVALUATION,
    "publish": EVALUATION,
    "public": (*BELOW, "grading", "data", "rewards"),
}


def imported(path):
    """Names of the modules that a file imports, at its top or within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room(path):
    """The package, or the module beside the packages, that a file of the library belongs to."""
    return path.relative_to(ROOT / "grpo_math").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short_and_plain(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    assert "# fmt: " + "skip" not in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 80, node.name
        if isinstance(node, ast.IfExp):
            inner = [each for each in ast.walk(node) if isinstance(each, ast.IfExp) and each is not node]
            assert not inner, f"line {node.lineno}: a conditional expression within another"


def test_lines_are_not_dense():
    """The rates that code of this kind is pleasant to read at; `python tests/house_measures.py` shows them by file."""
    files = list(map(measure, code_files()))
    lines = sum(each.lines for each in files)
    assert 1000 * sum(each.comprehensions for each in files) / lines <= 22
    assert 1000 * sum(each.conditionals for each in files) / lines <= 12
    assert 1000 * sum(each.any_types for each in files) / lines <= 9
    assert sum(each.loose_dicts for each in files) <= 25
    assert sum(each.long_lines for each in files) / lines <= 0.05
    assert median(each.tokens_a_line for each in files) <= 8.1


@pytest.mark.parametrize(
    "path",
    [path for path in LIBRARY if path.parent.name != "grpo_math" or path.stem != "__init__"],
    ids=lambda path: str(path.relative_to(ROOT / "grpo_math")),
)
def test_imports_point_down(path):
    modules = {name.split(".")[1] for name in imported(path) if name.startswith("grpo_math.")}
    assert modules - {room(path)} <= set(MAY_IMPORT[room(path)])


def test_imports_have_no_circle():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in LIBRARY}
    graph = {name: imported(path) & modules.keys() for name, path in modules.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == modules.keys()


@pytest.mark.parametrize("path", [*ROOT.glob("*.py"), *LIBRARY], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_a_script(path):
    assert not imported(path) & {*SCRIPTS}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT / "grpo_math")))
def test_packages_have_no_code_of_their_own(path):
    assert path.stem != "__init__" or not path.read_text(encoding="utf-8")


@pytest.mark.parametrize("package", ["grading", "data", "rewards"])
def test_grading_data_and_rewards_need_no_framework(package):
    modules = [
        f"grpo_math.{package}.{path.stem}" for path in LIBRARY if room(path) == package and path.stem != "__init__"
    ]
    code = f"import sys, {', '.join(modules)}; print({{'torch', 'transformers', 'trl', 'datasets'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


def test_the_readme_shows_the_whole_house():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    tree = text.partition("## Layout")[2]
    rooms = {*(f"{path.stem}.py" for path in ROOT.glob("*.py")), *(f"{room(path)}" for path in LIBRARY)} - {"__init__"}
    assert not [name for name in rooms if not re.search(rf"\b{re.escape(name)}\b", tree)]


def test_links_in_the_docs_lead_somewhere():
    for page in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        ROOT / "benchmarks/README.md",
    ]:
        text = page.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\((?!http)([^)#\s]*)(?:#([\w-]+))?\)", text):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            if anchor:
                heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
                assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, anchor
