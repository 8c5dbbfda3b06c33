"""Talk with one or several models: one prompt, their answers side by side, streamed as they come.

    python instruct_model_repl.py starter_model outputs/quickstart
    python instruct_model_repl.py Qwen/Qwen2.5-0.5B-Instruct --conversation --temperature 0.7
    python instruct_model_repl.py MODEL -p "How many legs do 3 cats and 2 birds have?"
    python instruct_model_repl.py MODEL --input questions.jsonl --output answers.jsonl
    python instruct_model_repl.py MODEL --backend openai --base_url http://127.0.0.1:8000/v1

/help lists the commands. Ctrl-C stops the answers; quit, exit or Ctrl-D leaves. Questions can be
piped in, a line each. Models may be named here, in a YAML file (--models), or in MODELS at the top
of this file. Each has a process of its own.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from grpo_math.errors import UsageError, run

MODELS = ["starter_model"]  # talked with when none is named: edit me


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("names", nargs="*", metavar="MODEL", help="Hub id, folder of a model or run, or served")
    add("--models", metavar="YAML", help="list of models: names, or `model:`, `name:`, `style:`...")
    add("--backend", default="transformers", help="transformers (default), vllm or openai")
    add("--base_url", help="of a server (default: $OPENAI_BASE_URL); its key: $OPENAI_API_KEY")
    add("-p", "--question", help="answer this one and leave")
    add("--input", metavar="JSONL", help="answer this file's questions and leave; needs --output")
    add("--output", type=Path, metavar="JSONL", help="append every answer to this file")
    add("--conversation", action="store_true", help="questions follow on each other")
    add("--style", help="prompt style of all models (default: each one's own, from its run)")
    add("--system", help="system prompt, in place of the style's; '' is none")
    add("--chat_template_kwargs", metavar="JSON", help="for all (default: each one's, as --style)")
    add("--temperature", help="0 is greedy (default: 0)")
    add("--top_p", help="(default: 1)")
    add("--max_tokens", help="of an answer (default: 512)")
    add("--seed", help="of sampling (default: a new one for every question; 0 with --input)")
    add("--dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"])
    add("--trust_remote_code", action="store_true", help="run code that comes with the model")
    add("--max_model_len", type=int, default=4096, help="vLLM: of prompt and answer (4096)")
    add("--gpu_memory_utilization", type=float, default=0.9, help="vLLM: of all models (0.9)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.input and (args.output is None or args.question):
        raise UsageError("--input: needs --output, where the answers go, and no -p")

    from grpo_math.chat.batch import load_questions, run_file
    from grpo_math.chat.commands import talk
    from grpo_math.chat.screen import Screen
    from grpo_math.chat.session import READERS, Session, Settings
    from grpo_math.chat.workers import ModelSpec, listed_models

    settings = Settings(conversation=args.conversation, seed=0 if args.input else None)
    for name in READERS:
        settings.change(name, getattr(args, name))
    url = args.base_url or os.environ.get("OPENAI_BASE_URL", "")
    common = ModelSpec(
        model="",
        backend=args.backend,
        base_url=url,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
        context=args.max_model_len,
        gpu_share=args.gpu_memory_utilization,
    )
    listed = listed_models(args.models, common) if args.models else []
    names = args.names
    if not names and not listed:
        names = MODELS
    if args.input:
        load_questions(args.input)  # mistakes in it show before models are loaded
    session = Session(settings, common, args.output)
    try:
        session.add([*(replace(common, model=name) for name in names), *listed])
        if not session.workers:
            raise UsageError("none of the models could be loaded")
        if args.input:
            run_file(session, args.input, args.output)
        elif args.question is not None:
            answers = session.ask(args.question, Screen())
            if failed := [f"{each.name}: {each.error}" for each in answers if each.error]:
                raise UsageError("; ".join(failed))
        else:
            talk(session, Screen())
    finally:
        session.close()


if __name__ == "__main__":
    run(main)
