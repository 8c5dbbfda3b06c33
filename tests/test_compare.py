"""The script as users run it, on small files: numbers one can check by hand, refusals that name what is wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from grpo_math.evaluation.intervals import runs_difference

ROOT = Path(__file__).parent.parent
Rows = list[dict[str, Any]]
RIGHT = {"S": (True, True), "L": (False, True), "W": (False, False)}  # Strictly right, only leniently right, wrong.


def make_rows(questions: str | list[str]) -> Rows:
    """Rows of questions whose samples are spelled in letters of RIGHT: "SW" is two questions, ["SW"] two samples."""
    rows = []
    for i, letters in enumerate(questions):
        question, gold = f"What is {i} + 1?", str(i + 1)
        about = {"id": f"test-{i}", "question": question, "gold": gold, "prompt": f"Solve: {question}", "rule": "mark"}
        end = {"completion": "...", "failed": False, "tokens": 7, "finish_reason": "stop"}
        for sample, letter in enumerate(letters):
            strict, lenient = RIGHT[letter]
            answer = gold if lenient else ""
            rows.append({**about, "sample": sample, "extracted": answer, "strict": strict, "lenient": lenient, **end})
    return rows


def write(path: Path, rows: Rows, settings: dict[str, Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"settings": settings or {"model": f"org/{path.stem}"}, "results": {"questions": len(rows)}}
    path.with_suffix(".json").write_text(json.dumps(summary))
    return path


def script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "compare_evaluations.py", *map(str, arguments)])


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def compare(tmp_path: Path, a: Rows, b: Rows, *options: str) -> str:
    done = script(write(tmp_path / "A.jsonl", a), write(tmp_path / "B.jsonl", b), *options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an exit with status 2."""
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "a, b, relation, strict, lenient, form",
    [
        ("W" * 100, "S" * 30 + "W" * 70, "better than", 30, 30, 0),
        ("S" * 30 + "W" * 70, "W" * 100, "worse than", -30, -30, 0),
        ("L" * 50 + "W" * 50, "S" * 50 + "W" * 50, "better than", 50, 0, 50),
        ("W" * 100, "S" * 20 + "L" * 20 + "W" * 60, "better than", 20, 40, -20),
        ("W" * 100, "L" * 20 + "W" * 80, "not significantly different from", 0, 20, -20),
        ("W" * 100, "S" * 3 + "W" * 97, "not significantly different from", 3, 3, 0),
        ("SW" * 50, "SW" * 50, "not significantly different from", 0, 0, 0),
        # The interval leaves out zero here, McNemar's test (p = 0.065) does not reject: no claim.
        ("W" * 9 + "S" * 91, "S" * 9 + "WW" + "S" * 89, "not significantly different from", 7, 7, 0),
        (["WWWW"] * 60, ["SSSW"] * 60, "better than", 75, 75, 0),
    ],
)
def test_verdict(tmp_path: Path, a: Any, b: Any, relation: str, strict: int, lenient: int, form: int) -> None:
    result = json.loads(compare(tmp_path, make_rows(a), make_rows(b), "--json"))["comparisons"][0]
    assert result["verdict"].startswith(f"B is {relation} A: {strict:+.1f} points strict [")
    assert result["verdict"].endswith(f"format accounts for {form:+.1f}.")
    for outcome, expected in ((result["strict"], strict), (result["lenient"], lenient)):
        assert outcome["value"] * 100 == pytest.approx(expected) and outcome["low"] < outcome["high"]
        assert outcome["other"] - outcome["first"] == pytest.approx(outcome["value"])
    assert result["strict"]["significant"] == relation.endswith("than")
    assert ("(not significant)" in result["verdict"]) != result["lenient"]["significant"]


def test_counts_p_and_examples(tmp_path: Path) -> None:
    a, b = make_rows("W" * 6 + "L" + "S" * 3), make_rows("S" * 6 + "S" + "WSS")
    result = json.loads(compare(tmp_path, a, b, "--json", "--examples", "1"))
    strict, lenient = (result["comparisons"][0][outcome] for outcome in ("strict", "lenient"))
    assert (strict["wrong_to_right"], strict["right_to_wrong"], strict["mcnemar_p"]) == (7, 1, 2 * (1 + 8) / 2**8)
    assert (lenient["wrong_to_right"], lenient["right_to_wrong"], lenient["mcnemar_p"]) == (6, 1, 2 * (1 + 7) / 2**7)
    assert strict["examples"] == {"wrong_to_right": ["test-0"], "right_to_wrong": ["test-7"]}
    assert [each["model"] for each in result["evaluations"]] == ["org/A", "org/B"] and result["warnings"] == []


