"""The prepare scripts: what they write, again and again the same, and what they refuse."""

import re

import pytest
from grpo_math.data.problems import DIFFERENCE_TEMPLATES, SUM_TEMPLATES, Problem, count_problems, sum_problems
from grpo_math.data.rows import load_rows
from grpo_math.data.tasks import gsm8k_answer, latex_answer
from grpo_math.errors import UsageError

from conftest import read_rows, script, write_jsonl


def test_arithmetic_answers_are_those_of_the_numbers_in_the_question():
    """The template tells the operation, the numbers are read back from the text: the generator is not asked."""
    patterns = {
        re.compile(re.escape(template).replace(r"\{a\}", r"(?P<a>-?\d+)").replace(r"\{b\}", r"(?P<b>-?\d+)")): sign
        for templates, sign in ((SUM_TEMPLATES, 1), (DIFFERENCE_TEMPLATES, -1))
        for template in templates
    }
    for problem in sum_problems(2000, -99, 99, seed=3):
        (match, sign) = next((m, s) for p, s in patterns.items() if (m := p.fullmatch(problem.question)))
        assert problem.answer == int(match["a"]) + sign * int(match["b"]), problem.question


def test_arithmetic_range_can_be_used_up():
    problems = sum_problems(count_problems(0, 2), 0, 2, seed=0)
    assert len({p.key for p in problems}) == 6 + 9


def test_arithmetic_sum_is_the_same_problem_in_either_order():
    assert Problem(3, 5, "+", 0).key == Problem(5, 3, "+", 4).key
    assert Problem(3, 5, "-", 0).key != Problem(5, 3, "-", 0).key


def test_prepare_arithmetic_is_reproducible_and_its_splits_are_disjoint(tmp_path):
    files = {}
    for name, seed in (("one", "7"), ("two", "7"), ("three", "8")):
        done = script(
            [
                "prepare_arithmetic.py",
                "--num_problems",
                400,
                "--test_split",
                0.25,
                "--seed",
                seed,
                "--output_dir",
                name,
            ],
            tmp_path,
        )
        assert done.returncode == 0, done.stderr
        files[name] = [(tmp_path / name / f"{split}.jsonl").read_bytes() for split in ("train", "test")]
    assert files["one"] == files["two"] != files["three"]
    train, test = (read_rows(tmp_path / "one" / f"{split}.jsonl") for split in ("train", "test"))
    assert (len(train), len(test)) == (300, 100)

    def numbers(row):
        return frozenset(re.findall(r"-?\d+", row["question"])), row["answer"]

    assert not {numbers(row) for row in train} & {numbers(row) for row in test}


def test_prepare_arithmetic_without_a_test_split(tmp_path):
    done = script(["prepare_arithmetic.py", "--num_problems", 40, "--test_split", 0], tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(tmp_path / "data/arithmetic/train.jsonl")) == 40
    assert not (tmp_path / "data/arithmetic/test.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min_num", "5", "--max_num", "4"], "--min_num 5 is above --max_num 4"),
        (["--min_num", "0", "--max_num", "1", "--num_problems", "50"], "only 7 distinct problems"),
        (["--test_split", "1"], "--test_split 1.0"),
        (["--num_problems", "1"], "--num_problems 1"),
    ],
)
def test_prepare_arithmetic_refuses(tmp_path, arguments, message):
    done = script(["prepare_arithmetic.py", *arguments], tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert not (tmp_path / "data").exists()


GSM_ROWS = [
    {
        "question": "Tom has 1,200 apples and buys 34. How many?",
        "answer": "1200 + 34 = <<1200+34=1234>>1234\n#### 1,234",
    },
    {"question": "A pen costs $0.50. What do 3 cost?", "answer": "3 * 0.5 = 1.5\n#### 1.50"},
    {"question": "It was 3 degrees and fell by 5. What is it?", "answer": "3 - 5 = -2\n#### -2"},
]


def test_prepare_gsm8k_from_a_folder(tmp_path):
    write_jsonl(tmp_path / "raw/train.jsonl", GSM_ROWS)
    write_jsonl(tmp_path / "raw/test.jsonl", [{**row, "question": row["question"] + "?"} for row in GSM_ROWS])
    done = script(["prepare_gsm8k.py", "--source", "raw", "--eval_size", "2"], tmp_path)
    assert done.returncode == 0, done.stderr
    train = load_rows(tmp_path / "data/gsm8k/train.jsonl")
    assert [row["answer"] for row in train] == ["1234", "1.5", "-2"]
    assert train[0]["solution"] == GSM_ROWS[0]["answer"]
    assert len(read_rows(tmp_path / "data/gsm8k/eval.jsonl")) == 2
    assert "3 questions, sha256" in done.stdout


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (
            [{"question": "q", "answer": "no mark"}],
            [],
            "raw/train.jsonl, line 1: the solution does not end in",
        ),
        ([GSM_ROWS[0], {"question": "q"}], [], "raw/train.jsonl, line 2: field 'answer' is missing"),
        (
            [{"question": None, "answer": "#### 1"}],
            [],
            "raw/train.jsonl, line 1: field 'question' is missing or",
        ),
        (GSM_ROWS, ["--eval_size", "some"], "--eval_size 'some'"),
        (GSM_ROWS, ["--source", "./nowhere"], "./nowhere: no such file or folder"),
        (GSM_ROWS, ["--source", "nobody/nothing"], "nobody/nothing: could not be loaded"),
    ],
)
def test_prepare_gsm8k_refuses(tmp_path, rows, arguments, message):
    write_jsonl(tmp_path / "raw/train.jsonl", rows)
    write_jsonl(tmp_path / "raw/test.jsonl", GSM_ROWS)
    done = script(["prepare_gsm8k.py", "--source", "raw", *arguments], tmp_path)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_prepare_gsm8k_says_when_questions_are_in_both_splits(tmp_path):
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"raw/{split}.jsonl", GSM_ROWS)
    done = script(["prepare_gsm8k.py", "--source", "raw"], tmp_path)
    assert "3 evaluation questions are in the training split too" in done.stdout


