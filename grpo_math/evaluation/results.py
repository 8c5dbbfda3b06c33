"""The files of an evaluation: rows appended as they come, resumed where they stopped, summed up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any, TypedDict, cast

from grpo_math.errors import UsageError
from grpo_math.evaluation.identity import Settings, differences, same_question, unrecorded
from grpo_math.evaluation.intervals import majority_vote, mean_interval, pass_at_k, scorecard
from grpo_math.files import append_jsonl, hold, read_jsonl, write_text_atomic
from grpo_math.grading.numbers import canonical_number
from grpo_math.grading.polynomials import canonical_polynomial

OUTCOMES = ("strict", "lenient")
POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Results = dict[str, Any]  # accuracies by outcome, and what else was counted; some keys hold a k


class GradedRow(TypedDict):
    """A line of evals/NAME.jsonl: one completion and its verdict.

    `gold` is the right answer, `extracted` what the model answered, `rule` how that was found,
    `sample` which of the question's completions it is, from 0. `failed`: the grader could not tell.
    """

    id: str
    sample: int
    question: str
    gold: str
    prompt: str
    completion: str
    extracted: str
    rule: str
    strict: bool
    lenient: bool
    failed: bool
    tokens: int
    finish_reason: str


class Info(TypedDict):
    """What evals/NAME.json holds; `results` once the evaluation is complete."""

    settings: Settings
    versions: Mapping[str, str]
    results: Results | None


class ResultsFile:
    """The two files of an evaluation, `NAME.jsonl` and `NAME.json`."""

    def __init__(self, path: Path, settings: Settings, about: Mapping[str, object]) -> None:
        """Find the evaluation of these settings that may be there already.

        Raises:
            UsageError: the files hold another evaluation, or cannot be read or written.
        """
        self.path, self.info_path = path, path.with_suffix(".json")
        self.info = cast(Info, {"settings": settings, **about, "results": None})
        old = self._read_info()
        if not (old and old["results"]):
            hold(path.with_name(f".{path.stem}.lock"))
            old = self._read_info()  # what another process wrote meanwhile
        if old is None and path.exists():
            raise UsageError(
                f"{path}: exists without {self.info_path.name}; move it away or give another --name"
            )
        if old is not None:
            self._refuse_another(old)
            if old["results"]:
                self.info = old

    @property
    def results(self) -> Results | None:
        """Give the results of a complete evaluation, else None."""
        return self.info["results"]

    def begin(self) -> None:
        """Write the settings, once the model is loaded."""
        self._write_info()

    def resume(self, batches: list[int]) -> int:
        """Cut the file after its last complete batch, and give the number of complete ones.

        `batches` are the numbers of rows of all batches.
        """
        if not self.path.exists():
            return 0
        lines = self.path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()  # the line that was being written
        complete, rows = 0, 0
        while complete < len(batches) and rows + batches[complete] <= len(lines):
            rows += batches[complete]
            complete += 1
        with self.path.open("r+b") as file:
            file.truncate(sum(map(len, lines[:rows])))
        return complete

    def append(self, rows: list[GradedRow]) -> None:
        """Add the rows of one batch, in one write that has reached the disk when this returns."""
        try:
            append_jsonl(self.path, cast(list[dict], rows))
        except OSError as error:
            raise UsageError(
                f"{self.path}: cannot be written ({error.strerror}); what was finished is kept, "
                "run the same command again to go on"
            ) from error

    def finish(self, order: Sequence[str], extra: Mapping[str, float]) -> list[GradedRow]:
        """Put the rows into the order of the data (`order`: question ids) and sum them up."""
        place = dict(zip(order, range(len(order)), strict=True))
        rows = list(map(itemgetter(1), read_graded(self.path)))
        rows.sort(key=lambda row: (place[row["id"]], row["sample"]))
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_text_atomic(self.path, "".join(lines))
        mark = str(self.info["settings"].get("mark", ""))
        self.info["results"] = {**summarize(rows, mark), **extra}
        self._write_info()
        return rows

    def _read_info(self) -> Info | None:
        if not self.info_path.exists():
            return None
        try:
            info = json.loads(self.info_path.read_text(encoding="utf-8"))
            return {"settings": {}, "versions": {}, "results": None, **info}
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(
                f"{self.info_path}: cannot be read ({error}); move it away or give another --name"
            ) from error

    def _write_info(self) -> None:
        text = json.dumps(self.info, indent=2, ensure_ascii=False)
        write_text_atomic(self.info_path, text + "\n")

    def _refuse_another(self, old: Info) -> None:
        new, way_out = self.info["settings"], "give another --name"
        holds = f"{self.path}: holds an evaluation of"
        if unknown := unrecorded(old["settings"], new):
            raise UsageError(
                f"{holds} an earlier version, which did not record {', '.join(unknown)}: {way_out} "
                "(this one can still be compared)"
            )
        if changed := differences(old["settings"], new):
            raise UsageError(
                f"{holds} other settings ({'; '.join(changed)}): {way_out}, or repeat the settings"
            )
        if old["results"] and not self.path.exists():
            raise UsageError(
                f"{self.path}: is gone, and {self.info_path.name} says that it is complete; delete "
                f"that or {way_out}"
            )


def read_graded(path: Path) -> list[tuple[int, GradedRow]]:
    """Read rows with their line numbers; older files say `answer` for `extracted`."""
    rows = read_jsonl(path)
    for _, row in rows:
        if "extracted" not in row and "answer" in row:
            row["extracted"] = row.pop("answer")
    return cast(list[tuple[int, GradedRow]], rows)


def column(rows: Iterable[GradedRow], name: str) -> list[Any]:
    """Give one field of each row."""
    return list(map(itemgetter(name), rows))


def summarize(rows: list[GradedRow], mark: str = "") -> Results:
    """Give the numbers of an evaluation; accuracies are shares, with their 95% intervals.

    `mark` is the one of the prompt style.
    """
    groups: dict[str, list[GradedRow]] = {}
    for row in rows:
        groups.setdefault(row["id"], []).append(row)
    questions = list(groups.values())
    texts = [same_question(group[0].get("question", group[0]["id"])) for group in questions]
    samples = min(map(len, questions))
    results: Results = {"questions": len(questions), "samples_per_question": samples}
    if len(set(texts)) < len(texts):
        results["distinct_questions"] = len(set(texts))
    for outcome in OUTCOMES:
        scores = [column(group, outcome) for group in questions]
        results[outcome] = mean_interval(scores, clusters=texts).shares()
        if samples > 1:
            results[outcome] |= _many_samples(questions, scores, samples)
    if mark:
        wrong = sum(row["rule"] == mark and not row["lenient"] for row in rows)
        results["format_right_answer_wrong"] = wrong / len(rows)
    return {
        **results,
        "grader_failures": sum(column(rows, "failed")),
        "truncated": column(rows, "finish_reason").count("length") / len(rows),
        "mean_tokens": fmean(column(rows, "tokens")),
        "rules": dict(Counter(column(rows, "rule")).most_common()),
    }


def _many_samples(
    questions: list[list[GradedRow]], scores: list[list[bool]], samples: int
) -> Results:
    pass_at = {}
    for k in (*filter(samples.__gt__, POWERS), samples):
        pass_at[str(k)] = fmean(pass_at_k(len(each), sum(each), k) for each in scores)
    right = 0
    for group, verdicts in zip(questions, scores, strict=True):
        answers = list(map(_one_spelling, column(group, "extracted")))
        right += (majority_vote(answers), True) in zip(answers, verdicts, strict=True)
    card = scorecard(scores)
    return {
        "pass@k": pass_at,
        f"majority@{samples}": right / len(questions),
        "scorecard": {"above_half": card.mostly, "all": card.always},
    }


def _one_spelling(answer: str) -> str:
    return canonical_number(answer) or canonical_polynomial(answer) or answer
