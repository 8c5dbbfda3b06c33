"""The trainer against TRL's, on the same random completions: same gradients, same metrics, less work."""

import itertools
import json
import math
import os
import subprocess
import sys
import time

import numpy as np
import peft
import pyarrow.parquet
import pytest
import torch
from grpo_math.errors import UsageError
from grpo_math.launch.arguments import parse_options, parse_trl_arguments
from grpo_math.launch.settle import Facts, settle_arguments
from grpo_math.training.micro_batches import LOSS_TYPES, loss_mask, micro_batches, removable_padding, repack
from grpo_math.training.shared_prompts import log_probs, why_not_shared
from grpo_math.training.trainer import MathGRPOTrainer
from transformers import AutoConfig
from trl.trainer.utils import add_fused_lm_head

from conftest import ROOT, STARTER, read_rows, script, write_jsonl
from trainer_runs import ALIKE, GROUP, SHAPES, Recorder, build, compare, relative_error, tiny_model

TOLERANCE = 1e-5  # relative, in float32
ONE_PROCESS = [f"{shape} {alike} bnpo" for shape in SHAPES for alike in ALIKE if alike != "rank"]
ONE_PROCESS += [f"long_generations half {loss_type}" for loss_type in LOSS_TYPES]
ONE_PROCESS += [
    'long_generations half grpo importance_sampling_level="sequence"',
    'single half luspo importance_sampling_level="sequence"',
    "single half dapo delta=1.02 mask_truncated_completions=true",
    "long_generations half sapo off_policy_mask_threshold=0.0001",
    "accumulated half dr_grpo pad_to_multiple_of=8 gradient_checkpointing=true",
    'accumulated half grpo model="gpt2" disable_dropout=true',  # learned positions, which count the padding of prompts
]
TWO_PROCESSES = [f"{shape} {alike} bnpo" for shape in SHAPES for alike in ("half", "rank")]
TWO_PROCESSES += [f"accumulated {alike} dr_grpo" for alike in ALIKE]
TWO_PROCESSES += [f"long_generations rank {loss_type}" for loss_type in LOSS_TYPES if loss_type != "bnpo"]


def check(case, result):
    """Gradients are TRL's; so is what is logged, but for what the trainer says is not."""
    assert max(result["errors"]) < TOLERANCE, result["errors"]
    shape, alike, *_ = case.split()
    assert (alike == "all") == (max(result["errors"]) == 0), "a gradient that is not zero must not be compared as one"
    for ours, theirs in zip(result["ours"], result["theirs"], strict=True):
        assert ours.keys() - theirs.keys() <= {"skipped/completions", "skipped/positions"}
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-6)
        assert ours.get("grad_norm") == pytest.approx(theirs.get("grad_norm"), rel=1e-5)
        for key in theirs.keys() - {"step_time", "entropy", "loss"}:
            # TRL averages over micro-batches, and where there is one that is no other thing.
            if shape == "single" or not key.startswith(("clip_ratio", "cispo", "vespo")):
                assert ours.get(key) == pytest.approx(theirs[key], rel=1e-5, abs=1e-6), key
        if alike == "none" and shape == "single":
            assert ours["entropy"] == pytest.approx(theirs["entropy"], rel=1e-5)
        if alike == "all":
            assert "entropy" not in ours
        if "skipped/completions" in ours and alike == "half" and shape == "single" and "mask" not in case:
            assert ours["skipped/completions"] == 0.5 <= ours["skipped/positions"]


@pytest.mark.parametrize("case", ONE_PROCESS)
def test_gradients_are_trls(case, tmp_path):
    check(case, compare(case, tmp_path))


@pytest.mark.slow
def test_gradients_are_trls_on_two_processes(tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "accelerate_configs/cpu.yaml"]
    launch += ["--num_processes", 2, "--num_machines", 1, "--machine_rank", 0, "--main_process_port", 0]
    command = [sys.executable, *launch, ROOT / "tests/trainer_runs.py", tmp_path, *TWO_PROCESSES]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(c) for c in command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == TWO_PROCESSES
    for case, result in results.items():
        check(case, result)