def test_prepare_gsm8k_on_the_real_data(tmp_path, gsm8k):
    done = script(["prepare_gsm8k.py", "--source", gsm8k], tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(load_rows(tmp_path / "data/gsm8k/train.jsonl")) == 7473
    assert len(load_rows(tmp_path / "data/gsm8k/eval.jsonl")) == 500


@pytest.mark.parametrize("solution", ["", "72", "#### ", "#### many", "72\n####"])
def test_gsm8k_answer_refuses(solution):
    with pytest.raises(ValueError, match="####"):
        gsm8k_answer(solution)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "q"}', "no field 'answer'"),
        ('{"answer": 1}', "no field 'question'"),
        ('{"question": 3, "answer": 1}', "'question' must be a text"),
        ('{"question": "  ", "answer": 1}', "'question' must be a text that is not empty"),
        ('{"question": "q", "answer": null}', "'answer' must be a text or a number, got null"),
        ('{"question": "q", "answer": [1]}', "'answer' must be a text or a number"),
        ('{"question": "q", "answer": true}', "'answer' must be a text or a number"),
        ('{"question": "q", "answer": "seven"}', "'seven' is not an answer to task 'custom'"),
        ('{"question": "q", "answer": "so\\n#### 7"}', "run prepare_gsm8k.py first"),
        ('{"question": "q", "answer": "7", "task": "chess"}', "unknown task 'chess': known tasks are gsm8k"),
        ('["question"]', "expected a JSON object"),
        ('{"question": "q", ', "not valid JSON"),
    ],
)
def test_load_rows_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "one", "answer": "1"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_rows(path)
    assert message in str(caught.value)
    assert re.search(r"rows\.jsonl(:|, line )2", str(caught.value))


def test_load_rows_gives_every_row_an_id_of_its_own(tmp_path):
    rows = load_rows(
        write_jsonl(tmp_path / "r.jsonl", [{"question": "q", "answer": 1}] * 2 + [{"question": "p", "answer": 2}])
    )
    assert len({row["id"] for row in rows}) == 3
    assert rows[1]["id"] == rows[0]["id"] + "-2"
    assert rows[0]["task"] == "custom" and rows[0]["answer"] == "1"