def test_text_report(tmp_path: Path) -> None:
    text = compare(tmp_path, make_rows("WL" + "S" * 8), make_rows("SS" + "S" * 7 + "W"), "--examples", "5")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "A 10 1 80.0% [49.0, 94.3] 90.0% [59.6, 98.2] 0.0% org/A" in lines
    assert any(line.startswith("strict 80.0% 90.0% +10.0 [") and line.endswith("1.0000 2 1") for line in lines)
    start = lines.index("Wrong to right, strict: 2 of 2")
    assert lines[start + 2 : start + 4] == ["test-0: What is 0 + 1?", "gold: 1, A: (none), B: 1"]
    assert lines[start + 4 : start + 6] == ["test-1 (format only): What is 1 + 1?", "gold: 2, A: 2, B: 2"]
    assert "Right to wrong, strict: 1 of 1" in lines
    assert "gold" not in compare(tmp_path, make_rows("WS"), make_rows("SW"), "--examples", "0")


def test_several_samples_leave_mcnemar_out(tmp_path: Path) -> None:
    a, b = make_rows(["SSWW", "WWWW", "SSSS"]), make_rows(["SSSW", "SSWW", "SSSS"])
    text = compare(tmp_path, a, b)
    assert "McNemar's test is left out" in text and "Wrong to right, strict: 1 of 1" in text
    strict = json.loads(compare(tmp_path, a, b, "--json"))["comparisons"][0]["strict"]
    assert strict["mcnemar_p"] is None and strict["value"] == pytest.approx((0.25 + 0.5 + 0) / 3)


def test_model_text_cannot_steer_the_terminal(tmp_path: Path) -> None:
    a, b = make_rows("W"), make_rows("S")
    for row in (*a, *b):
        row.update(question="How\x1b[2J\n\x07 many\u202e?\x9b31m", gold="7\ud800", id="id\x1b]0;title\x07")
    b[0]["extracted"] = "\x1b[31m7\x1b[0m" + "9" * 500
    for option in ((), ("--markdown",), ("--json",)):
        text = compare(tmp_path, a, b, *option)
        assert all(character.isprintable() or character == "\n" for character in text)
    assert "How many?" in compare(tmp_path, a, b)
    assert max(map(len, compare(tmp_path, a, b).splitlines())) < 200


def test_markdown_shows_model_text_as_text(tmp_path: Path) -> None:
    a, b = make_rows("W"), make_rows("S")
    for row in (*a, *b):
        row["question"] = "<img src=x> [a](b) 2*3*4 | $5"
    text = compare(tmp_path, a, b, "--markdown")
    assert r"\<img src=x\> \[a\](b) 2\*3\*4 \| \$5" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert tables[0] == "| evaluation | questions | samples | strict | lenient | cut off | model |"
    assert {line.count("|") for line in tables[:4]} == {8} and {line.count("|") for line in tables[4:]} == {8}


def test_every_later_file_is_compared_with_the_first(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / folder / "x.jsonl", make_rows(s)) for folder, s in zip("abc", ("W", "S", "L"), strict=True)
    ]
    result = json.loads(script(*paths, "--json").stdout)
    assert [(each["first"], each["other"]) for each in result["comparisons"]] == [
        (str(paths[0]), str(paths[1])),  # Whole paths, since the names are the same.
        (str(paths[0]), str(paths[2])),
    ]
    assert result["warnings"] == ["2 comparisons: each is tested at 5%, so one may look significant by chance"]


def test_runs_of_one_way_to_train_are_compared_as_one(tmp_path: Path) -> None:
    base = write(tmp_path / "base.jsonl", make_rows("WWWWWWWWSS"))
    runs = [
        write(tmp_path / f"seed{i}.jsonl", make_rows(letters))
        for i, letters in enumerate(("SSSSSSSSWS", "SSSSWWWWSS", "LSSSSSSWSS"))
    ]
    joined = ",".join(map(str, runs))
    result = json.loads(script(base, joined, "--json").stdout)
    assert [each["name"] for each in result["evaluations"]] == ["base", "seed0", "seed1", "seed2"]
    (compared,) = result["comparisons"]
    assert compared["other"] == "the mean of seed0 and 2 more"
    strict = compared["strict"]
    assert strict["first_runs"] == {}
    assert strict["other_runs"] == pytest.approx({"seed0": 0.9, "seed1": 0.6, "seed2": 0.8})
    scores = [[float(letter == "S") for letter in letters] for letters in ("SSSSSSSSWS", "SSSSWWWWSS", "LSSSSSSWSS")]
    expected = runs_difference([[0.0] * 8 + [1.0] * 2], scores)
    assert (strict["value"], strict["low"], strict["high"]) == pytest.approx(expected)
    assert strict["mcnemar_p"] is None and (strict["wrong_to_right"], strict["right_to_wrong"]) == (7, 0)
    text = script(base, joined).stdout
    assert "the mean of seed0 and 2 more, strict: 90.0%, 60.0%, 80.0%; " in text and "deviation of 15.3 points" in text
    other_way = json.loads(script(joined, base, "--json").stdout)["comparisons"][0]["strict"]
    assert (other_way["value"], other_way["first_runs"]) == (-strict["value"], strict["other_runs"])


