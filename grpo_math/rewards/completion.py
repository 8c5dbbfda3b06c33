"""One completion as the rewards look at it: what it answers, whether it keeps to its style, and how much it says.

Whether an answer is right, or an answer at all, is asked of the task. What is measured here must not be had for
nothing: repetitions, tags, and what is copied from the question or the instructions count as saying nothing.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property, lru_cache

from grpo_math.data.prompts import PromptStyle
from grpo_math.data.tasks import TASKS
from grpo_math.grading.extraction import marked, trimmed_answer
from grpo_math.grading.graders import Verdict

LEAST_REASONING = 10  # characters of its own that a reasoning tag must hold to be one
ASIDE = (
    30  # characters that may follow the answer: a unit, a bracket, a full stop, but no reasoning
)
COPIED = 8  # characters in a row that stand in the question too are copied from it
SHINGLE = (
    16  # characters: what stands in a text twice at this length is a repetition, and no coincidence
)

_TAG = re.compile(r"</?\w{1,20}>")
_OPEN_MARKS = ("hash", "phrase")  # nothing says where an answer ends, and headings look like one
_PLACEHOLDER = re.compile(r"<answer>\s*([^<]+?)\s*</answer>|#### (\w+)|answer is (\w+)")
_NOT_WORD = re.compile(r"[\W_]+")


@lru_cache(maxsize=4096)
def grade(task: str, completion: str, gold: str, mark: str) -> Verdict:
    """The task's verdict; several rewards ask about the same completion, and comparing LaTeX is slow."""
    return TASKS[task].grade(completion, gold, mark)


def _plain_letters(text: str) -> str:
    """`text` in lower case without tags, invisible characters and the variants that Unicode has of a letter."""
    text = unicodedata.normalize("NFKC", _TAG.sub(" ", text)).casefold()
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    return " ".join(text.split())


def own_length(text: str, *known: str) -> int:
    """How many characters long `text` is, without its repetitions and without what it has from the texts `known`.

    Counted as the different three-character sequences with a letter or digit, outside of what is copied.
    """
    text = _plain_letters(text)
    sources = {
        each[i : i + COPIED]
        for each in map(_plain_letters, known)
        for i in range(len(each) - COPIED + 1)
    }
    copied = {
        j for i in range(len(text)) if text[i : i + COPIED] in sources for j in range(i, i + COPIED)
    }
    own = {text[i : i + 3] for i in range(len(text) - 2) if i not in copied}
    count = sum(any(map(str.isalnum, each)) for each in own)
    return count + 2 if count else 0


def repeated_share(text: str) -> float:
    """The share of a text that has stood in it before, from 0 to 1, whatever stands between the words."""
    words = _NOT_WORD.sub(" ", _plain_letters(text)).strip()
    places = len(words) - SHINGLE + 1
    return 1 - len({words[i : i + SHINGLE] for i in range(places)}) / places if places > 0 else 0.0


@dataclass(frozen=True)
class Sample:
    """A completion, `tokens` long of at most `max_tokens` (None: no limit), to a row's question and gold answer."""

    text: str
    question: str
    gold: str
    task: str
    style: PromptStyle
    tokens: int = 0
    max_tokens: int | None = None

    @cached_property
    def verdict(self) -> Verdict:
        return grade(self.task, self.text, self.gold, self.style.mark)

    @cached_property
    def answer(self) -> str | None:
        """The one answer, in the style's format, that ends the completion; None when there is none, or are several.

        What could not be an answer to the task is none, however well it is marked.
        """
        found = [match for _, mark, match in marked(self.text) if mark == self.style.mark]
        answer = self.verdict.extracted
        if not found or self.verdict.rule != self.style.mark or not self._is_answer(answer):
            return None
        closed = self.style.mark not in _OPEN_MARKS
        if any(
            closed or self._is_answer(trimmed_answer(match["text"], self.style.mark))
            for match in found[1:]
        ):
            return None
        last = found[0]
        end = (
            last.end()
            if closed
            else last.start("text") + max(0, last["text"].find(answer)) + len(answer)
        )
        rest = _TAG.sub("", self.text[end:]).strip()
        return None if len(rest) > ASIDE or any(map(str.isdigit, rest)) else answer

    def _is_answer(self, text: str) -> bool:
        """Whether it could be an answer to the task, and is not what stands for one in the instructions."""
        text, canonical = text.strip(), TASKS[self.task].canonical
        instead = [group for groups in _PLACEHOLDER.findall(self.style.system) for group in groups]
        if not any(map(str.isalnum, text)) or text in instead:
            return False
        return canonical(text) is not None or canonical(text.rpartition("=")[2]) is not None

    @cached_property
    def tag_share(self) -> float:
        """The share of the style's tags that stand where they should with something in them; 0 when one stands twice.

        Tags that the prompt has written already are not counted.
        """
        whole = self.style.opening + self.text
        tags = [f"<{slash}{name}>" for name in self.style.tags for slash in ("", "/")]
        found = [match for match in _TAG.finditer(whole) if match[0] in tags]
        order = [tags.index(match[0]) for match in found]
        if not found or order != sorted(set(order)):
            return 0.0
        ends = [*(match.start() for match in found[1:]), len(whole)]
        right: set[int] = set()
        for place, match, end in zip(order, found, ends, strict=True):
            closes = place % 2 == 1
            says = not closes and self._says_something(
                self.style.tags[place // 2], whole[match.end() : end]
            )
            if says or (closes and place - 1 in right):
                right.add(place)
        given = 1 if self.style.opening else 0
        return max(0, len(right) - given) / (len(tags) - given)

    def _says_something(self, tag: str, content: str) -> bool:
        if tag == "answer":
            return self._is_answer(content.strip())
        return own_length(content, self.question, self.style.system) >= LEAST_REASONING

    @property
    def fits(self) -> bool:
        """Whether it keeps to its style in substance: reasoning where the style has a place for it, then one answer."""
        return self.answer is not None and (len(self.style.tags) < 2 or self.tag_share == 1)

    @property
    def fits_exactly(self) -> bool:
        """Whether it keeps to its style to the letter, with nothing around it."""
        if (
            not self.fits
            or re.fullmatch(self.style.pattern, self.style.opening + self.text, re.S) is None
        ):
            return False
        content = next(
            match["text"] for _, mark, match in marked(self.text) if mark == self.style.mark
        )
        return self._is_answer(trimmed_answer(content, self.style.mark))