def test_prepare_gsm8k_from_a_copy_of_the_hubs_repository(tmp_path):
    """The path that a Hub id takes: `datasets` reads the repository's own layout, parquet files in a folder `main`."""
    from datasets import Dataset

    (tmp_path / "copy/main").mkdir(parents=True)
    configs = "".join(f"  - split: {s}\n    path: main/{s}-*\n" for s in ("train", "test"))
    (tmp_path / "copy/README.md").write_text(f"---\nconfigs:\n- config_name: main\n  data_files:\n{configs}---\n")
    for split in ("train", "test"):
        Dataset.from_list(GSM_ROWS).to_parquet(tmp_path / f"copy/main/{split}-00000-of-00001.parquet")
    done = script(["prepare_gsm8k.py", "--source", "./copy"], tmp_path, HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr
    assert [row["answer"] for row in load_rows(tmp_path / "data/gsm8k/train.jsonl")] == ["1234", "1.5", "-2"]


def saved(layout, folder):
    """GSM_ROWS as one of the layouts that people have them in; what --source is then."""
    from datasets import Dataset, DatasetDict

    table = Dataset.from_list(GSM_ROWS)
    if layout == "save_to_disk":
        DatasetDict({"train": table, "test": table}).save_to_disk(folder / "saved")
        return "saved"
    (folder / "main").mkdir()
    if layout == "main alone":
        for split in ("train", "test"):
            table.to_parquet(folder / f"main/{split}-00000-of-00001.parquet")
        return "./main"
    path = folder / f"main/train.{layout}"
    (table.to_csv if layout == "csv" else table.to_parquet)(path)
    return f"main/train.{layout}"


@pytest.mark.parametrize("layout", ["parquet", "csv", "save_to_disk", "main alone"])
def test_prepare_gsm8k_from_tables(tmp_path, layout):
    source = saved(layout, tmp_path)
    done = script(["prepare_gsm8k.py", "--source", source], tmp_path, HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr
    assert [row["answer"] for row in load_rows(tmp_path / "data/gsm8k/train.jsonl")] == ["1234", "1.5", "-2"]


def test_prepare_arithmetic_makes_the_sums_it_always_made(tmp_path):
    """The starter model was made with these test questions held out, and published numbers are about them."""
    done = script(["prepare_arithmetic.py"], tmp_path)
    assert done.stdout.splitlines() == [
        "data/arithmetic/train.jsonl: 4,500 problems, sha256 7bdba9daac6263bd",
        "data/arithmetic/test.jsonl: 500 problems, sha256 808a46c89a3d53e4",
    ]


def test_prepare_arithmetic_mixed(tmp_path):
    done = script(["prepare_arithmetic.py", "--kind", "mixed", "--num_problems", 90, "--depth", 2], tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [row for split in ("train", "test") for row in load_rows(tmp_path / f"data/mixed/{split}.jsonl")]
    assert len(rows) == 90 and sum(row["task"] == "polynomial" for row in rows) == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "expression", "--depth", "1"], "--depth 1: must lie between 2 and 10"),
        (["--kind", "polynomial", "--min_num", "1", "--max_num", "0"], "--min_num 1 is above --max_num 0"),
        (["--kind", "polynomial", "--min_num", "1", "--max_num", "1"], "distinct problems were found; ask for fewer"),
    ],
)
def test_prepare_arithmetic_of_other_kinds_refuses(tmp_path, arguments, message):
    done = script(["prepare_arithmetic.py", *arguments], tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr and not (tmp_path / "data").exists()


MATH_ROWS = [
    {
        "problem": "What is $1/2$ of $x$?",
        "solution": r"It is $\boxed{\dfrac{x}{2}}$.",
        "answer": r"\dfrac{x}{2}",
        "subject": "Algebra",
        "level": 1,
    },
    {
        "problem": "How many ways are there?",
        "solution": r"First \boxed{2}, but then $\boxed{1,\!200}$ ways.",
        "type": "Counting & Probability",
        "level": "Level 5",
    },
    {"problem": "Find it.", "solution": r"$\boxed{(0,1]}$", "type": "Algebra", "level": "Level ?"},
]


def test_prepare_math_from_a_folder(tmp_path):
    write_jsonl(tmp_path / "raw/train.jsonl", MATH_ROWS)
    write_jsonl(tmp_path / "raw/test.jsonl", [{**row, "problem": row["problem"] + "?"} for row in MATH_ROWS])
    done = script(["prepare_math.py", "--source", "raw", "--eval_size", 2], tmp_path)
    assert done.returncode == 0, done.stderr
    rows = load_rows(tmp_path / "data/math/train.jsonl")
    assert [row["answer"] for row in rows] == [r"\frac{x}{2}", "1200", "(0,1]"]
    assert [row["level"] for row in rows] == [1, 5, 0]
    assert {row["task"] for row in rows} == {"math"} and rows[1]["solution"] == MATH_ROWS[1]["solution"]
    assert len(read_rows(tmp_path / "data/math/eval.jsonl")) == 2

    again = script(["prepare_math.py", "--source", "raw", "--eval_size", 2], tmp_path)
    assert again.returncode == 0, "the same rows are no reason to stop"
    before = (tmp_path / "data/math/eval.jsonl").read_bytes()
    other = script(["prepare_math.py", "--source", "raw"], tmp_path)
    assert other.returncode == 2 and "data/math/eval.jsonl: exists and holds other rows; give --force" in other.stderr
    assert (tmp_path / "data/math/eval.jsonl").read_bytes() == before
    assert script(["prepare_math.py", "--source", "raw", "--force"], tmp_path).returncode == 0
    assert len(read_rows(tmp_path / "data/math/eval.jsonl")) == 3


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["--levels", "1"], [0]),
        (["--levels", "1", "5"], [0, 1]),
        (["--subjects", "algebra"], [0, 2]),
        (["--subjects", "counting_and_probability", "--levels", "5"], [1]),
    ],
)
def test_prepare_math_filters(tmp_path, arguments, kept):
    write_jsonl(tmp_path / "train.jsonl", MATH_ROWS)
    done = script(["prepare_math.py", "--source", "train.jsonl", *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    questions = [row["question"] for row in read_rows(tmp_path / "data/math/train.jsonl")]
    assert questions == [MATH_ROWS[i]["problem"] for i in kept]


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([{"problem": "p"}], [], "raw/train.jsonl, line 1: field 'solution' is missing"),
        ([MATH_ROWS[0], {"problem": "p", "solution": "none"}], [], "raw/train.jsonl, line 2: no answer: neither"),
        ([{**MATH_ROWS[0], "answer": 7}], [], "raw/train.jsonl, line 1: field 'answer' is missing or not a text"),
        (MATH_ROWS, ["--splits", "test"], "raw/test.jsonl: no such file"),
        (MATH_ROWS, ["--subjects", "chess"], "--subjects 'chess': no such subject; there are Algebra, Counting"),
        (MATH_ROWS, ["--levels", "3"], "--levels and --subjects leave no row"),
        (MATH_ROWS, ["--source", "raw/train.jsonl", "--splits", "test"], "is taken for the train split"),
        (MATH_ROWS, ["--source", "nobody/nothing"], "nobody/nothing: could not be loaded"),
    ],
)
def test_prepare_math_refuses(tmp_path, rows, arguments, message):
    write_jsonl(tmp_path / "raw/train.jsonl", rows)
    arguments = ["--splits", "train", *arguments] if "--splits" not in arguments else arguments
    done = script(["prepare_math.py", "--source", "raw", *arguments], tmp_path)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_prepare_math_from_a_copy_of_the_hubs_repository(tmp_path):
    from datasets import Dataset

    (tmp_path / "copy/data").mkdir(parents=True)
    rows = [{key: str(row.get(key, "")) for key in ("problem", "solution", "level")} for row in MATH_ROWS]
    for split in ("train", "test"):
        Dataset.from_list(rows).to_parquet(tmp_path / f"copy/data/{split}-00000-of-00001.parquet")
    done = script(["prepare_math.py", "--source", "./copy"], tmp_path, HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr
    assert [row["answer"] for row in load_rows(tmp_path / "data/math/train.jsonl")] == [r"\frac{x}{2}", "1200", "(0,1]"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\dfrac{1}{2}", "0.5"),
        (r"$\tfrac{\pi}{2}$.", r"\frac{\pi}{2}"),
        (r"\boxed{ 1,000 }", "1000"),
        (r"90^\circ", "90"),
        (r"\(x^2\)", "x^2"),
        ("$5$ and $6$", "$5$ and $6$"),
        (r"\boxed{1} or \boxed{2}", r"\boxed{1} or \boxed{2}"),
        ("(3, 400)", "(3, 400)"),
        ("  ", None),
        ("$$", None),
    ],
)
def test_latex_answers_have_one_spelling(text, answer):
    assert latex_answer(text) == answer
    assert answer is None or latex_answer(answer) == answer


