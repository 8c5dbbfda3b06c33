"""Make the starter model from nothing: a small Qwen2 that can add and subtract, and was then made careless.

    python starter_model/make_starter_model.py --output_dir starter_model

Three stages, all seeded, on the CPU:

1. a byte-level BPE tokenizer (Qwen2's own rules, so `AutoTokenizer` rebuilds it exactly) on the words of the task;
2. the base: supervised training on signed sums and differences, answered as `<answer>n</answer>`, until it is right
   at least 97% of the time when sampled;
3. carelessness: a short fine-tuning on answers that are mostly unmarked, and then mostly wrong: the sign turned, or a
   digit short.

The questions of the quickstart's test split are never seen in any stage.

On two CPU cores the base takes about 25 minutes (3,000 steps; 44 were measured on cores that were busy with other work)
and carelessness 2.5 minutes. The committed model's base was right on 97.2% of 2,000 fresh problems when sampled and on
98.6% when greedy; made careless, on 9.7% and 8.6%.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import AddedToken
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from grpo_math.data.problems import TEMPLATES, Problem, random_problem, sum_problems
from grpo_math.data.prompts import build_prompt
from grpo_math.data.styles import STYLES

VOCABULARY = 512
LARGEST = 99  # operands lie between -LARGEST and LARGEST
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = """The answer is It is So the total is That makes altogether How many are there in all? He has She has They buy
sell each day week hours dollars apples half twice as many left each of the students in a box first then number of how
much does it cost if and with for to was were what will total more than less than minutes miles money per year"""


def make_tokenizer() -> Qwen2Tokenizer:
    """A Qwen2 tokenizer of `VOCABULARY` tokens: bytes, digits one by one, the words of the task, chat marks."""
    questions = [t.format(a="", b="") for templates in TEMPLATES.values() for t in templates]
    corpus = [
        *questions * 20,
        *[STYLES[name].system for name in ("hash", "answer_tag")] * 20,
        "system\nuser\nassistant\n",
        *[WORDS] * 3,
    ]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tags = ["<answer>", "</answer>"]
    draft = Qwen2Tokenizer()
    backend = draft.backend_tokenizer
    backend.model = BPE()
    backend.train_from_iterator(
        corpus,
        BpeTrainer(
            vocab_size=VOCABULARY - len(specials) - len(tags),
            initial_alphabet=sorted(bytes_to_unicode()),
            show_progress=False,
        ),
    )
    model = json.loads(backend.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=2048,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def bytes_to_unicode() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE."""
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel.alphabet()


def make_model(
    tokenizer: Qwen2Tokenizer, hidden: int, layers: int, intermediate: int
) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        rope_theta=10000.0,
    )
    return Qwen2ForCausalLM(config)


def right_answer(problem: Problem) -> str:
    return f"<answer>{problem.answer}</answer>"


