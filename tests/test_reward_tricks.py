"""What rewards must not be earned by: tables of tricks under TRL's exact call, each beside an honest completion."""

import random
import string
import time

import pytest
from grpo_math.data.styles import STYLES, get_style
from grpo_math.errors import UsageError
from grpo_math.rewards.build import build_rewards
from grpo_math.rewards.functions import REGISTRY

from conftest import read_rows

QUESTION = "Natalia sold 48 clips in April and half as many in May. How many did she sell altogether?"
CAP = 100  # tokens
WORKING = "In May she sold 48 / 2 = 24 of them, which together with April's makes 48 + 24 = 72."
THOUGHT = f"<think>{WORKING}</think>"
LOOP = "so it is 24 and then 72, "


def call(name, style, texts, golds=None, task="gsm8k", tokens=50, question=QUESTION, conversational=True, log=None):
    """TRL 1.16's call of a synchronous reward function, on completions of `tokens` tokens."""
    (reward,) = build_rewards([name], get_style(style), CAP)
    prompt = [{"role": "user", "content": question}] if conversational else question
    completions = [[{"role": "assistant", "content": text}] for text in texts] if conversational else texts
    return reward(
        prompts=[prompt] * len(texts),
        completions=completions,
        completion_ids=[[1] * tokens] * len(texts),
        question=[question] * len(texts),
        answer=golds or ["72"] * len(texts),
        task=[task] * len(texts),
        id=["a"] * len(texts),
        trainer_state=None,
        log_extra=lambda column, values: None,
        log_metric=log or (lambda name, value: None),
    )