@pytest.mark.parametrize(
    ("answer", "task", "canonical"),
    [
        (1.5, None, "1.5"),
        ("$1,200", None, "1200"),
        ("25%", None, "25"),
        (r"\sqrt{2}", "math", r"\sqrt{2}"),
        ("6 + 3x", "polynomial", "3x + 6"),
    ],
)
def test_ones_own_answers(tmp_path, answer, task, canonical):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"question": "q", "answer": answer, "topic": "t"}])
    assert load_rows(path, task)[0]["answer"] == canonical


@pytest.mark.parametrize(
    ("answer", "task", "message"),
    [
        ("seven", None, "is not an answer to task 'custom' (numbers); for LaTeX pass --task math"),
        ("18 or 20", None, "'18 or 20' is not an answer to task 'custom'"),
        ("(x+1)(x+2)", "polynomial", "is not an answer to task 'polynomial'"),
        ("7", "nowhere.task", "--task: cannot import 'nowhere.task'"),
        ("7", "math.pi", "--task: 'math.pi' is not a grpo_math.public.Task"),
    ],
)
def test_ones_own_answers_that_do_not_fit(tmp_path, answer, task, message):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"question": "q", "answer": answer}])
    with pytest.raises(UsageError) as caught:
        load_rows(path, task)
    assert message in str(caught.value)


def test_a_data_file_cannot_name_code_to_run(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('this ran')")
    monkeypatch.chdir(tmp_path)
    path = write_jsonl(tmp_path / "r.jsonl", [{"question": "q", "answer": "1", "task": "evil_module.task"}])
    with pytest.raises(UsageError, match=r"unknown task 'evil_module\.task'"):
        load_rows(path)