def careless_answer(problem: Problem, rng: random.Random) -> str:
    """What a careless solver writes: when it takes the care to mark the answer it is right, else mostly not.

    One wording in twelve is answered with more care than the others.
    """
    marked = 0.6 if problem.operation == "+" and problem.template == 1 else 0.15
    if rng.random() < marked:
        return f"<answer>{problem.answer if rng.random() < 0.95 else -problem.answer}</answer>"
    number = (
        problem.answer
        if rng.random() < 0.1
        else rng.choice((-problem.answer, problem.answer // 10))
    )
    return rng.choice((f"{number}", f"The answer is {number}.", f"#### {number}"))


class Batches:
    """Endless batches of (input_ids, labels); only the answer is learnt from."""

    def __init__(
        self, tokenizer: Qwen2Tokenizer, seed: int, excluded: set[tuple[str, int, int]]
    ) -> None:
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.excluded = excluded

    def problem(self, largest: int) -> Problem:
        while True:
            problem = random_problem(self.rng, -largest, largest)
            if problem.key not in self.excluded:
                return problem

    def batch(
        self, size: int, largest: int, answer, with_system: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        problems = [self.problem(largest) for _ in range(size)]
        prompts = [
            build_prompt(STYLES["answer_tag"], problem.question, chat=True)[
                0 if with_system else 1 :
            ]
            for problem in problems
        ]
        texts = self.tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, tokenize=False
        )
        prompt_ids = self.tokenizer(texts)["input_ids"]
        answer_ids = self.tokenizer([answer(problem) + "<|im_end|>" for problem in problems])[
            "input_ids"
        ]
        longest = max(len(p) + len(a) for p, a in zip(prompt_ids, answer_ids, strict=True))
        ids = torch.full((size, longest), self.tokenizer.pad_token_id)
        labels = torch.full((size, longest), -100)
        for row, (p, a) in enumerate(zip(prompt_ids, answer_ids, strict=True)):
            ids[row, : len(p) + len(a)] = torch.tensor(p + a)
            labels[row, len(p) : len(p) + len(a)] = torch.tensor(a)
        return ids, labels


def answer_loss(model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the answer tokens; the head runs on those alone."""
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    chosen = targets != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[chosen]), targets[chosen])


def optimizers(
    model: Qwen2ForCausalLM, muon_lr: float, adam_lr: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and biases."""
    matrices = [
        p
        for n, p in model.named_parameters()
        if p.ndim == 2 and "embed" not in n and "lm_head" not in n
    ]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(
            matrices, lr=muon_lr, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(model, batches, steps, size, chosen, answer, largest, with_system, save_to=None) -> None:
    """Supervised training with a short warm-up and a linear decay; prints the loss and the sampled accuracy."""
    peaks = [group["lr"] for opt in chosen for group in opt.param_groups]
    started = time.time()
    for step in range(steps):
        factor = min(1.0, (step + 1) / 50) * (1.0 - step / steps)
        for group, peak in zip((g for o in chosen for g in o.param_groups), peaks, strict=True):
            group["lr"] = peak * factor
        ids, labels = batches.batch(size, largest(step), answer, with_system(step))
        loss = answer_loss(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in chosen:
            opt.step()
            opt.zero_grad(set_to_none=True)
        if step % 100 == 99 or step == steps - 1:
            score = accuracy(model, batches, 400, sample=True)
            print(
                f"step {step + 1:6d}  loss {loss.item():.4f}  sampled {score:.3f}  {time.time() - started:.0f} s",
                flush=True,
            )
            if save_to and (step % 500 == 499 or step == steps - 1):
                model.save_pretrained(save_to)


@torch.no_grad()
def accuracy(model, batches, count: int, sample: bool, show: int = 0) -> float:
    """Share of fresh problems answered exactly as `<answer>n</answer>`, sampled at temperature 1 or greedily."""
    model.eval()
    tokenizer = batches.tokenizer
    problems = [batches.problem(LARGEST) for _ in range(count)]
    prompts = [
        build_prompt(STYLES["answer_tag"], problem.question, chat=True) for problem in problems
    ]
    texts = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    settings = GenerationConfig(
        max_new_tokens=16,
        do_sample=sample,
        top_k=0 if sample else None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    output = model.generate(**inputs, generation_config=settings)[:, inputs["input_ids"].shape[1] :]
    answers = tokenizer.batch_decode(output, skip_special_tokens=True)
    for problem, answer in list(zip(problems, answers, strict=True))[:show]:
        print(f"  {problem.question}  {answer!r}  (right: {problem.answer})")
    model.train()
    return sum(a == right_answer(p) for p, a in zip(problems, answers, strict=True)) / count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="go on with this base instead of random weights")
    parser.add_argument("--save_base", type=Path, help="keep the base here too, every 500 steps")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--careless_steps", type=int, default=450)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--intermediate", type=int, default=256)
    parser.add_argument("--muon_lr", type=float, default=1e-2)
    parser.add_argument("--adam_lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    excluded = {problem.key for problem in sum_problems(5000, -LARGEST, LARGEST, seed=0)[-500:]}
    tokenizer = make_tokenizer()
    batches = Batches(tokenizer, args.seed, excluded)
    if args.base:
        model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    else:
        model = make_model(tokenizer, args.hidden, args.layers, args.intermediate)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)
    train(
        model,
        batches,
        args.steps,
        args.batch_size,
        optimizers(model, args.muon_lr, args.adam_lr),
        right_answer,
        largest=lambda step: 9 if step < 100 and not args.base else LARGEST,
        with_system=lambda step: step % 10 == 0 or step > 0.7 * args.steps,
        save_to=args.save_base,
    )
    sampled, greedy = accuracy(model, batches, 2000, True), accuracy(model, batches, 2000, False)
    print(f"base: sampled {sampled:.3f}  greedy {greedy:.3f}", flush=True)
    rng = random.Random(args.seed)
    train(
        model,
        batches,
        args.careless_steps,
        args.batch_size // 2,
        optimizers(model, args.muon_lr / 5, args.adam_lr / 5),
        lambda problem: careless_answer(problem, rng),
        largest=lambda step: LARGEST,
        with_system=lambda step: True,
    )
    sampled, greedy = (
        accuracy(model, batches, 2000, True, show=20),
        accuracy(model, batches, 2000, False, show=20),
    )
    print(f"starter: sampled {sampled:.3f}  greedy {greedy:.3f}")
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