def single_log_probs(model, batch, row):
    """Of each token of one completion, without padding: (T,)."""
    prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
    completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
    logits = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1)[torch.arange(len(completion)), completion]


def no_baseline(logps, old, reward, group):
    return -reward * logps


def reinforce_with_baseline(logps, old, reward, group):
    return -(reward - group.mean()) / (group.std() + 1e-4) * logps


def grpo_clip(logps, old, reward, group):
    advantage = (reward - group.mean()) / (group.std() + 1e-4)
    ratio = torch.exp(logps - old)
    return -torch.minimum(ratio * advantage, torch.clamp(ratio, 0.8, 1.2) * advantage)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(
    ("formula", "flags", "steps"),
    [
        (no_baseline, "--advantage no_baseline --loss_type grpo", 1),
        (reinforce_with_baseline, "--advantage group_normalized --loss_type grpo", 1),
        (grpo_clip, "--advantage group_normalized --loss_type grpo --num_iterations 2 --epsilon 0.2", 2),
    ],
)
def test_losses_of_the_course_work(formula, flags, steps, skip, tmp_path):
    """Mean over a completion's tokens, then over completions; `grpo_clip` in its second, off-policy step, too."""
    options = parse_options(["m", *flags.split()], "")
    arguments, _ = settle_arguments(options, parse_trl_arguments(options, {"bf16": False}), Facts())
    chosen = {name: getattr(arguments, name) for name in ("loss_type", "scale_rewards", "num_iterations", "epsilon")}
    more = {"baseline": options.advantage != "no_baseline", "skip_zero_advantage": skip, "learning_rate": 0.05}
    shape = {"per_device_train_batch_size": 8, "max_steps": steps}
    trainer, batches = build(MathGRPOTrainer, tmp_path, "half", **shape, **chosen, **more), []
    generate, recorder = trainer._generate_and_score_completions, Recorder()
    trainer._generate_and_score_completions = lambda inputs: batches.append(generate(inputs)) or batches[-1]
    trainer.add_callback(recorder)
    trainer.train()
    rewards = trainer._rewards[:, 0].view(-1, GROUP)
    model, first = tiny_model(), tiny_model()
    for gradients, weights in zip(recorder.gradients, recorder.weights, strict=True):
        model.load_state_dict(weights, strict=False)  # the output layer's are the embedding's
        model.zero_grad()
        for row, reward in enumerate(rewards.flatten()):
            old = single_log_probs(first, batches[0], row).detach()
            loss = formula(single_log_probs(model, batches[0], row), old, reward, rewards[row // GROUP])
            (loss.mean() / rewards.numel()).backward()
        expected = {name: p.grad for name, p in model.named_parameters()}
        assert relative_error(gradients, expected) < 2e-5
    if formula is grpo_clip:
        assert trainer.state.log_history[1]["clip_ratio/region_mean"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--advantage shout", "unknown advantage 'shout': known are no_baseline, group_mean, group_normalized"),
        (
            "--advantage no_baseline --scale_rewards group",
            "--advantage no_baseline and --scale_rewards group: give one",
        ),
        ("--advantage group_mean --scale_rewards group", "--advantage group_mean and --scale_rewards group: give one"),
        (
            "--advantage group_mean --multi_objective_aggregation normalize_then_sum",
            "--advantage group_mean and --multi_objective_aggregation normalize_then_sum: give one",
        ),
        ("--skip_zero_advantage perhaps", "'perhaps' is neither true nor false"),
    ],
)
def test_advantages_that_contradict_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        options = parse_options(["m", *flags.split()], "")
        settle_arguments(options, parse_trl_arguments(options, {}), Facts())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"skip_zero_advantage": False}, "--skip_zero_advantage false"),
        ({"beta": 0.04}, "with --beta 0.04 the KL term"),
        ({"entropy_coef": 0.01}, "the entropy bonus"),
        ({"top_entropy_quantile": 0.2}, "--top_entropy_quantile 0.2"),
        ({"model": "mixtral", "router_aux_loss_coef": 0.01}, "the experts' auxiliary loss"),
    ],
)
def test_where_it_would_not_be_exact_it_is_off_and_says_so(arguments, reason, tmp_path):
    trainer = build(MathGRPOTrainer, tmp_path, "half", max_steps=1, **arguments)
    assert not trainer.skips and trainer.skip_note.startswith("nothing: ") and reason in trainer.skip_note


