"""Evaluate a model on GSM8K, or other rows of questions and answers, with vLLM.

    python evaluate_gsm8k.py Qwen/Qwen2.5-3B-Instruct
    python evaluate_gsm8k.py outputs/RUN --n 8 --temperature 1 --name run-pass8
    python evaluate_gsm8k.py Qwen/Qwen2.5-72B-Instruct --tensor_parallel_size 4

Prints strict accuracy (right, and in the prompt style's format) and lenient accuracy (right in any
form) with 95% intervals; writes every completion with its verdict to evals/. The same command run
again goes on where it stopped. Arguments, scoring and files are those of evaluate_gsm8k_no_vllm.py,
for models that vLLM does not know.
"""

from __future__ import annotations

from grpo_math.errors import run
from grpo_math.evaluation.evaluate import evaluate
from grpo_math.evaluation.options import argument_parser
from grpo_math.generation.vllm_backend import VllmBackend


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--tensor_parallel_size", type=int, default=1, help="GPUs that share one model (default: 1)"
    )
    parser.add_argument(
        "--gpu_memory_utilization", type=float, default=0.9, help="share of each GPU (default: 0.9)"
    )
    evaluate(parser.parse_args(), VllmBackend)


if __name__ == "__main__":
    run(main)
