"""How fast the numeric grader is beside math-verify and TRL's accuracy_reward, and where the three disagree.

    python benchmarks/bench_grader.py > benchmarks/grader.md

Writes GSM8K-like completions in the formats that models use, each with the verdict it deserves. All three graders get
the same ones, new ones in each round, one grader after the other within a round; times are CPU time, medians of rounds.
"""

import argparse
import os
import platform
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from grpo_math.grading.graders import grade_number

PEOPLE = ("Natalia", "Weng", "Betty", "Julie", "James", "Mark", "Albert", "Ken", "Alexis", "Tina")
THINGS = (
    "clips",
    "apples",
    "pages",
    "letters",
    "flowers",
    "pizzas",
    "boxes",
    "miles",
    "eggs",
    "tickets",
)

# What stands at the end of a completion: {a} is the answer, {m} its spelling with separators, {b} another number, {t} a
# thing, {p} a person, {x} + {y} a sum that comes to the answer. The flag says whether that deserves to be right.
ENDINGS: dict[str, tuple[str, bool]] = {
    "`#### 72`": ("#### {a}", True),
    "`#### 72 clips`": ("#### {a} {t}", True),
    "`#### $1,234`": ("#### ${m}", True),
    "`<answer>72</answer>`": ("<answer>{a}</answer>", True),
    "`The answer is 72.`": ("The answer is {a}.", True),
    "`The answer is $1,234.00.`": ("The answer is ${m}.00.", True),
    "`**Answer:** 72 clips`": ("**Answer:** {a} {t}", True),
    "`### Final Answer`, `**72**`": ("### Final Answer\n\n**{a}**", True),
    "`$\\boxed{72}$`": ("Therefore, {p} has a total of $\\boxed{{{a}}}$ {t}.", True),
    "`The final answer is: $\\boxed{72}$`": ("The final answer is: $\\boxed{{{a}}}$", True),
    "`\\boxed{72\\text{ clips}}`": ("\\[ \\boxed{{{a}\\text{{ {t}}}}} \\]", True),
    "`\\boxed{\\$1,234}`": ("So the total is \\(\\boxed{{\\${m}}}\\).", True),
    "`so she has **72** clips.`": ("So {p} has **{a}** {t} now.", True),
    "`so she has 72 clips.`": ("So {p} has {a} {t} now.", True),
    "`so that is $1,234.`": ("So that is ${m}.", True),
    "a box put right, far apart": (
        "$\\boxed{{{b}}}$? {p} counts the {t} again.\n\nIt is $\\boxed{{{a}}}$.",
        True,
    ),
    "a box put right, close together": ("\\boxed{{{b}}}, no, \\boxed{{{a}}}", True),
    "an answer, then an invented question": (
        "#### {a}\n\nQuestion: {p} buys {b} {t}. How many are left?\n#### {b}",
        True,
    ),
    "wrong: another number after `####`": ("#### {b}", False),
    "wrong: another number in the box": ("$\\boxed{{{b}}}$", False),
    "wrong: another number in prose": ("So {p} has {b} {t} now.", False),
    "wrong: the box put wrong": ("\\boxed{{{a}}}? No, it is $\\boxed{{{b}}}$.", False),
    "wrong: two answers `72 or 71`": ("The answer is {a} or {b}.", False),
    "wrong: two answers in the box": ("$\\boxed{{{a} \\text{{ or }} {b}}}$", False),
    "wrong: a sum left to do": ("$\\boxed{{{x}+{y}}}$", False),
    "wrong: a division left to do": ("$\\boxed{{\\frac{{{d}}}{{2}}}}$", False),
    "wrong: a percentage of the number": ("$\\boxed{{{h}\\%}}$", False),
    "wrong: cut off in mid sum": ("Now add what is left: {x} + {b} + ", False),
}
NOT_LATEX = (
    *list(ENDINGS)[:8],
    "`so she has **72** clips.`",
    "`so she has 72 clips.`",
    "`so that is $1,234.`",
)
# Every way in which a grader's verdict is not the deserved one: whose, for which endings, and why.
REASONS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "TRL accuracy_reward",
        NOT_LATEX,
        "It reads LaTeX only, in a box or behind words like *final answer is*; none of these sets its answer in LaTeX.",
    ),
    (
        "TRL accuracy_reward",
        ("an answer, then an invented question",),
        "As above; it would give 0 without the second question too.",
    ),
    (
        "math-verify",
        ("an answer, then an invented question",),
        "It takes the last number it can read, which answers the second question.",
    ),
    (
        "math-verify",
        ("a box put right, close together",),
        "Boxes close together are put into one set, and a set is no number. Here the last box counts.",
    ),
    (
        "TRL accuracy_reward",
        ("a box put right, close together",),
        "As math-verify, which it calls.",
    ),
    (
        "math-verify",
        ("wrong: two answers `72 or 71`",),
        "It stops at the first number behind *answer is*. Here a choice of two is no answer.",
    ),
    (
        "math-verify",
        (
            "wrong: a sum left to do",
            "wrong: a division left to do",
            "wrong: a percentage of the number",
        ),
        "It works out what the model left to do, and takes 5000% for 50 and for 5000. Here working it out is the task, "
        "and a percent sign is a unit.",
    ),
    (
        "TRL accuracy_reward",
        (
            "wrong: a sum left to do",
            "wrong: a division left to do",
            "wrong: a percentage of the number",
        ),
        "As math-verify, which it calls.",
    ),
)


