"""The files of an evaluation: rows appended as they come, resumed where they stopped, and summed up at the end."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from grpo_math.errors import UsageError
from grpo_math.evaluation.intervals import majority_vote, mean_interval, pass_at_k, scorecard
from grpo_math.files import append_jsonl, hold, read_jsonl, write_text_atomic
from grpo_math.grading.numbers import canonical_number
from grpo_math.grading.polynomials import canonical_polynomial

Row = dict[str, Any]


class ResultsFile:
    """`NAME.jsonl` and `NAME.json`, which holds the settings from the start and the results once all rows are there."""

    def __init__(self, path: Path, settings: dict[str, Any], about: dict[str, Any]) -> None:
        """Find the evaluation of these settings that may be there already.

        Raises:
            UsageError: the files hold an evaluation of other settings, or cannot be read or written.
        """
        self.path, self.info_path = path, path.with_suffix(".json")
        self.info: dict[str, Any] = {"settings": settings, **about, "results": None}
        old = self._read_info()
        if not (old and old.get("results")):
            hold(path.with_name(f".{path.stem}.lock"))
            old = self._read_info()  # what another process wrote meanwhile
        if old is None and path.exists():
            raise UsageError(
                f"{path}: exists without {self.info_path.name}; move it away or give another --name"
            )
        if old is not None:
            self._refuse_other_settings(old.get("settings", {}), settings)
            self.info = old if old.get("results") else self.info

    @property
    def results(self) -> dict[str, Any] | None:
        """The results of a finished evaluation, else None."""
        return self.info["results"]

    def begin(self) -> None:
        """Write the settings, once the model is loaded."""
        self._write_info()

    def resume(self, batches: list[int]) -> int:
        """Cut the file after the last batch that is whole, given each batch's number of rows; returns how many are."""
        if not self.path.exists():
            return 0
        lines = self.path.read_bytes().splitlines(keepends=True)
        whole = sum(line.endswith(b"\n") for line in lines)
        done, rows = 0, 0
        while done < len(batches) and rows + batches[done] <= whole:
            rows += batches[done]
            done += 1
        with self.path.open("r+b") as file:
            file.truncate(sum(len(line) for line in lines[:rows]))
        return done

    def append(self, rows: list[Row]) -> None:
        """Add the rows of one batch, in one write that has reached the disk when this returns."""
        try:
            append_jsonl(self.path, rows)
        except OSError as error:
            raise UsageError(
                f"{self.path}: cannot be written ({error.strerror}); what was finished is kept, run the same command "
                "again to go on"
            ) from error

    def finish(self, order: list[str], extra: dict[str, Any]) -> list[Row]:
        """Put the rows into the order of the data (`order`: question ids), sum them up, and return them."""
        place = {question: i for i, question in enumerate(order)}
        rows = sorted(
            (row for _, row in read_jsonl(self.path)),
            key=lambda row: (place[row["id"]], row["sample"]),
        )
        write_text_atomic(
            self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        )
        self.info["results"] = {**summarize(rows), **extra}
        self._write_info()
        return rows

    def _read_info(self) -> dict[str, Any] | None:
        if not self.info_path.exists():
            return None
        try:
            return json.loads(self.info_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{self.info_path}: cannot be read ({error}); move it away or give another --name"
            ) from error

    def _write_info(self) -> None:
        write_text_atomic(
            self.info_path, json.dumps(self.info, indent=2, ensure_ascii=False) + "\n"
        )

    def _refuse_other_settings(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        new = json.loads(json.dumps(new))
        changed = [
            f"{k}: {old.get(k)} -> {new.get(k)}"
            for k in sorted(old | new)
            if old.get(k) != new.get(k)
        ]
        if changed:
            raise UsageError(
                f"{self.path}: holds an evaluation of other settings ({'; '.join(changed)}): give another --name, or "
                "repeat the settings"
            )


def by_question(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each question, in the order of the rows."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["id"], []).append(row)
    return groups


def summarize(rows: list[Row]) -> dict[str, Any]:
    """The numbers of an evaluation. Accuracies are shares (0 to 1) with the bounds of their 95% interval."""
    groups = list(by_question(rows).values())
    samples = min(len(group) for group in groups)
    summary: dict[str, Any] = {"questions": len(groups), "samples_per_question": samples}
    for verdict in ("strict", "lenient"):
        scores = [[float(row[verdict]) for row in group] for group in groups]
        accuracy = mean_interval(scores)
        summary[verdict] = {"accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high}
        if samples > 1:
            summary[verdict] |= _many_samples(groups, scores, samples, verdict)
    summary |= {
        "grader_failures": sum(row["failed"] for row in rows),
        "truncated": sum(row["finish_reason"] == "length" for row in rows) / len(rows),
        "mean_tokens": sum(row["tokens"] for row in rows) / len(rows),
        "rules": dict(Counter(row["rule"] for row in rows).most_common()),
    }
    return summary


def _many_samples(
    groups: list[list[Row]], scores: list[list[float]], samples: int, verdict: str
) -> dict[str, Any]:
    powers = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k < samples] + [samples]
    card = scorecard(scores)
    return {
        "pass@k": {
            str(k): sum(pass_at_k(len(s), int(sum(s)), k) for s in scores) / len(scores)
            for k in powers
        },
        f"majority@{samples}": sum(_majority_is_right(group, verdict) for group in groups)
        / len(groups),
        "scorecard": {"above_half": card.mostly, "all": card.always},
    }


def _majority_is_right(group: list[Row], verdict: str) -> bool:
    answers = [
        canonical_number(row["extracted"])
        or canonical_polynomial(row["extracted"])
        or row["extracted"]
        for row in group
    ]
    chosen = majority_vote(answers)
    return any(row[verdict] for row, answer in zip(group, answers, strict=True) if answer == chosen)
