"""What a task or a reward of your own imports; these names stay where they are.

from grpo_math.public import Task, Verdict, completion_text, grade, grader
"""

from grpo_math.data.rows import load_rows, write_rows
from grpo_math.data.styles import PromptStyle, get_style
from grpo_math.data.tasks import Row, Task, grade
from grpo_math.grading.graders import Verdict, grader
from grpo_math.rewards.completion import completion_text

__all__ = [
    "PromptStyle",
    "Row",
    "Task",
    "Verdict",
    "completion_text",
    "get_style",
    "grade",
    "grader",
    "load_rows",
    "write_rows",
]
