"""Measure the numeric grader beside five others: its speed, and where they disagree.

    python benchmarks/bench_grader.py > benchmarks/grader.md

Writes GSM8K-like completions in the formats that models use, each with the verdict it deserves. All
graders get the same ones, new ones in each round, one grader after the other within a round; times
are CPU time, medians of rounds.
"""

import argparse
import os
import platform
import random
import re
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from grpo_math.grading.graders import grade_number

PEOPLE = "Natalia Weng Betty Julie James Mark Albert Ken Alexis Tina".split()  # noqa: SIM905
THINGS = "clips apples pages letters flowers pizzas boxes miles eggs tickets".split()  # noqa: SIM905

# What stands at the end of a completion, and whether that deserves to be right: {a} is the answer,
# {m} its spelling with separators, {b} another number, {t} a thing, {p} a person, {x} + {y} a sum.
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
    "`so she has 72 clips after 5 days.`": ("So {p} has {a} {t} left after {n} days.", True),
    "`<answer>She has 72 clips.</answer>`": ("<answer>{p} has {a} {t}.</answer>", True),
    "`#### 72<|im_end|>`": ("#### {a}<|im_end|>", True),
    "`The answer is 72, not 71.`": ("The answer is {a}, not {b}.", True),
    "wrong: `#### 72 (maybe 71)`": ("#### {a} (maybe {b})", False),
    "wrong: `Answer: cannot be determined`": ("{p} has {a}.\nAnswer: cannot be determined", False),
    "wrong: `The answer is 72. No wait, 71.`": ("The answer is {a}. No wait, {b}.", False),
    "wrong: cut off in mid sum": ("Now add what is left: {x} + {b} + ", False),
}
# Why a grader's verdict on an ending is not the one it deserves.
NO_LATEX = (*list(ENDINGS)[:8], *[kind for kind in ENDINGS if kind.startswith("`so ")])
NO_LATEX += ("`<answer>She has 72 clips.</answer>`", "`#### 72<|im_end|>`")
NO_LATEX += ("`The answer is 72, not 71.`", "an answer, then an invented question")
NO_HASH = tuple(
    kind
    for kind, (ending, right) in ENDINGS.items()
    if right and ("####" not in ending or "$" in ending)
)
WORKED_OUT = tuple(f"wrong: a {what}" for what in ("sum left to do", "division left to do"))
WORKED_OUT += ("wrong: a percentage of the number",)
INVENTED = ("an answer, then an invented question",)
CLOSE, SPAN = ("a box put right, close together",), ("`so she has 72 clips after 5 days.`",)
NONE = ("wrong: `Answer: cannot be determined`",)
REASONS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("TRL accuracy_reward", NO_LATEX, "It reads LaTeX only, in a box or behind *final answer is*."),
    ("Dr. GRPO", NO_LATEX, "It reads boxes only; anything else has no format and earns nothing."),
    ("harness, strict-match", NO_HASH, "It reads the first `####` with bare digits behind it."),
    ("harness, strict-match", ("wrong: `#### 72 (maybe 71)`",), "It does not see what follows."),
    ("math-verify", INVENTED, "It takes the last number, which answers the second question."),
    ("harness, flexible-extract", INVENTED, "As math-verify, where no stop string cuts."),
    ("math-verify", CLOSE, "Boxes close together become one set; here the last box counts."),
    ("TRL accuracy_reward", CLOSE, "As math-verify, which it calls."),
    (
        "math-verify",
        ("wrong: two answers `72 or 71`",),
        "It stops at the first number behind *is*.",
    ),
    (
        "math-verify",
        WORKED_OUT,
        "It works out what was left to do, and takes 5000% for 50. Here that is the task, and a "
        "percent sign is a unit.",
    ),
    ("TRL accuracy_reward", WORKED_OUT, "As math-verify, which it calls."),
    ("math-verify", SPAN, "It takes the last number, which is the span."),
    ("harness, flexible-extract", SPAN, "As math-verify."),
    ("math-verify", NONE, "It passes over the refusal and takes the number before it."),
    ("harness, flexible-extract", NONE, "As math-verify."),
    ("math-verify", ("wrong: `The answer is 72. No wait, 71.`",), "It stops at the first number."),
    (
        "harness, flexible-extract",
        ("`The answer is $1,234.00.`", "`The answer is 72, not 71.`"),
        "It takes the last number, and compares letter by letter: `1234.00` is not `1234`.",
    ),
    ("harness, flexible-extract", ("a box put right, far apart",), "It takes `$.` for a number."),
)

