"""Polynomials: read, spelled, compared and graded; text in tables, arithmetic against sympy."""

import ast
import random
import re
from collections import Counter

import pytest
import sympy
from grpo_math.data.problems import KINDS, make_questions
from grpo_math.data.tasks import number_closeness
from grpo_math.grading.polynomials import canonical_polynomial, grade_polynomial, matching_terms, parse_polynomial

READ = [  # text, its one spelling (None: not a polynomial written out)
    ("3x^2 + 9x + 6", "3x^2 + 9x + 6"),
    ("6+9x+3x^2", "3x^2 + 9x + 6"),
    ("3*x**2 + 9*x + 6", "3x^2 + 9x + 6"),
    (r"3x^{2} + 9 \cdot x + 6", "3x^2 + 9x + 6"),
    ("$3x^2+9x+6$.", "3x^2 + 9x + 6"),
    ("**3x² \u2212 9x + 6**", "3x^2 - 9x + 6"),
    ("(x + 1)", "x + 1"),
    ("-x", "-x"),
    ("+7", "7"),
    ("0x + 3", "3"),
    ("0", "0"),
    ("x*2", "2x"),
    ("1,234x^3", "1234x^3"),
    (r"\frac{1}{2}x^2 - 0.25", "1/2x^2 - 1/4"),
    ("yx^2 + y^2x", "x^2y + xy^2"),
    ("1x^1", "x"),
    ("x^0", "1"),
    ("", None),
    ("+", None),
    ("x +", None),
    ("x + x", None),  # like terms left to collect
    ("3x + 6x", None),
    ("2 + 3", None),
    ("x*x", None),
    ("2*3x", None),
    ("4/2x", None),
    ("1/0", None),
    ("x2", None),
    ("2 3", None),
    ("(x + 1)(x + 2)", None),  # a product left to expand
    ("3(x + 1)", None),
    ("x^2 or x^3", None),
    ("x^101", None),
    ("x^-1", None),
    ("x^y", None),
    ("sin(x)", None),
    ("__import__('os').getpid()", None),
    ("9**9**9**9", None),
    ("x" * 600, None),
    ("1" * 60, None),
]


@pytest.mark.parametrize(("text", "spelling"), READ)
def test_reading(text, spelling):
    assert canonical_polynomial(text) == spelling
    assert spelling is None or canonical_polynomial(spelling) == spelling


def test_reading_and_writing_agree_with_sympy():
    rng = random.Random(0)
    x, y = sympy.symbols("x y")
    for _ in range(300):
        wanted = sum(rng.randint(-9, 9) * x ** rng.randint(0, 4) * y ** rng.randint(0, 2) for _ in range(4))
        text = str(sympy.expand(wanted))
        parsed = parse_polynomial(text)
        assert parsed is not None, text
        back = sum(
            sympy.Rational(value.numerator, value.denominator)
            * sympy.prod([{"x": x, "y": y}[name] ** power for name, power in monomial])
            for monomial, value in parsed.items()
        )
        assert sympy.expand(back - wanted) == 0
        assert parse_polynomial(canonical_polynomial(text)) == parsed


GRADED = [  # completion, strict, lenient; the gold answer is 3x^2 + 9x + 6, the mark <answer>
    ("<answer>3x^2 + 9x + 6</answer>", True, True),
    ("<think>3(x+1)(x+2)</think><answer>6 + 9x + 3x^2</answer>", True, True),
    ("<answer>3(x+1)(x+2) = 3x^2 + 9x + 6</answer>", True, True),
    (r"so \boxed{3x^2+9x+6}", False, True),
    ("The answer is 3x^2 + 9x + 6.", False, True),
    ("#### 3x^2 + 9x + 6", False, True),
    ("<answer>3x^2 + 9x + 6</answer> no, \\boxed{x}", False, False),
    (r"<answer>x</answer> no, \boxed{3x^2+9x+6}", False, True),
    ("<answer>3(x+1)(x+2)</answer>", False, False),
    ("<answer>3x^2 + 3x + 6x + 6</answer>", False, False),
    ("<answer>3x^2 + 9x</answer>", False, False),
    ("<answer>3x^2 + 9x + 6 or 3x^2 + 9x + 7</answer>", False, False),
    ("<answer></answer>", False, False),
    ("3x^2 + 9x + 6", False, False),
    ("", False, False),
]


