r"""The symbolic grader: what is equal, and that nothing a model writes hangs, crashes or runs anything."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("math_verify", reason="math-verify is not installed")

from grpo_math.grading import latex_worker as symbolic
from grpo_math.grading.graders import Verdict, grade_number
from grpo_math.grading.latex import grade_symbolic

ROOT = Path(__file__).parent.parent

EQUAL = [
    (r"\frac{\sqrt{3}}{2}", r"\frac{\sqrt 3}{2}"),
    (r"\frac{\sqrt{3}}{2}", r"\dfrac{\sqrt{3}}{2}"),
    (r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2"),
    (r"\frac{\pi}{2}", r"\pi/2"),
    (r"3\pi", r"3 \pi"),
    (r"3\pi", r"$3\pi$"),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"x^2+2x+1", r"(x+1)^2"),
    (r"x^2 + 1", r"1 + x^2"),
    (r"2x + 3", r"3 + 2x"),
    (r"[0,1)", r"[0, 1)"),
    (r"(-\infty, 2]", r"(-\infty,2]"),
    (r"(3, \frac{\pi}{2})", r"\left(3, \frac{\pi}{2}\right)"),
    (r"(1,-2)", r"(1, -2)"),
    ("1,2", "2, 1"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"1,2", r"1 \text{ and } 2"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{(C)}", r"\text{C}"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"2^{10}", "1024"),
    (r"\sin^2 x", r"\sin^2(x)"),
    (r"x = \frac{y}{2}", r"x=\frac{y}{2}"),
    (r"3 + 4i", r"4i + 3"),
    (r"\log_2 3", r"\log_{2}{3}"),
]
UNEQUAL = [
    (r"\frac{\sqrt{3}}{2}", r"\frac{\sqrt{3}}{3}"),
    (r"\frac{\pi}{2}", r"\frac{\pi}{3}"),
    (r"\frac{\pi}{2}", "1.57"),
    (r"3\pi", "3"),
    (r"x^2+1", r"x^2+2"),
    (r"x^2+1", r"y^2+1"),
    (r"[0,1)", r"(0,1)"),
    (r"[0,1)", r"x \l 1"),  # no relation, and no reason to end
    (r"[0,1)", r"0 \gq x"),
    (r"(1,-2)", r"(-2,1)"),
    ("1,2", "1,3"),
    ("1,2", "1"),
    (r"\text{Evelyn}", r"\text{Bob}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"),
    (r"x^2+1", r"\frac{1}{"),
    (r"x^2+1", "}{"),
    (r"x^2+1", r"\undefined{x}{y}"),
    (r"x^2+1", "x" * 600),
]
# Each is a Python expression, bare or dressed as mathematics, that would leave a file behind.
CODE = "__import__('pathlib').Path('grader_was_here').touch()"
PAYLOADS = [
    CODE,
    rf"\text{{{CODE}}}",
    rf"f({CODE})",
    rf"\max(1, {CODE})",
    rf"\operatorname{{lcm}}(2, {CODE})",
    rf"\sin({CODE})",
    rf"x_{{{CODE}}}",
    rf"\frac{{1}}{{{CODE}}}",
    rf"{{1, {CODE}}}",
    rf"1 + {CODE}",
    f"Symbol('x').func({CODE})",
    f"exec({CODE!r})",
    f"{CODE}\n{CODE}",
    '"; touch grader_was_here; "',
    r"\input{/etc/passwd}",
    r"\write18{touch grader_was_here}",
]
HOSTILE = [
    r"9^{9^{9^9}}",
    r"99999999!",
    r"(x+1)^{100000}",
    r"\sum_{n=1}^{10^{12}} n^{n}",
    r"\int_0^1 x^{x^{x}} dx",
    r"\binom{10^9}{10^8}",
    r"\operatorname{zeros}(100000, 100000)",
    "{" * 200 + "x" + "}" * 200,
    "(" * 240 + "x" + ")" * 240,
    r"\sqrt{" * 60 + "x" + "}" * 60,
    r"\frac{1}{" * 40 + "x" + "}" * 40,
    "^" * 400,
    "x_" * 200,
    "-" * 400 + "x",
    "9" * 490,
    "1e999999999",
    "\x00\x01",
    "\u202e\u05d0x",
    "\ud800",
]


@pytest.fixture(scope="module", autouse=True)
def worker_is_closed_in_the_end() -> Iterator[None]:
    yield
    symbolic.close()


@pytest.mark.parametrize("gold, answer", EQUAL)
def test_equal(gold: str, answer: str) -> None:
    for other in (answer, gold):
        assert grade_symbolic(f"so $\\boxed{{{other}}}$", gold, "boxed") == Verdict(
            True, True, other.strip("$"), "boxed"
        )


@pytest.mark.parametrize("gold, answer", UNEQUAL)
def test_unequal(gold: str, answer: str) -> None:
    verdict = grade_symbolic(f"<answer>{answer}</answer>", gold, "answer_tag")
    assert (verdict.strict, verdict.lenient, verdict.failed) == (False, False, False)


@pytest.mark.parametrize(
    "completion, gold, mark, strict, lenient, rule",
    [
        (r"#### \frac{\pi}{2}", r"\pi/2", "hash", True, True, "hash"),
        (r"<answer>\frac{\pi}{2}</answer>", r"\pi/2", "answer_tag", True, True, "answer_tag"),
        (r"<answer>$\boxed{\frac{\pi}{2}}$</answer>", r"\pi/2", "answer_tag", True, True, "answer_tag"),
        (r"The answer is $\frac{\pi}{2}$.", r"\pi/2", "phrase", True, True, "phrase"),
        (r"The answer is $\frac{\pi}{2}$. It is 5.", r"\pi/2", "boxed", False, True, "phrase"),
        (r"**Final answer:** \(x+1\)", r"1+x", "phrase", True, True, "phrase"),
        (r"\boxed{x} no: \boxed{x+1}", r"x+1", "boxed", True, True, "boxed"),
        (r"\boxed{x} no: \boxed{x+1}", r"x", "boxed", False, False, "boxed"),
        (r"\boxed{x+1} so the answer is $x$.", r"x+1", "boxed", False, False, "phrase"),
        (r"\boxed{x+1}" + "\n\nQuestion: what else?\n" + r"\boxed{x}", r"x+1", "boxed", True, True, "boxed"),
        (r"x+1", r"x+1", "boxed", False, False, "none"),
        ("", r"x+1", "boxed", False, False, "none"),
        (r"\boxed{}", r"x+1", "boxed", False, False, "none"),
    ],
)
def test_the_last_marked_answer_counts(completion, gold, mark, strict, lenient, rule) -> None:
    verdict = grade_symbolic(completion, gold, mark)
    assert (verdict.strict, verdict.lenient, verdict.rule, verdict.failed) == (strict, lenient, rule, False)


@pytest.mark.parametrize(
    "completion", [r"\boxed{72}", r"\boxed{7+65}", r"\boxed{x=72}", "#### 72", "so 72", r"\boxed{\pi}"]
)
def test_numbers_are_graded_as_numbers_without_a_worker(completion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbolic._Worker, "ask", lambda *_: pytest.fail("asked the worker"))
    assert grade_symbolic(completion, "72", "boxed") == grade_number(completion, "72", "boxed")


def test_an_unknown_mark_is_told() -> None:
    with pytest.raises(ValueError, match="unknown mark 'tag': known marks are hash"):
        grade_symbolic("x", "x", "tag")


def test_a_gold_answer_that_cannot_be_read_is_the_graders_failure() -> None:
    assert grade_symbolic(r"\boxed{x}", r"\undefined{", "boxed").failed
    assert grade_symbolic(r"\boxed{\undefined{x}}", r"\undefined{x}", "boxed") == Verdict(
        True, True, r"\undefined{x}", "boxed"
    )


# --- Nothing a model writes hangs, crashes or runs anything -----------------------------------------------------------


def alive() -> bool:
    return grade_symbolic(r"\boxed{1+x}", "x+1", "boxed") == Verdict(True, True, "1+x", "boxed")


@pytest.mark.parametrize("answer", HOSTILE)
def test_hostile_answers_end_in_time(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert alive()
    monkeypatch.setattr(symbolic, "WALL_SECONDS", 5.0)
    started = time.monotonic()
    verdict = grade_symbolic(f"\\boxed{{{answer}}}", r"\sqrt{2}x", "boxed")
    assert not verdict.strict and not verdict.lenient
    assert time.monotonic() - started < 6
    assert alive()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="CPU time limits need POSIX")
def test_the_limit_is_cpu_time_and_counts_as_a_failure() -> None:
    assert alive()
    before = os.times().children_user
    verdict = grade_symbolic(r"\boxed{9^{9^{9^9}}}", r"\pi x", "boxed")
    assert verdict == Verdict(False, False, r"9^{9^{9^9}}", "boxed", failed=True)
    assert os.times().children_user - before < 20  # of which starting is the most: no endless work
    assert alive()


def test_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    symbolic.close()
    monkeypatch.chdir(tmp_path)  # the worker starts here, and so would what it ran
    try:
        for payload in PAYLOADS:
            for gold in ("x+1", payload + "+x"):
                assert not grade_symbolic(f"\\boxed{{{payload}}}", gold, "boxed").strict
        assert alive()
    finally:
        symbolic.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "attempt",
    [
        f"__import__('sympy').sympify({CODE!r})",
        f"__import__('sympy').S({CODE!r})",
        f"__import__('sympy').parsing.parse_expr({CODE!r})",
        f"__import__('math_verify').parser.parse_expr({CODE!r})",
        f"__import__('math_verify').parse({CODE!r}, raise_on_error=True)[0].nothing",
        "open('grader_was_here', 'w')",
        "os.open('grader_was_here', os.O_CREAT)",
        "os.mkdir('grader_was_here')",
        "os.system('touch grader_was_here')",
        "subprocess.run(['touch', 'grader_was_here'])",
        "os.fork()",
        "socket.create_connection(('127.0.0.1', 9), 1)",
        "bytearray(3 * 2**30)",
    ],
)
def test_the_worker_is_locked_down(attempt: str, tmp_path: Path) -> None:
    code = (
        "import os, socket, subprocess\nfrom grpo_math.grading import latex_worker as symbolic\n"
        "symbolic._lock_down()\nprint('locked')\n" + attempt
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.stdout == "locked\n" and done.returncode == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_worker_that_died_is_replaced() -> None:
    assert alive()
    first = symbolic._worker.process
    first.kill()
    first.wait()
    assert alive()
    assert symbolic._worker.process.pid != first.pid
    second = symbolic._worker.process
    second.kill()  # and not waited for: perhaps found dead only while asking
    grade_symbolic(r"\boxed{x}", "x+1", "boxed")
    assert alive()


def test_works_from_several_threads() -> None:
    wrong = []

    def ask(number: int) -> None:
        for power in range(2, 6):
            verdict = grade_symbolic(rf"\boxed{{x^{power} + {number}}}", rf"{number} + x^{power}", "boxed")
            other = grade_symbolic(rf"\boxed{{x^{power} + {number + 1}}}", rf"{number} + x^{power}", "boxed")
            if not verdict.strict or other.lenient or verdict.failed or other.failed:
                wrong.append((number, power))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_starts_its_own_worker() -> None:
    code = (
        "import os\nfrom grpo_math.grading import latex as s, latex_worker as w\n"
        "ask = lambda: s.grade_symbolic(r'\\boxed{x+1}', '1+x', 'boxed').strict\n"
        "assert ask()\npid = w._worker.process.pid\nchild = os.fork()\nassert ask()\n"
        "assert (w._worker.process.pid == pid) == bool(child)\n"
        "if child: assert os.waitpid(child, 0)[1] == 0 and ask()"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit(0)"])
def test_no_worker_outlives_its_process(end: str, tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"  # grades at import, without `if __name__ == "__main__"`
    script.write_text(
        "import os, signal\nfrom grpo_math.grading import latex as s, latex_worker as w\n"
        "assert s.grade_symbolic(r'\\boxed{x+1}', '1+x', 'boxed').strict\n"
        f"print(w._worker.process.pid, flush=True)\n{end}\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env, timeout=120)
    pid = int(done.stdout)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    pytest.fail(f"worker {pid} is still there")


def test_a_worker_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    symbolic.close()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="import math_verify"):
        grade_symbolic(r"\boxed{x+1}", "1+x", "boxed")
    monkeypatch.undo()
    assert alive()


def test_importing_it_is_cheap() -> None:
    code = (
        "import sys, grpo_math.grading.latex; print([m for m in ('sympy', 'math_verify', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"