ABOUT = (
    "Share of completions called right, by how they end; bold where that is not what the ending "
    "deserves. The completions are invented by this script, and endings and verdicts are this "
    "project's choice, so its own column must be without fault: see where the others differ. The "
    "harness's filters are those of lm-evaluation-harness's `gsm8k` tasks; Dr. GRPO's is the fast "
    "rule of sail-sg/understand-r1-zero for whole numbers; both are written anew here."
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
                    f"Step {step + 1}: {person} had {last} {thing}, "
                    f"so that makes {last}{sign}{more}={total}.",
                    f"To find out how many {thing} {person} has at this point, "
                    f"take the {last} from before and the {more} asked for, which gives {total}.",
                )
            )
        )
    ending, right = ENDINGS[kind]
    values = {
        "a": total,
        "m": f"{total:,}",
        "b": total + rng.randint(101, 109),
        "x": total - 1,
        "y": 1,
        "d": 2 * total,
        "n": rng.randint(61, 99),
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


def harness_verdicts(samples: list[Sample], pattern: str, place: int) -> list[bool]:
    """Judge as lm-evaluation-harness does (lm_eval/tasks/gsm8k): a pattern, then an exact match."""
    verdicts = []
    for sample in samples:
        found = re.findall(pattern, sample.completion)
        text = "".join(found[place]) if found else ""
        verdicts.append(re.sub(r"[,$]|\.$", "", text) == sample.gold)
    return verdicts


def dr_grpo_verdicts(samples: list[Sample]) -> list[bool]:
    """Judge whole numbers as sail-sg/understand-r1-zero does (math_grader.py, its fast rule).

    That is: the last box, without currency, percent sign, commas and a unit, letter by letter.
    """
    verdicts = []
    for sample in samples:
        box = sample.completion.rpartition("\\boxed{")[2] if "\\boxed{" in sample.completion else ""
        inside = re.match(r"(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*", box)[0]
        number = re.sub(r"\\text\s*\{ [^{}]*\}$|\\?[$%]|[, ]", "", inside)
        verdicts.append(number == sample.gold)
    return verdicts


GRADERS: dict[str, Callable[[list[Sample]], list[bool]]] = {
    "this project": our_verdicts,
    "math-verify": math_verify_verdicts,
    "TRL accuracy_reward": trl_verdicts,
    "harness, strict-match": partial(harness_verdicts, pattern=r"#### (\-?[0-9\.\,]+)", place=0),
    "harness, flexible-extract": partial(
        harness_verdicts, pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)", place=-1
    ),
    "Dr. GRPO": dr_grpo_verdicts,
}


def measure(rounds: int, count: int, seed: int) -> tuple[dict[str, list[float]], Verdicts]:
    """Give CPU seconds per completion by grader and round, and the verdicts by ending."""
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
    ours = times["this project"]
    length = sum(len(sample.completion) for sample in make_samples(1000, 0)) // 1000
    lines = ["# The numeric grader, beside five others", "", *machine(), ""]
    lines += [
        f"{count:,} completions of about {length} characters in each of {rounds} rounds; medians.",
        "",
    ]
    lines += [
        "| grader | µs per completion (CPU) | completions per second | times as long as here |",
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
    """Give the share of completions, over all endings alike, that get the verdict they deserve."""
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
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text() if cpuinfo.is_file() else ""
    model = (re.findall(r"model name\s*:\s*(.*)", lines) or [platform.machine()])[0]
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