def random_batches(noise, count, rows, width, **parts):
    """Micro-batches as TRL holds them; a third of the completions has no advantage, a tenth no token that counts."""
    batches = []
    for _ in range(count):
        lengths = torch.randint(1, width + 1, (rows, 2), generator=noise)
        places = torch.arange(width)
        mask = (places < lengths[:, 1:]).long() * (torch.rand(rows, 1, generator=noise) > 0.1)
        advantages = torch.randn(rows, generator=noise) * (torch.rand(rows, generator=noise) > 0.33)
        ids = torch.randint(20, 500, (2, rows, width), generator=noise)
        batch = {
            "prompt_ids": ids[0],
            "prompt_mask": (places >= width - lengths[:, :1]).long(),
            "completion_ids": ids[1],
        }
        batch |= {"completion_mask": mask, "advantages": advantages}
        batch |= {name: make(noise, rows, width) for name, make in parts.items()}
        batches.append(batch)
    tokens = sum(loss_mask(batch).sum() for batch in batches)
    return [batch | {"num_items_in_batch": tokens} for batch in batches]


PARTS = {
    "old_per_token_logps": lambda noise, rows, width: -6.2 + 0.2 * torch.randn(rows, width, generator=noise),
    "sampling_per_token_logps": lambda noise, rows, width: -6.2 + 0.2 * torch.randn(rows, width, generator=noise),
    "tool_mask": lambda noise, rows, width: torch.randint(0, 2, (rows, width), generator=noise),
}
RATIOS = {
    "token": lambda noise, rows, width: 0.5 + torch.rand(rows, width, generator=noise),
    "sequence": lambda noise, rows, width: 0.5 + torch.rand(rows, 1, generator=noise),
}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_with_all_that_a_batch_can_hold(loss_type, tmp_path):
    """vLLM's importance ratios, masks of tools, old log-probabilities: TRL's loss of both, over all micro-batches."""
    trainer = build(MathGRPOTrainer, tmp_path, "none", max_steps=1, off_policy_mask_threshold=0.01, delta=1.3)
    trainer.loss_type, trainer.use_vllm, trainer.current_gradient_accumulation_steps = loss_type, True, 3
    trainer.model.train()
    noise = torch.Generator().manual_seed(5)
    for level, ratio in RATIOS.items():
        trainer.importance_sampling_level = level
        batches = random_batches(noise, 3, 6, 20, importance_sampling_ratio=ratio, **PARTS)
        for batch in batches if level == "token" else []:
            batch["importance_sampling_ratio"].masked_fill_(loss_mask(batch) == 0, 1)  # as TRL leaves it
        gradients = []
        for those in (batches, repack(batches, loss_type)):
            assert len(those) == 3
            trainer.model.zero_grad()
            for batch in those:
                super(MathGRPOTrainer, trainer)._compute_loss(trainer.model, batch).backward()
            gradients.append({name: p.grad.clone() for name, p in trainer.model.named_parameters()})
        assert relative_error(*gradients) < TOLERANCE
        assert max(float(g.abs().max()) for g in gradients[0].values()) > 0


def positions(part, prompts, completions, shared):
    """That a micro-batch of these rows runs, prompts that are shared once."""
    prompts_run = len(part) if shared is None else len(set(shared[part]))
    return prompts_run * prompts[part].max() + len(part) * completions[part].max()


