"""What the benchmarks share: the machine in words, Markdown tables, and their place in benchmarks/README.md."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable
from pathlib import Path

README = Path(__file__).with_name("README.md")


def machine(*packages: str) -> str:
    """Processor, cores used and versions, in a sentence."""
    import torch

    from grpo_math.evaluation.identity import versions

    name = "an unknown processor"
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else []:
        if line.startswith("model name"):
            name = line.split(":")[1].strip()
            break
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    named = ", ".join(
        f"{name} {number}"
        for name, number in versions(("torch", *packages)).items()
        if name != "python"
    )
    return (
        f"{name} ({platform.machine()}), {os.cpu_count()} cores, {torch.get_num_threads()} thread(s) used, {gpu}; "
        f"Python {platform.python_version()}, {named}."
    )


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(map(str, row)) for row in (header, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: list[float], form: str = ".2f") -> str:
    """Median, and the least and the greatest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratio(slow: list[float], fast: list[float]) -> str:
    """How many times as fast, pair by pair of interleaved runs."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def publish(section: str, text: str, write: bool) -> None:
    """Print a benchmark's result, and put it into its section of benchmarks/README.md when asked to `write`."""
    print(text)
    if not write:
        return
    page, start, end = (
        README.read_text(encoding="utf-8"),
        f"<!-- {section} -->\n",
        f"<!-- end of {section} -->",
    )
    before, rest = page.split(start)
    README.write_text(before + start + text + "\n" + end + rest.split(end)[1], encoding="utf-8")