@pytest.mark.parametrize(("completion", "strict", "lenient"), GRADED)
def test_grading(completion, strict, lenient):
    verdict = grade_polynomial(completion, "3x^2 + 9x + 6", "answer_tag")
    assert (verdict.strict, verdict.lenient) == (strict, lenient)


def test_grading_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="unknown mark 'shout'"):
        grade_polynomial("x", "x", "shout")
    with pytest.raises(ValueError, match="is not an answer to this task"):
        grade_polynomial("x", "(x + 1)(x + 2)", "hash")


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("3x^2 + 9x + 6", 1),
        ("3x^2 + 9x + 5", 2 / 3),
        ("3x^2 + 9x", 2 / 3),
        ("6", 1 / 3),
        ("3x^2 + 9x + 6 + x^3 + x^4 + x^5", 3 / 6),
        ("y", 0),
        ("(x+1)(x+2)", 0),
    ],
)
def test_matching_terms(answer, share):
    assert matching_terms(answer, "3x^2 + 9x + 6") == pytest.approx(share)


@pytest.mark.parametrize(
    ("answer", "gold", "near"), [("72", "72", 1), ("36", "72", 0.5), ("200", "72", 0), ("0.5", "0", 0.5), ("x", "1", 0)]
)
def test_number_closeness(answer, gold, near):
    assert number_closeness(answer, gold) == near


FORMULA = re.compile(r"(?<![a-zA-Z])[-(\dx][-+*^()\dx ]*[\d)x](?![a-zA-Z])|(?<![a-zA-Z])\d(?![a-zA-Z])")


def formula_in(question):
    """The formula in a question's text, in Python's notation: the longest run of what formulas are made of."""
    formula = max(FORMULA.findall(question), key=len)
    return re.sub(r"(?<=[\d)])(?=[x(])", "*", formula).replace("^", "**").replace("-(", "-1*(")


def test_expressions_are_right_and_nested():
    """Worked out by Python from the question's text; the depth is that of Python's own syntax tree."""
    depths = set()
    for question in make_questions("expression", 500, -20, 20, 4, seed=5):
        tree = ast.parse(formula_in(question.question), mode="eval")
        assert str(eval(compile(tree, "question", "eval"))) == question.answer, question
        depths.add(depth(tree.body))
    assert depths == {2, 3, 4}


def depth(node):
    return 1 + max(depth(node.left), depth(node.right)) if isinstance(node, ast.BinOp) else 0


def test_products_are_expanded_right():
    """Against sympy, from the question's text."""
    x = sympy.Symbol("x")
    for question in make_questions("polynomial", 300, None, None, 3, seed=6):
        product = sympy.Poly(sympy.sympify(formula_in(question.question)), x)
        answer = {dict(monomial).get("x", 0): value for monomial, value in parse_polynomial(question.answer).items()}
        assert answer == {power: int(value) for (power,), value in product.terms() if value}, question
        assert canonical_polynomial(question.answer) == question.answer
        assert parse_polynomial(question.question) is None and question.question.count("(") >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_questions_are_distinct_and_the_same_for_the_same_seed(kind):
    one, two = (make_questions(kind, 200, -5, 5, 3, seed=1) if kind != "sum" else sums() for _ in range(2))
    assert one == two
    assert len({each.key for each in one}) == len(one) == 200
    if kind == "mixed":
        assert Counter(each.task for each in one) == {"arithmetic": 134, "polynomial": 66}


def sums():
    return make_questions("sum", 200, -99, 99, 3, seed=1)


def test_the_order_of_summands_makes_no_new_problem():
    keys = Counter(each.key for each in make_questions("expression", 60, 1, 2, 2, seed=0))
    texts = {formula_in(each.question).replace(" ", "") for each in make_questions("expression", 60, 1, 2, 2, seed=0)}
    assert max(keys.values()) == 1 and not {"1+2*1", "2*1+1"} <= texts and not {"(1+2)*1", "1*(1+2)"} <= texts
    with pytest.raises(ValueError, match=r"only .* distinct problems were found"):
        make_questions("expression", 500, 1, 1, 2, seed=0)