def brute_force(prompts, completions, count, most, shared):
    """Positions of the best division: every way to cut every one of the orders."""
    best = math.inf
    orders = [np.argsort(-key, kind="stable") for key in (completions, prompts + completions)]
    if shared is not None:
        longest = [max(completions[shared == number]) for number in shared]
        orders.append(np.array(sorted(range(len(shared)), key=lambda i: (-longest[i], shared[i], -completions[i]))))
    for order in orders:
        for cuts in itertools.combinations_with_replacement(range(len(order) + 1), count - 1):
            parts = [part for part in np.split(order, cuts) if len(part)]
            if all(len(part) * (prompts[part].max() + completions[part].max()) <= most for part in parts):
                best = min(best, sum(positions(part, prompts, completions, shared) for part in parts))
    return best


@pytest.mark.parametrize("share", [False, True])
def test_micro_batches_are_the_best_and_none_is_too_large(share):
    noise = np.random.default_rng(0)
    for _ in range(60):
        count, rows = noise.integers(1, 5), noise.integers(1, 4)
        prompts, completions = noise.integers(1, 40, (2, noise.integers(1, count * rows + 1)))
        shared = noise.integers(0, 3, len(prompts)) if share else None
        if share:
            shared = np.unique(shared, return_inverse=True)[1]
            prompts = noise.integers(1, 40, 3)[shared]
        most = rows * (prompts.max() + completions.max())
        parts = micro_batches(prompts, completions, count, most, rows, shared)
        assert sorted(np.concatenate(parts)) == list(range(len(prompts))) and len(parts) <= count
        assert max(len(part) * (prompts[part].max() + completions[part].max()) for part in parts) <= most
        run = sum(positions(part, prompts, completions, shared) for part in parts)
        assert run == brute_force(prompts, completions, count, most, shared)
    assert micro_batches(np.array([]), np.array([]), 4, 100, 2) == []


def test_many_completions_are_divided_in_no_time():
    noise = np.random.default_rng(0)
    for count, rows, shared in itertools.product([1, 64, 512, 1024], [1, 7, 64], [False, True]):
        lengths = noise.integers(1, 1000, (2, count * rows))
        groups = np.arange(count * rows) // 8 if shared else None
        started = time.perf_counter()
        parts = micro_batches(*lengths, count, rows * int(lengths.max(1).sum()), rows, groups)
        assert time.perf_counter() - started < 3
        assert sorted(np.concatenate(parts)) == list(range(count * rows)) and len(parts) <= count


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        ("qwen2", {}, (True, True)),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}}, (True, True)),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, (False, False)),
        ("gemma3_text", {}, (True, True)),
        ("gpt2", {}, (False, True)),
        ("opt", {}, (False, True)),
    ],
)  # fmt: skip
def test_padding_that_a_model_would_miss_stays(kind, more, expected):
    assert removable_padding(AutoConfig.for_model(kind, **more)) == expected