def test_files_that_cannot_be_joined(tmp_path: Path) -> None:
    for name, questions in (("a", "SW"), ("b", "SWS"), ("c", "SW"), ("n2", ["SS", "SW"]), ("part", ["SS", "S"])):
        write(tmp_path / f"{name}.jsonl", make_rows(questions))
    write(tmp_path / "a,b.jsonl", make_rows("SS"))
    base = tmp_path / "a.jsonl"
    for names, words in (
        ("b c", "b.jsonl and {}/c.jsonl are joined by a comma, but 1 of 3 questions are only in"),
        ("c n2", "are joined by a comma, but have 1 to 2 samples per question"),
        ("part n2", "are joined by a comma, but have 1 to 2 samples per question"),
        ("c nowhere", "nowhere.jsonl: no such file"),
    ):
        message = refusal(script(base, ",".join(f"{tmp_path}/{name}.jsonl" for name in names.split())))
        assert words.format(tmp_path) in message
    assert script(base, tmp_path / "a,b.jsonl").returncode == 0, "a name may have a comma in it"
    for joined in (",", f"{tmp_path}/b.jsonl,", f"{tmp_path}/b.jsonl,,{tmp_path}/c.jsonl", ", ,"):
        done = script(base, joined)
        assert done.returncode == 2 and "a name is missing beside a comma" in done.stderr
    long = ",".join(f"{'x' * 60}{i}.jsonl" for i in range(9))
    assert f"{'x' * 60}0.jsonl: no such file" in refusal(script(base, long))