ABOUT = (
    "Share of completions called right, by how they end; bold where that is not what the ending deserves. Endings and "
    "verdicts are this project's choice, so its own column must be without fault: see where the others differ."
)
Verdicts = dict[str, dict[str, Counter[bool]]]  # by ending, then by grader


class Sample(NamedTuple):
    """A completion, the gold answer, the format it ends in, and whether it deserves to be right."""

    completion: str
    gold: str
    kind: str
    right: bool


def make_samples(count: int, seed: int) -> list[Sample]:
    """`count` completions, every format equally often, the same for the same seed."""
    rng, kinds = random.Random(seed), list(ENDINGS)
    samples = [make_sample(rng, kinds[i % len(kinds)]) for i in range(count)]
    rng.shuffle(samples)
    return samples


def make_sample(rng: random.Random, kind: str) -> Sample:
    """A worked solution of three to seven steps, and the ending that `kind` names."""
    person, thing = rng.choice(PEOPLE), rng.choice(THINGS)
    total, lines = rng.randint(2, 60), []
    for step in range(rng.randint(3, 7)):
        more, last = rng.randint(2, 400), total
        total = last + more if rng.random() < 0.7 or last <= more else last - more
        sign = "+" if total > last else "-"
        lines.append(
            rng.choice(
                (
                    f"{person} then has {last} {sign} {more} = {total} {thing}.",
                    f"{step + 1}. **Work out the {thing}**: \\({last} {sign} {more} = {total}\\)",
                    f"Step {step + 1}: {person} had {last} {thing}, so that makes {last}{sign}{more}={total}.",
                    f"To find out how many {thing} {person} has at this point, take the {last} from before "
                    f"and the {more} that the question names, which gives {total}.",
                )
            )
        )
    ending, right = ENDINGS[kind]
    values = {
        "a": total,
        "m": f"{total:,}",
        "b": total + rng.randint(1, 9),
        "x": total - 1,
        "y": 1,
        "d": 2 * total,
    }
    closing = ending.format(**values, h=100 * total, t=thing, p=person)
    return Sample("\n".join(lines) + "\n\n" + closing, str(total), kind, right)


def our_verdicts(samples: list[Sample]) -> list[bool]:
    return [grade_number(sample.completion, sample.gold, "hash").lenient for sample in samples]


def math_verify_verdicts(samples: list[Sample]) -> list[bool]:
    from math_verify import parse, verify

    return [bool(verify(parse(sample.gold), parse(sample.completion))) for sample in samples]


def trl_verdicts(samples: list[Sample]) -> list[bool]:
    from trl.rewards import accuracy_reward

    completions = [[{"role": "assistant", "content": sample.completion}] for sample in samples]
    return [
        reward == 1.0
        for reward in accuracy_reward(completions, [sample.gold for sample in samples])
    ]


GRADERS: dict[str, Callable[[list[Sample]], list[bool]]] = {
    "this project": our_verdicts,
    "math-verify": math_verify_verdicts,
    "TRL accuracy_reward": trl_verdicts,
}


