"""One completion as the rewards look at it: what it answers, its form, and how much it says.

Whether an answer is right, or an answer at all, is asked of the task. What is measured here must
not be had for nothing: repetitions, tags, and what is copied from the question or the instructions
count as saying nothing.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property, lru_cache

from grpo_math.data.styles import PromptStyle
from grpo_math.data.tasks import Row, get_task, grade
from grpo_math.grading.extraction import marked, trimmed_answer
from grpo_math.grading.graders import Verdict

Text = str | list[dict[str, str]]  # of a base model, or a chat model's messages

LEAST_REASONING = 10  # characters of its own that a reasoning tag must hold to be one
ASIDE = 30  # characters that may follow the answer: a unit, a bracket, but no reasoning
COPIED = 8  # characters in a row that stand in the question too are copied from it
SHINGLE = 16  # characters: a text that has so many twice repeats itself, which is no coincidence

_TAG = re.compile(r"</?\w{1,20}>")
_OPEN_MARKS = ("hash", "phrase")  # nothing says where an answer ends, and headings look like one
_PLACEHOLDER = re.compile(r"<answer>\s*([^<]+?)\s*</answer>|#### (\w+)|answer is (\w+)")
_NOT_WORD = re.compile(r"[\W_]+")


def completion_text(completion: Text) -> str:
    """Give the text of a completion, which TRL passes as messages for a chat model."""
    if isinstance(completion, str):
        return completion
    return "".join(message["content"] or "" for message in completion)


@lru_cache(maxsize=4096)
def _graded(task: str, completion: str, gold: str, style: PromptStyle) -> Verdict:
    """Grade once what several rewards ask about; comparing LaTeX is slow."""
    row: Row = {"question": "", "answer": gold, "task": task}
    return grade(row, completion, style)


def _plain_letters(text: str) -> str:
    """Put a text in lower case, without tags, invisible characters and variants of letters."""
    text = unicodedata.normalize("NFKC", _TAG.sub(" ", text)).casefold()
    visible = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    return " ".join(visible.split())


def _pieces(text: str, size: int) -> list[str]:
    """Give every `size` characters in a row of a text, from each place on."""
    return [text[place : place + size] for place in range(len(text) - size + 1)]


def own_length(text: str, *known: str) -> int:
    """Count a text's characters without its repetitions and what it has from the texts `known`.

    Counted as the different three-character sequences with a letter or digit, outside of what is
    copied.
    """
    text = _plain_letters(text)
    sources: set[str] = set()
    for each in known:
        sources.update(_pieces(_plain_letters(each), COPIED))
    copied: set[int] = set()
    for place, piece in enumerate(_pieces(text, COPIED)):
        if piece in sources:
            copied.update(range(place, place + COPIED))
    own = {piece for place, piece in enumerate(_pieces(text, 3)) if place not in copied}
    count = sum(any(map(str.isalnum, piece)) for piece in own)
    return count + 2 if count else 0


def repeated_share(text: str) -> float:
    """Give the share of a text that has stood in it before, whatever stands between the words."""
    pieces = _pieces(_NOT_WORD.sub(" ", _plain_letters(text)).strip(), SHINGLE)
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0


@dataclass(frozen=True)
class Sample:
    """A completion of `tokens` tokens to a question; `max_tokens` are allowed (None: no limit)."""

    text: str
    question: str
    gold: str
    task: str
    style: PromptStyle
    tokens: int = 0
    max_tokens: int | None = None

    @cached_property
    def verdict(self) -> Verdict:
        return _graded(self.task, self.text, self.gold, self.style)

    @cached_property
    def answer(self) -> str | None:
        """Give the one answer, in the style's format, that ends the completion.

        None where there is none, or several. What could not be an answer to the task is none,
        however well it is marked.
        """
        mark, answer = self.style.mark, self.verdict.extracted
        found = self._marked()
        if not found or self.verdict.rule != mark or not self._is_answer(answer):
            return None
        last, *others = found
        if mark in _OPEN_MARKS:
            others = [one for one in others if self._is_answer(trimmed_answer(one["text"], mark))]
            end = last.start("text") + max(0, last["text"].find(answer)) + len(answer)
        else:
            end = last.end()
        rest = _TAG.sub("", self.text[end:]).strip()
        says_more = len(rest) > ASIDE or any(map(str.isdigit, rest))
        return None if others or says_more else answer

    def _marked(self) -> list[re.Match[str]]:
        """Give what stands behind the style's mark, the last first."""
        return [match for _, mark, match in marked(self.text) if mark == self.style.mark]

    def _is_answer(self, text: str) -> bool:
        """Tell whether it could be an answer, and not what stands for one in the instructions."""
        text = text.strip()
        if not any(map(str.isalnum, text)):
            return False
        for groups in _PLACEHOLDER.findall(self.style.system):
            if text in groups:
                return False
        canonical = get_task(self.task).canonical
        return canonical(text) is not None or canonical(text.rpartition("=")[2]) is not None

    @cached_property
    def tag_share(self) -> float:
        """Give the share of the style's tags that stand where they should, with something in them.

        It is 0 when a tag stands twice. Tags that the prompt has written already are not counted.
        """
        whole = self.style.opening + self.text
        tags: list[str] = []
        for name in self.style.tags:
            tags += [f"<{name}>", f"</{name}>"]
        found = [match for match in _TAG.finditer(whole) if match[0] in tags]
        order = [tags.index(match[0]) for match in found]
        if not found or order != sorted(set(order)):
            return 0.0
        right: set[int] = set()
        for number, place in enumerate(order):
            if place % 2 == 1:  # a closing tag is right where its opening one is
                is_right = place - 1 in right
            else:
                content = whole[found[number].end() :]
                if number + 1 < len(found):
                    content = whole[found[number].end() : found[number + 1].start()]
                is_right = self._says_something(self.style.tags[place // 2], content)
            if is_right:
                right.add(place)
        given = 1 if self.style.opening else 0
        return max(0, len(right) - given) / (len(tags) - given)

    def _says_something(self, tag: str, content: str) -> bool:
        if tag == "answer":
            return self._is_answer(content.strip())
        return own_length(content, self.question, self.style.system) >= LEAST_REASONING

    @property
    def fits(self) -> bool:
        """Tell whether it keeps to its style in substance: reasoning, then one answer."""
        return self.answer is not None and (len(self.style.tags) < 2 or self.tag_share == 1)

    @property
    def fits_exactly(self) -> bool:
        """Tell whether it keeps to its style to the letter, with nothing around it."""
        whole = self.style.opening + self.text
        if not self.fits or not re.fullmatch(self.style.pattern, whole, re.S):
            return False
        return self._is_answer(trimmed_answer(self._marked()[0]["text"], self.style.mark))