def test_runs_of_one_model_are_said_to_be_none(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.jsonl", make_rows("SW"), {"model": "m"}) for i in range(3)]
    assert "warning: 1 and 2 are of the same model" in script(paths[0], f"{paths[1]},{paths[2]}").stdout


def edited(**changes: Any) -> Rows:
    """Four wrong answers; `changes` go into the third row."""
    rows = make_rows("WWWW")
    rows[2].update(changes)
    return rows


@pytest.mark.parametrize(
    "other, words, shared",
    [
        (make_rows("SSS"), ["1 of 4 questions are only in", "A.jsonl"], 3),
        (make_rows("SSSSSS"), ["2 of 6 questions are only in", "B.jsonl"], 4),
        (edited(id="else"), ["1 of 4 questions are only in", "A.jsonl", "B.jsonl"], 3),
        (edited(prompt="Q: ?"), ["1 of 4 prompts differ (first: id 'test-2')"], 4),
        (edited(gold="8"), ["1 of 4 gold answers differ (first: id 'test-2')"], 3),
        (edited(question="?"), ["1 of 4 question texts differ (first: id 'test-2')"], 3),
    ],
    ids=["fewer", "more", "other_id", "prompt", "gold", "question"],
)
def test_mismatch_is_refused_unless_allowed(tmp_path: Path, other: Rows, words: list[str], shared: int) -> None:
    paths = write(tmp_path / "A.jsonl", make_rows("WWWW")), write(tmp_path / "B.jsonl", other)
    message = refusal(script(*paths))
    assert all(word in message for word in [*words, f"--allow_mismatch to compare the {shared} they share"])
    result = json.loads(script(*paths, "--allow_mismatch", "--json").stdout)
    assert result["comparisons"][0]["questions"] == shared
    assert all(word in result["warnings"][0] for word in [*words, f"on {shared} shared questions"])


def test_nothing_in_common_is_refused_even_if_allowed(tmp_path: Path) -> None:
    paths = write(tmp_path / "A.jsonl", make_rows("W")), write(tmp_path / "B.jsonl", edited()[2:])
    assert "they share none" in refusal(script(*paths, "--allow_mismatch"))


def test_the_evaluators_own_files_raise_no_doubt(tmp_path: Path) -> None:
    from grpo_math.evaluation.results import ResultsFile

    for name, rows in (("A", make_rows(["SW", "LW", "WW"])), ("B", make_rows(["SS", "SW", "LL"]))):
        file = ResultsFile(tmp_path / f"{name}.jsonl", {"model": name, "temperature": 1.0, "n": 2}, {"versions": {}})
        file.append(rows)
        file.finish(["test-0", "test-1", "test-2"], {})
    result = json.loads(script(tmp_path / "A.jsonl", tmp_path / "B.jsonl", "--json").stdout)
    assert result["warnings"] == [] and [each["model"] for each in result["evaluations"]] == ["A", "B"]


@pytest.mark.parametrize(
    "rows, summary, warning",
    [
        (make_rows("WWWW"), None, "B.json: is absent"),
        (make_rows("WWWW"), "{", "B.json: cannot be read"),
        (make_rows("WWWW"), '{"results": null}', "B.json: has no results; the evaluation is incomplete"),
        (
            make_rows("WWWW"),
            '{"results": {"strict": {"accuracy": 0.75}}}',
            "B.jsonl: does not give the accuracy in its",
        ),
        (make_rows(["WW", "W"]), "[]", "B.jsonl: 1 to 2 samples per question; the evaluation is incomplete"),
        (edited(failed=True), "{}", "B.jsonl: 1 of 4 answers could not be graded and count as wrong"),
    ],
    ids=["no_summary", "bad_summary", "no_results", "changed", "unequal", "failed"],
)
def test_what_is_doubtful_is_said(tmp_path: Path, rows: Rows, summary: str | None, warning: str) -> None:
    paths = write(tmp_path / "A.jsonl", rows), write(tmp_path / "B.jsonl", rows)
    paths[1].with_suffix(".json").unlink()
    if summary:
        paths[1].with_suffix(".json").write_text(summary)
    done = script(*paths)
    assert done.returncode == 0 and f"  warning: {tmp_path}/{warning}" in done.stdout


def test_other_sampling_settings_are_said(tmp_path: Path) -> None:
    a = write(tmp_path / "A.jsonl", make_rows("W"), {"temperature": 0.0, "max_tokens": 512, "batch_size": 8})
    b = write(tmp_path / "B.jsonl", make_rows("W"), {"temperature": 1.0, "max_tokens": 512, "batch_size": 16})
    assert "warning: B was not sampled like A: temperature 0.0 -> 1.0\n" in script(a, b).stdout


LINES = [json.dumps(row) for row in make_rows("WW")]


@pytest.mark.parametrize(
    "lines, words",
    [
        ([], ["B.jsonl", "no rows"]),
        ([LINES[0], LINES[1][:40]], ["B.jsonl, line 2", "not valid JSON", "ends within this line"]),
        ([LINES[0], "[]", LINES[1]], ["B.jsonl, line 2", "expected a JSON object"]),
        ([LINES[0], LINES[1].replace('"gold"', '"golf"')], ["B.jsonl, line 2", 'no field "gold"', "evaluate_gsm8k.py"]),
        ([LINES[0].replace('"strict": false', '"strict": "no"')], ["line 1", 'field "strict" is "no", expected bool']),
        ([LINES[0].replace('"sample": 0', '"sample": true')], ["line 1", 'field "sample" is true, expected int']),
        (
            [LINES[0].replace('"extracted": ""', '"extracted": null')],
            ["line 1", 'field "extracted" is null, expected str'],
        ),
        ([LINES[0], LINES[0]], ["line 2", "sample 0 of id 'test-0' is there already"]),
        ([LINES[0], LINES[0].replace("Solve", "Do")], ["line 2", 'field "prompt" is not that of the other samples']),
    ],
    ids=["empty", "torn", "array", "no_field", "str_bool", "bool_int", "null", "twice", "two_prompts"],
)
def test_bad_rows_are_named(tmp_path: Path, lines: list[str], words: list[str]) -> None:
    a, b = write(tmp_path / "A.jsonl", make_rows("WW")), tmp_path / "B.jsonl"
    b.write_text("\n".join(lines))
    message = refusal(script(a, b))
    assert all(word in message for word in words)


def test_bad_paths_are_named(tmp_path: Path) -> None:
    a = write(tmp_path / "A.jsonl", make_rows("WW"))
    assert "absent.jsonl: no such file" in refusal(script(a, tmp_path / "absent.jsonl"))
    assert "is a folder" in refusal(script(a, tmp_path))
    assert "A.json: is the summary; give" in refusal(script(a, a.with_suffix(".json")))
    assert "given twice" in refusal(script(a, tmp_path / "." / "A.jsonl"))


@pytest.mark.parametrize(
    "arguments", [[], ["A.jsonl"], ["A", "B", "--examples", "-1"], ["A", "B", "--json", "--markdown"]]
)
def test_bad_arguments(arguments: list[str]) -> None:
    done = script(*arguments)
    assert done.returncode == 2 and "compare_evaluations.py: error:" in done.stderr


def test_help_shows_commands_and_importing_runs_nothing_heavy() -> None:
    assert "python compare_evaluations.py evals/base.jsonl evals/trained.jsonl" in script("--help").stdout
    program = "import sys, compare_evaluations; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = run([sys.executable, "-c", program])
    assert (done.stdout, done.stderr) == ("set()\n", "")
