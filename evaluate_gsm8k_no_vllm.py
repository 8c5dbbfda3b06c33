"""Evaluate a model on GSM8K, or other rows of questions and answers, with transformers alone.

    python evaluate_gsm8k_no_vllm.py Qwen/Qwen2.5-0.5B-Instruct
    python evaluate_gsm8k_no_vllm.py outputs/RUN --data data/gsm8k/eval.jsonl
    python evaluate_gsm8k_no_vllm.py starter_model --data data/arithmetic/test.jsonl --max_tokens 16

On a CPU, on Apple's chips or on any GPU. Prints strict accuracy (right, and in the prompt style's
format) and lenient accuracy (right in any form) with 95% intervals; writes every completion with
its verdict to evals/. The same command run again goes on where it stopped.
"""

from __future__ import annotations

from grpo_math.errors import run
from grpo_math.evaluation.evaluate import evaluate
from grpo_math.evaluation.options import argument_parser
from grpo_math.generation.transformers_backend import TransformersBackend


def main() -> None:
    evaluate(argument_parser(__doc__).parse_args(), TransformersBackend)


if __name__ == "__main__":
    run(main)