HEDGES = [
    "",
    "   \n\t ",
    "<answer></answer>",
    "<answer> \n </answer>",
    "<answer>the answer</answer>",
    "<answer>number</answer>",
    "<answer>71 or 72</answer>",
    "<answer>72, 73, 74</answer>",
    "<answer>70 to 75</answer>",
    "<answer>48 + 24</answer>",
    "<answer>144/2</answer>",
    "<answer>72</answer> no, <answer>71</answer>",
    "<answer>72</answer> or rather \\boxed{71}",
    "<answer>72 = 71</answer>",
    f"<answer>{QUESTION}</answer>",
    "<answer>" + " ".join(map(str, range(60, 90))) + "</answer>",
    "<answer>72<answer>73</answer>",
]
FORM = [
    "",
    "<think></think><answer></answer>",
    "<think></think><answer>72</answer>",
    "<think> \n </think><answer>72</answer>",
    "<think>\u200b\u200b\u200b</think><answer>72</answer>",
    "<think>...............</think><answer>72</answer>",
    "<think>aaaaaaaaaaaaaaaaaaaaaaaaa</think><answer>72</answer>",
    "<think>72 72 72 72 72 72 72 72</think><answer>72</answer>",
    f"<think>{QUESTION}</think><answer>72</answer>",
    f"<think>{QUESTION.upper()}!!</think><answer>72</answer>",
    "<think>your reasoning</think><answer>72</answer>",
    "<think><b></b><i></i><b></b><i></i></think><answer>72</answer>",
    f"<answer>72</answer>{THOUGHT}",
    f"{THOUGHT}<answer></answer>",
    f"{THOUGHT}<answer>the answer</answer>",
    f"{THOUGHT}<answer>???</answer>",
    f"{THOUGHT}<answer>71</answer><answer>72</answer>",
    f"{THOUGHT}{THOUGHT}<answer>72</answer>",
    f"<think>{WORKING}<answer>72</answer></think>",
    f"{THOUGHT}<answer>72</answer> That is so because 24 in May and 48 in April make 72.",
    f"{THOUGHT}</think></answer><answer>72</answer>",
    "</answer></think><answer><think>",
]
FILLER = [
    "",
    " " * 200,
    "\n" * 200,
    "\u200b" * 200,
    "." * 200,
    "a" * 200,
    "ab" * 100,
    "72 " * 60,
    "<think></think><answer></answer>" * 10,
    QUESTION,
    QUESTION.upper() + "!!!",
    " ".join(reversed([QUESTION, QUESTION])),
    QUESTION.replace(" ", "  ")[3:],
    "-=+*/" * 40,
    "\ufe0f\u200d" * 100,
]
LOOPS = [
    LOOP * 12,
    LOOP.upper() * 6 + LOOP * 6,
    "".join(LOOP.replace(",", mark) for mark in ".,;:!?-/" * 2),
    "".join(LOOP.replace(" ", gap) for gap in (" ", "  ", "\n", "\t") * 4),
    LOOP.replace("i", "i\u200b") * 12,
    LOOP.replace(" ", "") * 12,
    "".join(f"<b>{LOOP}</b>" for _ in range(12)),
    "".join(f"({n}) {LOOP}" for n in range(12)),
    "a" * 300,
    "ha " * 100,
    "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in LOOP) * 6 + LOOP * 6,
    QUESTION * 4,
    "<answer>72</answer>" * 30,
]
LENIENT = [
    "",
    QUESTION,
    "70 71 72 73",
    "The answer is 72 or 73.",
    "The answer is between 71 and 73.",
    "#### 72\n#### 71",
    r"\boxed{72} \boxed{71}",
    "<answer>72</answer> #### 5",
    "The answer is 48 + 24.",
    "It is 144/2",
    "The answer is 72-73",
    "1 or 72",
    "#### 72 or 73",
    "<answer>72</answer> The answer is 71.",
]
CLOSE = [
    "",
    "<answer></answer>",
    "<answer>70 to 75</answer>",
    "<answer>70, 71, 73</answer>",
    "<answer>70</answer><answer>71</answer>",
    "<answer>71</answer> and because 24 and 48 are added it may be more.",
    "<answer>50 + 21</answer>",
    "71",
    "#### 71",
    "<answer>seventy or so</answer>",
    f"<answer>{QUESTION}</answer>",
    "<answer>-72</answer>",
    "<answer>1e30</answer>",
]
TERMS = [  # of 3x^2 + 9x + 6
    "<answer>3(x + 1)(x + 2)</answer>",
    "<answer>3x^2 + 3x + 6x + 6</answer>",
    "<answer>Expand 3(x + 1)(x + 2).</answer>",
    "<answer>x</answer>",
    "<answer>" + " + ".join(f"{n}x^{n}" for n in range(10, 40)) + "</answer>",
]
# reward, style, the most that any of the tricks may get, tricks, an honest completion, the least that it must get
TABLE = [
    ("accuracy", "answer_tag", 0.0, HEDGES, WORKING + "<answer>72</answer>", 1.0),
    ("accuracy:wrong=-1", "answer_tag", -1.0, HEDGES, WORKING + "<answer>72</answer>", 1.0),
    ("accuracy_lenient", "hash", 0.0, LENIENT, "The answer is 72.", 1.0),
    ("format", "think_answer", 0.0, FORM, f"{THOUGHT} <answer>5</answer>", 1.0),
    (
        "format_strict",
        "think_answer",
        0.0,
        [*FORM, f"So: {THOUGHT}<answer>72</answer>"],
        f"{THOUGHT}<answer>5</answer>",
        1.0,
    ),
    ("xml_count", "think_answer", 0.5, FORM[:14] + FORM[16:19] + FORM[20:], f"{THOUGHT}<answer>5</answer>", 1.0),
    (
        "integer",
        "answer_tag",
        0.0,
        [*HEDGES[:13], "72", "#### 72", "<answer>72.5</answer>"],
        "<answer>-5</answer>",
        1.0,
    ),
    ("length", "hash", -1.0, FILLER, WORKING, 0.0),
    ("cosine", "hash", -0.85, LOOPS, f"{WORKING}\n#### 72", 0.7),
    ("repetition", "hash", -0.3, LOOPS, WORKING, 0.0),
    ("closeness", "answer_tag", 0.0, CLOSE, "<answer>70</answer>", 0.45),
]


@pytest.mark.parametrize("conversational", [True, False])
@pytest.mark.parametrize(("name", "style", "most", "tricks", "honest", "least"), TABLE, ids=[row[0] for row in TABLE])
def test_no_trick_earns_what_an_honest_completion_does(name, style, most, tricks, honest, least, conversational):
    assert len(tricks) >= 10 and least > most
    scores = call(name, style, [*tricks, honest], conversational=conversational)
    for text, score in zip(tricks, scores, strict=False):
        assert score <= most, text
    assert scores[-1] >= least


def test_every_reward_is_in_the_table():
    assert {row[0].partition(":")[0] for row in TABLE} == REGISTRY.keys()


