"""Measure how the code reads: what makes a line dense, for each file and for the whole.

python tests/house_measures.py            # a row a file, densest first, and the whole
python tests/house_measures.py grpo_math/training
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
WORDS = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)


@dataclass(frozen=True)
class Measures:
    """Counts of one file: `lines` are all of them, `tokens_a_line` is over lines that hold code."""

    path: Path
    lines: int
    long_lines: int  # over 100 characters
    comprehensions: int
    conditionals: int  # conditional expressions
    any_types: int
    loose_dicts: int  # dict[str, Any]
    tokens_a_line: float


def measure(path: Path) -> Measures:
    text = path.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text)))
    words = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type in WORDS]
    code_lines = {token.start[0] for token in words}
    names = [node.id for node in nodes if isinstance(node, ast.Name)]
    return Measures(
        path=path,
        lines=len(text.splitlines()),
        long_lines=sum(len(line) > 100 for line in text.splitlines()),
        comprehensions=sum(isinstance(node, COMPREHENSIONS) for node in nodes),
        conditionals=sum(isinstance(node, ast.IfExp) for node in nodes),
        any_types=names.count("Any"),
        loose_dicts=text.count("dict[str, Any]"),
        tokens_a_line=len(words) / max(1, len(code_lines)),
    )


def code_files() -> list[Path]:
    """The scripts at the root and the library, without the empty `__init__` files."""
    files = [*ROOT.glob("*.py"), *(ROOT / "grpo_math").rglob("*.py")]
    return sorted(path for path in files if path.stat().st_size)


def table(files: list[Path]) -> list[str]:
    measured = sorted(map(measure, files), key=lambda each: -each.tokens_a_line)
    rows = ["tokens/line  comprehensions  conditionals  Any  dict[str, Any]  long  lines  file"]
    for each in measured:
        rows.append(
            f"{each.tokens_a_line:11.1f} {each.comprehensions:15} {each.conditionals:13} {each.any_types:4} "
            f"{each.loose_dicts:15} {each.long_lines:5} {each.lines:6}  {each.path.relative_to(ROOT)}"
        )
    lines = sum(each.lines for each in measured)

    def rate(name: str) -> float:
        return 1000 * sum(getattr(each, name) for each in measured) / lines

    rows.append(
        f"whole: {lines:,} lines; per 1,000 lines {rate('comprehensions'):.1f} comprehensions, "
        f"{rate('conditionals'):.1f} conditional expressions, {rate('any_types'):.1f} Any; "
        f"{sum(each.loose_dicts for each in measured)} dict[str, Any]; "
        f"{median(each.tokens_a_line for each in measured):.1f} tokens a line in the median file; "
        f"{100 * sum(each.long_lines for each in measured) / lines:.1f}% of lines over 100 characters"
    )
    return rows


def main() -> None:
    files = code_files()
    if sys.argv[1:]:
        wanted = [Path(argument).resolve() for argument in sys.argv[1:]]
        files = [path for path in files if any(path.is_relative_to(each) for each in wanted)]
    print("\n".join(table(files)))


if __name__ == "__main__":
    main()
