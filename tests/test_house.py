"""How the project is built: sizes, the direction of imports, and a tree in the README that names what there is."""

import ast
import graphlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
LIBRARY = sorted((ROOT / "grpo_math").glob("*.py"))
CODE = [
    path
    for folder in (".", "grpo_math", "benchmarks", "starter_model")
    for path in sorted((ROOT / folder).glob("*.py"))
]


def imported(path):
    """Names of the modules that a file imports, at its top or within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, node.name


def test_imports_have_no_circle():
    modules = {f"grpo_math.{path.stem}": path for path in LIBRARY}
    graph = {name: imported(path) & modules.keys() for name, path in modules.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == modules.keys()


@pytest.mark.parametrize("path", [*ROOT.glob("*.py"), *LIBRARY], ids=lambda path: path.stem)
def test_nothing_imports_a_script(path):
    assert not imported(path) & {*SCRIPTS}


@pytest.mark.parametrize("name", ["answers", "prompts", "tasks"])
def test_the_grader_needs_no_framework(name):
    code = f"import sys, grpo_math.{name}; print({{'torch', 'transformers', 'trl', 'datasets'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


def test_the_readme_shows_the_whole_house():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    tree = text.partition("## Layout")[2]
    patterns = [
        re.compile(re.escape(word).replace(r"\*", r"\w*") + "$") for word in re.findall(r"[\w*]+\.[\w*]+|\w+/", tree)
    ]
    missing = [path.name for path in CODE if path.parent in (ROOT, ROOT / "grpo_math") and path.stem != "__init__"
               and not any(pattern.match(path.name) for pattern in patterns)]  # fmt: skip
    assert not missing


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