def test_polynomials_come_close_by_their_terms():
    answers = ["3x^2 + 9x + 6", "3x^2 + 9x + 5", "3x^2 + 9x", "6"]
    texts = [f"<answer>{answer}</answer>" for answer in answers]
    question, gold = "Expand 3(x + 1)(x + 2).", "3x^2 + 9x + 6"
    scores = call("closeness", "answer_tag", texts, [gold] * 4, task="polynomial", question=question)
    assert scores == pytest.approx([1, 1 / 3, 1 / 3, 1 / 6])
    tricks = call("closeness", "answer_tag", TERMS, [gold] * len(TERMS), task="polynomial", question=question)
    assert tricks == [0.0] * len(TERMS)


@pytest.mark.parametrize("gold", ["72", "0", "-3", "1/3", "1000000"])
def test_close_is_always_below_right(gold):
    rng = random.Random(0)
    near = [str(rng.choice([gold + ".0001" if "/" not in gold else "0.333", rng.randint(-99, 99)])) for _ in range(50)]
    scores = call("closeness", "answer_tag", [f"<answer>{text}</answer>" for text in [gold, *near]], [gold] * 51)
    assert scores[0] == 1.0
    assert all(score <= 0.5 or text == gold for text, score in zip(near, scores[1:], strict=True))


def test_closeness_falls_with_the_relative_error():
    answers = ["72", "71", "63", "36", "0", "-72", "144", "1e9"]
    scores = call("closeness", "answer_tag", [f"<answer>{text}</answer>" for text in answers])
    assert scores == pytest.approx([1, 0.5 * 71 / 72, 0.5 * 63 / 72, 0.25, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("tokens", "near", "expected"),
    [(0, 0.2, 0), (80, 0.2, 0), (90, 0.2, -0.5), (95, 0.2, -0.75), (100, 0.2, -1), (101, 0.2, -1), (95, 0.1, -0.5)],
)
def test_length_near_the_cap(tokens, near, expected):
    """DAPO's soft overlong punishment, ((L_max - L_cache) - |y|) / L_cache, with L_max 100."""
    assert call(f"length:near={near}", "hash", [WORKING], tokens=tokens) == pytest.approx([expected])
    assert call("length:near=0", "hash", [WORKING], tokens=tokens) == [0.0]


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("#### 72", 0, 1.0),
        ("#### 72", 50, 0.75),
        ("#### 72", 100, 0.5),
        ("#### 71", 0, -1.0),
        ("#### 71", 50, -0.75),
        ("#### 71", 100, -1.0),  # it ran into the cap
    ],
)
def test_cosine(text, tokens, expected):
    """min + (max - min) (1 + cos(pi t / T)) / 2, as in the paper, at its ends and in the middle."""
    assert call("cosine", "hash", [text], tokens=tokens) == pytest.approx([expected])


def test_a_right_answer_is_worth_more_than_any_wrong_one_at_every_length():
    for tokens in range(0, CAP + 1, 10):
        right, wrong = call("cosine", "hash", ["#### 72", "#### 71"], tokens=tokens)
        assert right > 0 > wrong