def measure(rounds: int, count: int, seed: int) -> tuple[dict[str, list[float]], Verdicts]:
    """CPU seconds per completion of each grader in each round; and its verdicts by format, over all rounds."""
    times: dict[str, list[float]] = defaultdict(list)
    verdicts: Verdicts = defaultdict(lambda: defaultdict(Counter))
    for grader in GRADERS.values():
        grader(make_samples(2 * len(ENDINGS), seed - 1))  # imports, compiled patterns
    for number in range(rounds):
        samples = make_samples(count, seed + number)
        for name, grader in GRADERS.items():
            started = time.process_time()
            graded = grader(samples)
            times[name].append((time.process_time() - started) / count)
            for sample, verdict in zip(samples, graded, strict=True):
                verdicts[sample.kind][name][verdict] += 1
    return times, verdicts


def report(times: dict[str, list[float]], verdicts: Verdicts, rounds: int, count: int) -> str:
    """The page as Markdown."""
    ours, length = (
        times["this project"],
        sum(len(s.completion) for s in make_samples(1000, 0)) // 1000,
    )
    lines = ["# The numeric grader, beside math-verify and TRL", "", *machine(), ""]
    lines += [
        f"{count:,} completions of about {length} characters in each of {rounds} rounds; medians over the rounds.",
        "",
    ]
    lines += [
        "| grader | µs per completion (CPU) | completions per second | times as long as this project |",
        "|---|---|---|---|",
    ]
    for name, each in times.items():
        median = statistics.median(each)
        ratios = [theirs / mine for theirs, mine in zip(each, ours, strict=True)]
        ratio = (
            f"{statistics.median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f})"
            if name != "this project"
            else "1"
        )
        lines.append(f"| {name} | {median * 1e6:.1f} | {1 / median:,.0f} | {ratio} |")
    lines += ["", "## What each calls right", "", ABOUT, ""]
    lines += [
        "| ending | deserves | " + " | ".join(GRADERS) + " |",
        "|---|---|" + "---|" * len(GRADERS),
    ]
    for kind, (_, right) in ENDINGS.items():
        shares = [share(verdicts[kind][name]) for name in GRADERS]
        cells = [f"{each:.0%}" if each == right else f"**{each:.0%}**" for each in shares]
        lines.append(f"| {kind} | {'right' if right else 'wrong'} | " + " | ".join(cells) + " |")
    lines.append(
        "| **as deserved** | | "
        + " | ".join(f"{as_deserved(verdicts, name):.1%}" for name in GRADERS)
        + " |"
    )
    lines += ["", "## Why they disagree", ""]
    lines += [f"- **{name}**, {'; '.join(kinds)}: {reason}" for name, kinds, reason in REASONS]
    return "\n".join(lines)


def as_deserved(verdicts: Verdicts, name: str) -> float:
    """The share of completions, over all endings alike, that a grader gives the verdict they deserve."""
    return statistics.mean(
        share(verdicts[kind][name]) if right else 1 - share(verdicts[kind][name])
        for kind, (_, right) in ENDINGS.items()
    )


def unexplained(verdicts: Verdicts) -> list[str]:
    """Disagreements that REASONS does not explain, and explanations of what does not happen."""
    happens = {
        (name, kind)
        for kind, (_, right) in ENDINGS.items()
        for name in GRADERS
        if share(verdicts[kind][name]) != right
    }
    explained = {(name, kind) for name, kinds, _ in REASONS for kind in kinds}
    return [f"{name}: {kind}" for name, kind in sorted(happens ^ explained)]


def share(counts: Counter[bool]) -> float:
    return counts[True] / counts.total()


def machine() -> list[str]:
    """What this ran on, one line per fact."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    packages = ", ".join(f"{name} {version(name)}" for name in ("math-verify", "sympy", "trl"))
    return [f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}."]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--count", type=int, default=1_120, help="completions per round (default: 1,120)"
    )
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    times, verdicts = measure(args.rounds, args.count, args.seed)
    print(report(times, verdicts, args.rounds, args.count))
    if left := unexplained(verdicts):
        sys.exit(f"not explained, or explained and not happening: {'; '.join(left)}")


if __name__ == "__main__":
    main()