def adapted(model, dropout):
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=dropout, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("different", [3, 7])
@pytest.mark.parametrize("sizes", [(5, 1, 9, 4, 4, 2, 8), (1, 1, 1, 1, 1, 1, 1), (7, 7, 3, 1, 2, 3, 4)])
def test_shared_prompts_give_each_completion_its_log_probabilities(sizes, different, adapter):
    """Beside the plain model, one completion at a time: values, entropies and gradients."""
    model = tiny_model()
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    base, model = model, adapted(model, 0.0) if adapter else model
    noise = torch.Generator().manual_seed(3)
    prompts = [torch.randint(20, 500, (size,), generator=noise) for size in sizes]
    texts = [(prompts[row % different], torch.randint(20, 500, (1 + row,), generator=noise)) for row in range(7)]
    ids, mask = torch.zeros(7, max(sizes) + 7, dtype=torch.long), torch.zeros(7, max(sizes) + 7, dtype=torch.long)
    for row, (prompt, completion) in enumerate(texts):
        place = slice(max(sizes) - len(prompt), max(sizes) + len(completion))
        ids[row, place], mask[row, place] = torch.cat([prompt, completion]), 1
    found, entropies = log_probs(model, base.base_model, ids, mask, 7, compute_entropy=True)
    weights = torch.randn(7, 7, generator=noise)
    (found * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    for row, (prompt, completion) in enumerate(texts):
        logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        every = torch.log_softmax(logits, -1)
        expected = every[torch.arange(len(completion)), completion]
        assert torch.allclose(found[row, : len(completion)], expected, atol=1e-5)
        assert torch.allclose(entropies[row, : len(completion)], -(every.exp() * every).sum(-1), atol=1e-5)
        (expected * weights[row, : len(completion)]).sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert relative_error(gradients, expected) < TOLERANCE


def configured(kind, hf_device_map=None, **values):
    model = tiny_model(kind)
    model.config.update(values)
    if hf_device_map:
        model.hf_device_map = hf_device_map
    return model


@pytest.mark.parametrize(
    ("model", "checkpointing", "launch", "reason"),
    [
        (lambda: tiny_model(), False, "NO", None),
        (lambda: tiny_model(), False, "MULTI_GPU", None),
        (lambda: adapted(tiny_model(), 0.0).get_base_model(), False, "NO", None),
        (lambda: tiny_model(), True, "NO", "--gradient_checkpointing true"),
        (lambda: tiny_model(), False, "FSDP", "sharded"),
        (lambda: tiny_model(), False, "DEEPSPEED", "sharded"),
        (lambda: tiny_model("gpt2"), False, "NO", "dropout"),
        (lambda: adapted(tiny_model(), 0.05).get_base_model(), False, "NO", "dropout"),
        (lambda: tiny_model("gemma3_text"), False, "NO", "more of a prompt"),
        (lambda: tiny_model("mamba"), False, "NO", "more of a prompt"),
        (lambda: tiny_model("opt"), False, "NO", "dropout"),
        (lambda: configured("mixtral", router_jitter_noise=0.1), False, "NO", "dropout"),
        (lambda: configured("mixtral", output_router_logits=True), False, "NO", "experts"),
        (lambda: configured("qwen2", hf_device_map={"a": 0, "b": 1}), False, "NO", "several devices"),
    ],
)
def test_prompts_are_shared_where_that_is_exact(model, checkpointing, launch, reason):
    why = why_not_shared(model(), checkpointing, launch)
    assert why is None if reason is None else reason in why


def test_the_script_trains_without_a_baseline_and_says_what_it_skips(tmp_path):
    rows = [{"question": f"What is {i} plus 1?", "answer": str(i + 1), "task": "arithmetic"} for i in range(40)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    command = ["train_grpo.py", STARTER, "--train_data", "train.jsonl", "--output_dir", "run", "--max_steps", 2]
    command += ["--advantage", "no_baseline", "--num_generations", 4, "--max_completion_length", 12]
    command += ["--reward_funcs", "accuracy", "format", "--reward_weights", "1", "0.25", "--report_to", "none"]
    done = script([*command, "--gradient_checkpointing", "false"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "skipping     completions of zero advantage; the gradient is the same" in done.stdout
    steps = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if "reward" in row]
    for step, file in zip(steps, sorted((tmp_path / "run/completions").iterdir()), strict=True):
        table = pyarrow.parquet.read_table(file).to_pydict()
        rewards = [a + f / 4 for a, f in zip(table["accuracy"], table["format"], strict=True)]
        assert table["advantage"] == pytest.approx(rewards)
        assert step["skipped/completions"] == pytest.approx(rewards.count(0) / len(rewards))
        assert step["skipped/completions"] <= step["skipped/positions"] < 1 or set(rewards) == {0}
    other = script([*command, "--advantage", "group_mean"], tmp_path)
    assert other.returncode == 2 and "advantage: no_baseline -> None" in other.stderr