def test_penalties_leave_real_solutions_alone(gsm8k):
    """Real solutions repeat a little: names, and the phrase for what is asked. Very few say nothing of their own."""
    rows = read_rows(gsm8k / "test.jsonl")[:400]
    repeats = [call("repetition", "hash", [row["answer"]])[0] for row in rows]
    assert sorted(repeats)[len(rows) // 2] > -0.02 and min(repeats) > -0.3
    lengths = [call("length", "hash", [row["answer"]], question=row["question"])[0] for row in rows]
    assert set(lengths) <= {0.0, -1.0} and lengths.count(-1.0) < 0.01 * len(rows)


def test_repetition_counts_what_has_been_there_before():
    """By hand: 60 letters without a repetition, then the same again; 45 of the 105 windows of 16 letters come twice."""
    rng = random.Random(0)
    once = "".join(rng.choice(string.ascii_lowercase) for _ in range(60))
    assert call("repetition", "hash", [once, once + once]) == pytest.approx([0.0, -45 / 105])


@pytest.mark.parametrize(
    ("name", "style", "text", "expected"),
    [
        ("xml_count", "xml", f"<reasoning>{WORKING}</reasoning><answer>5</answer>", 1.0),
        ("xml_count", "xml", f"<reasoning>{WORKING}</reasoning>", 0.5),
        ("xml_count", "xml", f"<reasoning>{WORKING}", 0.25),
        ("xml_count", "xml", f"<reasoning>{WORKING}<answer>5</answer>", 0.75),
        ("xml_count", "xml", f"<reasoning>{WORKING}</reasoning><answer>5</answer>" + "!" * 50, 0.95),
        ("xml_count", "xml", f"<reasoning>{WORKING}</reasoning><answer>5</answer>" + "!" * 5000, 0.0),
        ("xml_count", "r1_zero", f"{WORKING}</think> <answer>5</answer>", 1.0),
        ("xml_count", "r1_zero", WORKING, 0.0),
        ("xml_count", "r1_zero", f"{WORKING}</think>", 1 / 3),
        ("xml_count", "answer_tag", "<answer>5</answer>", 1.0),
        ("integer", "hash", "#### 5", 1.0),
        ("integer", "hash", "#### 5.0", 1.0),
        ("integer", "hash", "#### 5 clips", 1.0),
        ("integer", "hash", "#### 5.5", 0.0),
        ("integer", "hash", "#### 1/3", 0.0),
        ("integer", "boxed", r"\boxed{-12}", 1.0),
        ("accuracy:wrong=-0.5", "hash", "#### 72", 1.0),
        ("accuracy:wrong=-0.5", "hash", "#### 71", -0.5),
        ("accuracy_lenient:wrong=-1", "hash", "no idea", -1.0),
        ("length:short=5", "hash", "48 + 24", 0.0),
        ("length:short=500", "hash", WORKING, -1.0),
    ],
)
def test_values(name, style, text, expected):
    assert call(name, style, [text]) == pytest.approx([expected])


def test_the_verdict_and_not_the_number_sorts_the_lengths():
    seen = []
    call("accuracy:wrong=-1", "hash", ["#### 72", "#### 71"], log=lambda name, value: seen.append((name, value)))
    assert seen == [("completions/mean_length_right", 50), ("completions/mean_length_wrong", 50)]


@pytest.mark.parametrize(
    ("spec", "style", "message"),
    [
        (["accuracy:rong=1"], "hash", "--reward_funcs accuracy:rong=1: unknown setting 'rong'; accuracy has wrong"),
        (["accuracy:wrong"], "hash", "wrong must be a number, got ''"),
        (["accuracy:wrong=low"], "hash", "wrong must be a number, got 'low'"),
        (["format:x=1"], "hash", "unknown setting 'x'; format has none"),
        (["xml_count"], "hash", "prompt style 'hash' has no tags; answer_tag, think_answer, xml, "),
        (["accuracy", "accuracy:wrong=-1"], "hash", "'accuracy' is given twice"),
    ],
)
def test_settings_that_cannot_be(spec, style, message):
    with pytest.raises(UsageError) as caught:
        build_rewards(spec, get_style(style))
    assert message in str(caught.value)


@pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))
def test_every_reward_takes_every_styles_own_example(style):
    for name in REGISTRY:
        if name == "xml_count" and not style.tags:
            continue
        (score,) = call(f"{name}:short=5" if name == "length" else name, style.name, [style.example], tokens=10)
        assert score >= (-0.1 if name in ("length", "repetition") else 0.9), (name, score)


PIECES = [
    "<answer>",
    "<answer>1</answer>",
    "<think>",
    "\\boxed{",
    "\\boxed{1}",
    "#### 1\n",
    "The answer is ",
    "\n",
    "a",
]
PIECES += ["x^", "+x", "<", "$", "=", "\u200b", "\ufb03", "Question: 1\n"]  # one that becomes three letters


@pytest.mark.parametrize("style", ["think_answer", "hash", "boxed", "plain"])
def test_no_text_takes_long(style):
    """Whatever a model writes, 20,000 characters of it, in the numeric and the polynomial task."""
    for task, gold in (("gsm8k", "72"), ("polynomial", "x^2 + 1")):
        for name in set(REGISTRY) - {"xml_count"}:
            started = time.process_time()
            call(name, style, [(piece * 20_000)[:20_000] for piece in PIECES], [gold] * len(PIECES), task=task)
            assert time.process_time() - started < 0.2 * len(PIECES), name
