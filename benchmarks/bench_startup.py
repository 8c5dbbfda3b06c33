"""How soon `--help` answers: this project's scripts, and `trl grpo --help`.

python benchmarks/bench_startup.py --write
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tables import machine, publish, spread, table

ROOT = Path(__file__).resolve().parent.parent


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="of which medians are taken (default: 5)"
    )
    parser.add_argument(
        "--write", action="store_true", help="put the table into benchmarks/README.md"
    )
    args = parser.parse_args()
    commands = {
        path.name: [sys.executable, str(path), "--help"] for path in sorted(ROOT.glob("*.py"))
    }
    commands["trl grpo"] = [str(Path(sys.executable).with_name("trl")), "grpo", "--help"]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(args.rounds + 1):
        for name, command in commands.items():
            times[name] += [seconds(command)] if number else []  # the first warms up
    lines = [[f"`{name} --help`", spread(each)] for name, each in times.items()]
    text = f"{machine('trl')}\n\nMedians (and range) of {args.rounds} interleaved rounds.\n\n"
    publish("startup", text + table(["", "s"], lines), args.write)


if __name__ == "__main__":
    main()
