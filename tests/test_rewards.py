"""Rewards under TRL's exact call: tables of valid, invalid and mixed cases."""

import pytest
from grpo_math.data.styles import STYLES, get_style
from grpo_math.errors import UsageError
from grpo_math.rewards.build import build_rewards
from grpo_math.rewards.completion import completion_text
from grpo_math.rewards.functions import REGISTRY

CASES = [  # reward, style, completion, gold, expected
    ("accuracy", "hash", "3 * 24 = 72\n#### 72", "72", 1.0),
    ("accuracy", "hash", "3 * 24 = 72\n#### 1,072", "1072", 1.0),
    ("accuracy", "hash", "#### 71", "72", 0.0),
    ("accuracy", "hash", "<answer>72</answer>", "72", 0.0),
    ("accuracy", "hash", "The answer is 72.", "72", 0.0),
    ("accuracy", "hash", "", "72", 0.0),
    ("accuracy", "answer_tag", "<answer>72</answer>", "72", 1.0),
    ("accuracy", "answer_tag", "<answer>-72</answer>", "72", 0.0),
    ("accuracy", "answer_tag", "<answer>7</answer> no, <answer>72</answer>", "72", 1.0),
    ("accuracy", "answer_tag", "<answer>72</answer> no, <answer>7</answer>", "72", 0.0),
    ("accuracy", "answer_tag", "<answer>72", "72", 0.0),
    ("accuracy", "answer_tag", "<answer></answer>72", "72", 0.0),
    ("accuracy", "answer_tag", "<answer>72 or 73</answer>", "72", 0.0),
    ("accuracy", "boxed", r"so \boxed{72}", "72", 1.0),
    ("accuracy", "boxed", r"so \boxed{7} or \boxed{}", "72", 0.0),
    ("accuracy_lenient", "hash", "The answer is 72.", "72", 1.0),
    ("accuracy_lenient", "hash", "<answer>72</answer>", "72", 1.0),
    ("accuracy_lenient", "hash", "so we get 72", "72", 1.0),
    ("accuracy_lenient", "hash", "so we get 73", "72", 0.0),
    ("accuracy_lenient", "hash", "no idea", "72", 0.0),
    ("format", "hash", "#### 5", "72", 1.0),
    ("format", "hash", "#### ", "72", 0.0),
    ("format", "hash", "5", "72", 0.0),
    ("format", "answer_tag", "<answer>5</answer>", "72", 1.0),
    ("format", "answer_tag", "<answer></answer>", "72", 0.0),
    ("format", "answer_tag", "<answer>5", "72", 0.0),
    ("length", "hash", "72", "72", -1.0),
    ("length", "hash", " " * 50, "72", -1.0),
    ("length", "hash", "There are 48 in May and 24 in June, which makes 72.", "72", 0.0),
]


def call(name, style, completions, golds, conversational=True):
    """TRL 1.16's call of a synchronous reward function."""
    (reward,) = build_rewards([name], get_style(style))
    assert reward.__name__ == name
    prompts = [[{"role": "user", "content": "q"}]] * len(completions)
    if conversational:
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    return reward(
        prompts=prompts,
        completions=completions,
        completion_ids=[[1, 2]] * len(completions),
        question=["q"] * len(completions),
        answer=golds,
        task=["gsm8k"] * len(completions),
        trainer_state=None,
        log_extra=lambda column, values: None,
        log_metric=lambda name, value: None,
    )


@pytest.mark.parametrize("conversational", [True, False])
@pytest.mark.parametrize(("name", "style", "completion", "gold", "expected"), CASES)
def test_reward(name, style, completion, gold, expected, conversational):
    assert call(name, style, [completion], [gold], conversational) == [expected]


def test_rewards_ask_each_rows_own_task():
    (reward,) = build_rewards(["accuracy"], get_style("boxed"))
    texts = [r"\boxed{\frac{\sqrt{8}}{2}}", r"\boxed{\sqrt 3}", r"\boxed{5}"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    golds = [r"\sqrt{2}", r"\sqrt{2}", "5"]
    assert reward(completions=completions, answer=golds, task=["math", "math", "gsm8k"]) == [1.0, 0.0, 1.0]


def test_only_the_first_reward_that_grades_records_what_it_judged():
    """TRL appends what two functions log under one name, which would shift the rows of its completions table."""
    columns, lengths = {}, {}
    rewards = build_rewards(["format", "accuracy_lenient", "accuracy"], get_style("hash"))
    for reward in rewards:
        reward(
            prompts=["p"] * 3,
            completions=["#### 72", "so 72", "#### 7"],
            completion_ids=[[1], [1, 2], [1, 2, 3, 4]],
            question=["q"] * 3,
            answer=["72"] * 3,
            task=["gsm8k"] * 3,
            trainer_state=None,
            log_extra=lambda column, values: columns.setdefault(column, []).extend(values),
            log_metric=lambda name, value: lengths.setdefault(name, []).append(value),
        )
    assert columns == {
        "question": ["q"] * 3,
        "gold": ["72"] * 3,
        "tokens": [1, 2, 4],
        "extracted": ["72", "72", "7"],
        "strict": [True, False, False],
        "lenient": [True, True, False],
    }
    assert lengths == {"completions/mean_length_right": [1, 2], "completions/mean_length_wrong": [4]}


def test_rewards_keep_the_order_of_a_mixed_batch():
    assert call("accuracy", "hash", ["#### 1", "#### 2", "x", "#### 4"], ["1", "1", "1", "4"]) == [1.0, 0.0, 0.0, 1.0]


def test_completion_without_content_is_empty():
    assert completion_text([{"role": "assistant", "content": None}]) == ""


@pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))
def test_the_styles_own_example_is_right_in_its_own_style(style):
    for name in ("accuracy", "accuracy_lenient", "format"):
        assert call(name, style.name, [style.example], ["72"]) == [1.0]


def test_unknown_reward_lists_the_known_ones():
    with pytest.raises(UsageError, match="unknown reward 'acuracy': known rewards are accuracy, "):
        build_rewards(["acuracy"], get_style("hash"))


@pytest.mark.parametrize("name", ["nowhere.reward", "math.nothing", "math.pi"])
def test_dotted_path_that_is_no_function(name):
    with pytest.raises(UsageError, match=name):
        build_rewards([name], get_style("hash"))


def test_users_own_reward_by_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_module.py").write_text(
        "def shout(completions, **kwargs):\n    return [float(c[0]['content'].isupper()) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    (reward,) = build_rewards(["my_rewards_module.shout"], get_style("hash"))
    assert reward(completions=[[{"role": "assistant", "content": "YES"}]]) == [1.0]


def test_every_registered_reward_says_what_it_is():
    assert all(function.__doc__ for function in REGISTRY.values())
