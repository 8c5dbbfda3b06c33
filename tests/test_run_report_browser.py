"""report.html in a real browser: searched, filtered, opened row by row, and given what a model should not write."""

import json
import os
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from browser import Browser
from conftest import ROOT, STARTER, read_rows, script, write_jsonl

pytestmark = pytest.mark.slow
HOSTILE = [
    "<script>window.stolen = 1</script> <answer>5</answer>",
    "<img src=x onerror=\"window.stolen = 2\"> <svg onload='window.stolen = 3'>",
    '</script><script>window.stolen = 4</script>"]}',
    "<!-- <script> --> \u2028 \u2029 &lt;b&gt; \\u003cscript\\u003e {{SCRIPT}}",
    "javascript:window.stolen=5 <a href='javascript:window.stolen=6' autofocus onfocus='window.stolen=7'>x</a>",
]


@pytest.fixture(scope="module")
def browser():
    opened = Browser()
    yield opened
    opened.close()


def save_run(folder, rows_by_step):
    """A run's folder as training leaves it, with the given rows in TRL's completions files."""
    metrics = [{"step": step, "reward": 0.5, "rewards/accuracy/mean": 0.5} for step in rows_by_step]
    write_jsonl(folder / "metrics.jsonl", metrics)
    (folder / "completions").mkdir()
    for step, rows in rows_by_step.items():
        table = pyarrow.Table.from_pylist([completion_row(step, **row) for row in rows])
        pyarrow.parquet.write_table(table, folder / f"completions/completions_{step:05d}.parquet")
    done = script(["plot_training.py", folder], folder)
    assert done.returncode == 0, done.stderr
    return folder / "report.html"


def completion_row(step, completion, question="What is 2 + 3?", right=False, lenient=None):
    return {
        "step": step,
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": completion}],
        **{"accuracy": float(right), "format": 0.25, "question": question, "gold": "5"},
        **{"extracted": "5", "strict": right, "lenient": right if lenient is None else lenient},
        **{"tokens": 9, "advantage": 0.25},
    }


def counted(browser):
    """How many completions the filters let through."""
    return int(browser.text("#count").split(" of ")[0])


def test_what_a_model_writes_is_shown_and_never_run(tmp_path, browser):
    rows = [{"completion": text, "question": text} for text in HOSTILE]
    browser.open(save_run(tmp_path, {1: rows}))
    for number, text in enumerate(HOSTILE, start=1):
        browser.click(f"#rows details:nth-child({number}) summary")
        shown = browser.run(
            f"return [...document.querySelectorAll('#rows details:nth-child({number}) pre')].map(e => e.textContent)"
        )
        assert shown[0] == text and text in shown, number
        cell = browser.run(f"return document.querySelectorAll('#rows details:nth-child({number}) span')[4].textContent")
        assert cell == text
    assert browser.run("return window.stolen === undefined")
    tags = "script, img, svg, a, b"
    assert browser.run(f"return [...document.querySelectorAll('{tags}')].map(e => e.id)") == ["curves", "data", ""]


