"""In which order questions are asked: drawn for each epoch, so that it can be drawn again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.utils import RepeatSampler

from grpo_math.files import write_text_atomic
from grpo_math.training.informative import Questions

STATE = "questions.json"  # of informative draws, in a checkpoint


class EpochSampler(Sampler[int]):
    """TRL's sampler, asked for the order of an epoch wherever a run is continued.

    TRL draws the next permutation with each pass; a process that begins in a later epoch would draw
    the first epoch's. A sampler of another order overrides `order`, which may rest on the epoch and
    on what every checkpoint holds, and on nothing else.

    Args:
        positions: TRL's sampler, which says how often and when each place in the order is used.
        epoch: tells how many epochs are finished.
    """

    def __init__(self, positions: RepeatSampler, epoch: Callable[[], int]) -> None:
        self.shuffled, positions.shuffle = positions.shuffle, False
        self.positions, self.epoch = positions, epoch

    def order(self, epoch: int) -> list[int]:
        """Give the questions' numbers in the order of an epoch."""
        order = torch.arange(self.positions.num_samples)
        if self.shuffled:
            generator = torch.Generator().manual_seed(self.positions.seed)
            for _ in range(epoch + 1):
                order = torch.randperm(len(order), generator=generator)
        return order.tolist()

    def __iter__(self) -> Iterator[int]:
        order = self.order(self.epoch())
        for position in self.positions:
            yield order[position]

    def __len__(self) -> int:
        return len(self.positions)


class InformativeSampler(EpochSampler):
    """Asks the questions that `questions` draws for each generation, when it is their turn."""

    def __init__(
        self, positions: RepeatSampler, epoch: Callable[[], int], questions: Questions
    ) -> None:
        super().__init__(positions, epoch)
        self.questions = questions

    def __iter__(self) -> Iterator[int]:
        per_draw = self.questions.per_draw
        before = self.epoch() * (self.positions.num_samples // per_draw)
        for position in self.positions:
            generation, place = divmod(position, per_draw)
            yield self.questions.draw(before + generation)[place]


class InformativeDraws(TrainerCallback):
    """Draws questions by what they can teach, learns from their completions, and can be resumed.

    Args:
        ids: of the training rows, in their order.
        rates: pass rates that are known before the run, by id.
        reward: the place, among the reward functions, of the one that says what is right.
        group: completions of a question, G.
        seed: of the draws.
    """

    def __init__(
        self, ids: list[str], rates: Mapping[str, float], reward: int, group: int, seed: int
    ) -> None:
        self.numbers = {row_id: number for number, row_id in enumerate(ids)}
        self.rates, self.reward, self.group, self.seed = rates, reward, group, seed
        self.questions: Questions

    def sampler(self, positions: RepeatSampler, epoch: Callable[[], int]) -> InformativeSampler:
        """Give the sampler of the training set."""
        known = {self.numbers[row_id]: rate for row_id, rate in self.rates.items()}
        count, per_draw = len(self.numbers), positions.batch_size
        self.questions = Questions(count, per_draw, self.seed, known)
        return InformativeSampler(positions, epoch, self.questions)

    def observe(self, rows: list[dict[str, str]], rewards: Tensor) -> dict[str, float]:
        """Learn from a generation; give metrics of what was asked and what is expected.

        Args:
            rows: this process's, one a completion.
            rewards: of all processes, (completions, reward functions).
        """
        questions = self.questions
        expected = questions.expected_without_variance(self.group)
        asked = gather_object([self.numbers[row["id"]] for row in rows])
        questions.observe(asked, (rewards[:, self.reward] > 0).tolist())
        return {
            "questions/expected_without_variance": expected,
            "questions/effective": questions.effective(),
            "questions/most_asked": float(questions.asked.max()),
            "questions/least_asked": float(questions.asked.min()),
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if state.global_step:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE
            self.questions.load(json.loads(path.read_text(encoding="utf-8")))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE
            write_text_atomic(path, json.dumps(self.questions.state()))