def test_nothing_but_the_pages_own_script_may_run_or_be_loaded(tmp_path, browser):
    """The second wall, tried by breaking the first: markup and scripts are put into the page from outside."""
    browser.open(save_run(tmp_path, {1: [{"completion": "x"}]}))
    blocked = browser.wait_for(
        """
        const blocked = [];
        document.addEventListener('securitypolicyviolation', (event) => blocked.push(event.effectiveDirective));
        document.body.insertAdjacentHTML('beforeend', '<img src="x.png" onerror="window.stolen = 1">');
        const made = document.createElement('script');
        made.textContent = 'window.stolen = 2';
        document.body.append(made);
        fetch('https://example.org/').catch(() => 0);
        setTimeout(() => done([window.stolen === undefined, ...blocked.sort()]), 300);
        """
    )
    assert blocked == [True, "connect-src", "img-src", "script-src-attr", "script-src-elem"]
    assert browser.run("return document.getElementById('curves').naturalWidth") > 500


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    """A copy of the run that QUICKSTART_RUN names, else the first steps of the quickstart's training."""
    folder = tmp_path_factory.mktemp("quickstart")
    if finished := os.environ.get("QUICKSTART_RUN"):
        shutil.copytree(ROOT / finished, folder / "run")
    else:
        assert script(["prepare_arithmetic.py"], folder).returncode == 0
        recipe = Path("recipes/starter_arithmetic.yaml")
        command = ["train_grpo.py", STARTER, "--config", ROOT / recipe, "--output_dir", "run", "--report_to", "none"]
        done = script([*command, "--max_steps", 4], folder)
        assert done.returncode == 0, done.stderr
    done = script(["plot_training.py", "run"], folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_report_of_a_real_run_is_searched_filtered_and_read(real_run, browser):
    browser.open(real_run / "report.html")
    page = json.loads(browser.run("return document.getElementById('data').textContent"))
    total, last = len(page["step"]), max(page["step"])
    assert counted(browser) == total > 500
    assert browser.run("return document.querySelectorAll('#rows details').length") == 100

    browser.type("#step_from", str(last))
    assert counted(browser) == page["step"].count(last)
    browser.click("#verdict option[value=right]")
    at_last = [i for i, step in enumerate(page["step"]) if step == last]
    right = [i for i in at_last if page["strict"][i]]
    assert counted(browser) == len(right) > 0

    browser.type("#reward_from", "1.25")
    assert counted(browser) == sum(page["reward"][i] >= 1.25 for i in right)
    browser.type("#reward_to", "1.0")
    assert counted(browser) == 0 and browser.text("#rows") == ""
    browser.click("#clear")
    assert counted(browser) == total

    completion = page["completion"][right[0]]
    browser.type("#search", completion.upper())
    fields = zip(page["question"], page["gold"], page["answer"], page["completion"], strict=True)
    texts = ["\n".join((page["questions"][q], *rest)).lower() for q, *rest in fields]
    assert counted(browser) == sum(completion.lower() in text for text in texts)

    browser.type("#step_from", str(page["step"][right[0]]))
    browser.click("#rows details summary")
    opened = browser.text("#rows details .body")
    assert completion in opened and "Question" in opened and "Reward" in opened and "accuracy 1" in opened
    rows = read_rows(real_run / "metrics.jsonl")
    assert f"{[row for row in rows if 'reward' in row][-1]['step']} steps" in browser.text("p.quiet")


def test_pages_are_turned(tmp_path, browser):
    browser.open(save_run(tmp_path, {1: [{"completion": f"number {i}"} for i in range(150)]}))
    assert browser.text("#count") == "150 of 150 completions, 1 to 100 shown"
    browser.click("#next")
    assert browser.text("#count") == "150 of 150 completions, 101 to 150 shown"
    assert browser.run("return document.querySelectorAll('#rows details').length") == 50
    assert browser.run("return document.getElementById('next').disabled")
    browser.click("#previous")
    assert browser.text("#count") == "150 of 150 completions, 1 to 100 shown"


LONG = "Antidisestablishmentarianism and floccinaucinihilipilification cost Natalia 1,250,000 dollars."
# Words and cells that do not fit, and colours, measured in the page. A word that is broken has more than one rectangle.
MEASURE = """
const range = document.createRange(), broken = [];
const seen = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (seen.nextNode()) {
  const node = seen.currentNode;
  if (!node.parentElement.checkVisibility() || node.parentElement.closest('script, option, style')) continue;
  for (const word of node.textContent.matchAll(/[\\w.,%]+/g)) {
    range.setStart(node, word.index);
    range.setEnd(node, word.index + word[0].length);
    if (new Set([...range.getClientRects()].map((box) => box.top)).size > 1) broken.push(word[0]);
  }
}
const light = (colour) => {
  const parts = colour.match(/[\\d.]+/g).map((part) => part / 255);
  const [r, g, b] = parts.map((c) => c <= 0.04 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const paper = light(getComputedStyle(document.body).backgroundColor);
const contrast = (selector) => {
  const ink = light(getComputedStyle(document.querySelector(selector)).color);
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
};
const all = (selector) => [...document.querySelectorAll(selector)];
const cut = all('#rows summary > span:nth-child(-n + 4)').filter((e) => e.scrollWidth > e.clientWidth);
return {
  broken, cut: cut.map((e) => e.textContent), paper,
  page: document.documentElement.scrollWidth, window: document.documentElement.clientWidth,
  contrast: ['body', '.quiet', '.yes', '.no', '.half'].map(contrast),
  head: getComputedStyle(document.querySelector('.line.head')).display,
  questions: all('#rows summary > span:nth-child(5)').map((e) => e.getBoundingClientRect().width),
  curves: document.getElementById('curves').naturalWidth,
};
"""


@pytest.fixture(scope="module")
def wide_page(tmp_path_factory):
    """The report of a run with two evaluations, long words, and each of the verdicts."""
    folder = tmp_path_factory.mktemp("wide") / "a_run_with_a_long_name"
    folder.mkdir()
    results = {"accuracy": 0.5, "low": 0.25, "high": 0.75}
    settings = {"model": "outputs/quickstart_of_today/checkpoint-final", "data": "data/arithmetic_problems/test.jsonl"}
    settings |= {"temperature": 0.0, "max_tokens": 16}
    results = {"strict": results, "lenient": results, "questions": 500, "samples_per_question": 1, "truncated": 0.1}
    for name in ("before", "after"):
        (folder / f"{name}.json").write_text(json.dumps({"settings": settings, "results": results}))
    record = {"model": "starter_model", "arguments": {"learning_rate": 1e-4, "optim": "adamw_torch_fused"}}
    (folder / "run.json").write_text(json.dumps(record))
    kinds = [{"right": True}, {"right": False, "lenient": True}, {"right": False}]
    report = save_run(folder, {1: [{"completion": LONG, "question": LONG, **kind} for kind in kinds] * 10})
    done = script(["plot_training.py", folder, "--evals", folder / "before.json", folder / "after.json"], folder)
    assert done.returncode == 0, done.stderr
    return report


@pytest.mark.parametrize("width", [390, 800, 1400])
def test_one_page_fits_phones_and_desks_by_day_and_night(wide_page, browser, tmp_path, width):
    papers = []
    for scheme in ("light", "dark"):
        browser.device(width, scheme)
        browser.open(wide_page)
        browser.click("#rows details:nth-child(2) summary")
        found = browser.run(MEASURE)
        assert found["broken"] == [] and found["cut"] == [], scheme
        assert found["page"] <= found["window"], "the page scrolls sideways"
        assert min(found["contrast"]) > 4.5, found["contrast"]
        assert (found["head"] == "none") == (width < 700)
        assert min(found["questions"]) > 150
        assert (found["curves"] < 500) == (width < 700)
        papers.append(found["paper"])
        browser.run("document.querySelector('#filters').scrollIntoView()")
        (tmp_path / f"{width}-{scheme}.png").write_bytes(browser.screenshot())
    assert papers[0] > 0.9 and papers[1] < 0.05
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.png"))]
    assert len(sizes) == 2 and min(sizes) > 10_000


def test_ten_thousand_completions_stay_usable(tmp_path, browser):
    """First paint under 2 s, and every filter painted within 200 ms, with completions as long as GSM8K's."""
    words = ["so", "Natalia", "sold", "half", "as", "many", "clips", "which", "makes", "24", "altogether"]

    def text(i):
        return " ".join(words[(i * 7 + k * k) % len(words)] for k in range(180)) + f"\n#### {i}"

    steps = {
        step: [
            {"completion": text(100 * step + i), "question": f"Question {i // 8} of step {step}?", "right": i % 3 == 0}
            for i in range(100)
        ]
        for step in range(1, 101)
    }
    report = save_run(tmp_path, steps)
    browser.open(report)
    assert counted(browser) == 10_000
    painted = browser.run("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    loaded = browser.run("return performance.getEntriesByType('navigation')[0].loadEventEnd")
    times = {"first paint": painted, "table": loaded}
    for name, value in {"search": "natalia", "verdict": "right", "step_from": "50", "reward_from": "0.5"}.items():
        times[name] = browser.wait_for(
            f"""
            const start = performance.now();
            document.getElementById('{name}').value = '{value}';
            document.getElementById('{name}').dispatchEvent(new Event('input'));
            requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
            """
        )
        assert counted(browser) > 0
    browser.type("#search", "#### 7777")
    assert counted(browser) == 0  # of step 77, but wrong
    browser.click("#verdict option[value='']")
    browser.run("reward_from.value = ''; reward_from.dispatchEvent(new Event('input'))")
    assert counted(browser) == 1
    print({name: f"{ms:.0f} ms" for name, ms in times.items()}, f"{report.stat().st_size / 1e6:.1f} MB")
    assert max(times.pop("first paint"), times.pop("table")) < 2000 and max(times.values()) < 200, times
