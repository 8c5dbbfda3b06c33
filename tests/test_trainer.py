"""The trainer against TRL's, on the same random completions: same gradients, same metrics, less work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from grpo_math.errors import UsageError
from grpo_math.launch.arguments import parse_options, parse_trl_arguments
from grpo_math.launch.settle import Facts, settle_arguments
from grpo_math.training.exactness import LOSS_TYPES
from grpo_math.training.regroup import divide, loss_mask, regroup, trained
from grpo_math.training.trainer import MathGRPOTrainer
from trl import chat_template_utils

from conftest import ROOT, STARTER, read_rows, script, write_jsonl
from trainer_runs import (
    ALIKE,
    GROUP,
    SHAPES,
    Recorder,
    WithPositions,
    build,
    compare,
    random_completions,
    relative_error,
    tiny_model,
)

TOLERANCE = 1e-5  # relative, in float32
ONE_PROCESS = [f"{shape} {alike} bnpo" for shape in SHAPES for alike in ALIKE if alike != "rank"]
ONE_PROCESS += [f"long_generations half {loss_type}" for loss_type in LOSS_TYPES]
ONE_PROCESS += [
    'long_generations half grpo importance_sampling_level="sequence"',
    'single half luspo importance_sampling_level="sequence"',
    "single half dapo delta=1.02 mask_truncated_completions=true",
    "long_generations half sapo off_policy_mask_threshold=0.0001",
    "accumulated half dr_grpo pad_to_multiple_of=8 gradient_checkpointing=true",
    # Learned positions; attention of its own; positions that no caller can give; attention that is not told.
    *(
        f'accumulated half grpo model="{kind}" disable_dropout=true'
        for kind in ("gpt2", "gpt_neo", "gpt_bigcode", "bloom", "nemotron")
    ),
    'long_generations half dapo gradient_checkpointing=true gradient_checkpointing_kwargs={"use_reentrant":true}',
    "long_generations most grpo beta=0.1",  # all completions run
    "accumulated half dr_grpo skip_zero_advantage=false",
    "short_generations half grpo lora=true gradient_checkpointing=true",
    "long_generations half bnpo lora=true",
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
        if "skip" in case or "beta" in case:
            assert "skipped/completions" not in ours and ours["entropy"] == pytest.approx(theirs["entropy"], rel=1e-4)
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
    """vLLM's importance ratios, masks of tools, old log-probabilities: TRL's loss and ours, over all micro-batches."""
    settings = {"max_steps": 1, "off_policy_mask_threshold": 0.01, "delta": 1.3}
    trainers = [build(kind, tmp_path, "none", **settings) for kind in (WithPositions, MathGRPOTrainer)]
    for trainer in trainers:
        trainer.loss_type, trainer.use_vllm, trainer.current_gradient_accumulation_steps = loss_type, True, 3
        trainer.model.train()
    noise = torch.Generator().manual_seed(5)
    for level, ratio in RATIOS.items():
        batches = random_batches(noise, 3, 6, 20, importance_sampling_ratio=ratio, **PARTS)
        for batch in batches if level == "token" else []:
            batch["importance_sampling_ratio"].masked_fill_(loss_mask(batch) == 0, 1)  # as TRL leaves it
        gradients = []
        for trainer, those in zip(trainers, (batches, regroup(batches, loss_type)), strict=True):
            assert len(those) == 3
            trainer.importance_sampling_level = level
            trainer.model.zero_grad()
            for batch in those:
                trainer._compute_loss(trainer.model, batch).backward()
            gradients.append({name: p.grad.clone() for name, p in trainer.model.named_parameters()})
        assert relative_error(*gradients) < TOLERANCE
        assert max(float(g.abs().max()) for g in gradients[0].values()) > 0


def test_regrouped_micro_batches_hold_the_same_completions_and_equal_prompts_together():
    noise = torch.Generator().manual_seed(7)
    batches = random_batches(noise, 4, 8, 16)
    prompts = [torch.randint(20, 500, (4,), generator=noise) for _ in range(4)]
    for number, batch in enumerate(batches):
        for row in range(8):  # each prompt is in every micro-batch
            batch["prompt_ids"][row, -4:] = prompts[row % 4]
        batch["prompt_mask"][:] = 0
        batch["prompt_mask"][:, -4:] = 1
        batch["number"] = torch.arange(8) + 8 * number
    new = regroup(batches, "grpo")
    assert [len(batch["number"]) for batch in new] == [8] * 4
    assert torch.cat([batch["number"] for batch in new]).sort().values.tolist() == list(range(32))
    for batch in new:
        runs = trained(batch)
        assert len({tuple(ids[-4:].tolist()) for ids in batch["prompt_ids"][runs]}) == 1
    tokens = [int(batch["completion_mask"][trained(batch)].sum()) for batch in new]
    assert tokens == sorted(tokens, reverse=True)


@pytest.mark.parametrize(("rows", "group", "count"), [(8, 8, 4), (4, 8, 6), (6, 4, 5), (64, 16, 4), (5, 1, 3)])
def test_shares_are_even_and_none_is_larger_than_a_padded_micro_batch(rows, group, count):
    for seed in range(20):
        noise = torch.Generator().manual_seed(seed)
        sizes = torch.randint(1, 100, (rows * count,), generator=noise).tolist()
        chosen = torch.arange(rows * count)[torch.rand(rows * count, generator=noise) < 0.2 + 0.04 * seed]
        prompts = torch.randint(1, 40, (rows * count,), generator=noise).tolist()
        groups, lengths = {}, {}
        for row in chosen.tolist():
            groups.setdefault(row // group, {})[row] = sizes[row]
            lengths[row // group] = prompts[row // group]
        shares = divide(list(groups.values()), list(lengths.values()), count, rows)
        assert len(shares) == count
        assert sorted(row for share in shares for row in share.rows) == chosen.tolist()
        assert max(len(share.rows) for share in shares) <= rows
        padded = rows * (max(sizes) + max(prompts))
        assert all(share.tokens <= padded for share in shares)
        if group == 1:  # nothing holds rows together: a greedy split differs by a row at most
            assert shares[0].tokens - shares[-1].tokens <= max(sizes) + max(prompts)


def test_every_process_makes_the_same_number_of_passes_whatever_the_lengths(tmp_path):
    """Also in the pass without a gradient, where lengths like these once made three passes here and four there."""
    crafted = [[60] + [3] * 31, torch.randint(3, 61, (32,), generator=torch.Generator().manual_seed(7)).tolist()]
    plain, trainer = (build(kind, tmp_path, "none", max_steps=1) for kind in (WithPositions, MathGRPOTrainer))
    passes = []
    trainer.model.register_forward_pre_hook(lambda *_: passes.append(1))
    for sizes in crafted:
        passes.clear()
        mask = (torch.arange(60) < torch.tensor(sizes)[:, None]).long()
        ids = torch.randint(20, 500, (32, 70))
        every = torch.cat([torch.ones(32, 10, dtype=torch.long), mask], 1)
        with torch.no_grad():
            found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, every, 60, batch_size=8)[0]
            assert len(passes) == 4
            expected = plain._get_per_token_logps_and_entropies(plain.model, ids, every, 60)[0]
        assert torch.allclose(found, expected * mask, atol=1e-5)


MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def sampled(kind, mode):
    """A trainer whose completions come with the log-probabilities of another sampler, as vLLM's do; one is unknown."""

    def with_log_probs(self, prompt_ids, *args, **kwargs):
        ids, _ = random_completions(self, prompt_ids)
        noise = torch.Generator().manual_seed(self._step)
        logps = [(-6.2 + 0.3 * torch.randn(len(each), generator=noise)).tolist() for each in ids]
        logps[0][0] = None
        return ids, logps

    def trainer(folder, **arguments):
        made = build(
            kind, folder, "half", vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_min=0.8, **arguments
        )
        made.use_vllm = True  # what TRL asks when it weights samples; no engine is started
        type(made)._generate_single_turn = with_log_probs
        passes = []
        made.model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
        recorder = Recorder()
        made.add_callback(recorder)
        made.train()
        return recorder.gradients, passes, made.state.log_history[:-1]

    return trainer


@pytest.mark.parametrize("mode", MODES)
def test_vllms_ratio_comes_from_the_training_pass_when_on_policy(mode, tmp_path):
    shape = SHAPES["accumulated"] | {"gradient_accumulation_steps": 4}
    theirs, plain_passes, plain = sampled(WithPositions, mode)(tmp_path, **shape)
    ours, passes, logged = sampled(MathGRPOTrainer, mode)(tmp_path, **shape)
    assert max(relative_error(a, b) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE
    assert plain_passes.count(False) == 8 and plain_passes.count(True) == 8
    assert passes.count(False) == 0 and passes.count(True) == 8
    for row, other in zip(logged, plain, strict=True):
        names = [name for name in other if name.startswith("sampling/")]
        assert len(names) == 5 and set(names) <= row.keys()
        assert ("sampling/masked_fraction" in row) == mode.endswith("mask")


def test_off_policy_the_ratio_is_that_of_the_weights_that_generated(tmp_path):
    shape = SHAPES["long_generations"]
    theirs, _, _ = sampled(WithPositions, "token_truncate")(tmp_path, **shape)
    ours, passes, _ = sampled(MathGRPOTrainer, "token_truncate")(tmp_path, **shape)
    assert max(relative_error(a, b) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE
    assert passes.count(False) == 4 * 1  # of one generation, in as many passes as TRL makes


def test_weights_are_cast_once_for_a_whole_generation_without_vllm(tmp_path):
    trainer = build(MathGRPOTrainer, tmp_path, "none", max_steps=1, bf16=True)
    kinds = []
    head = trainer.model.model.layers[0].mlp.up_proj
    head.register_forward_hook(
        lambda *_: kinds.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
    )
    entered = []
    autocast = trainer.accelerator.autocast
    trainer.accelerator.autocast = lambda *a, **k: entered.append(1) or autocast(*a, **k)
    completions, _ = MathGRPOTrainer._generate_single_turn(trainer, [[30, 40, 50]] * 2, None, {}, 2)
    assert len(completions) == 2 and kinds == [(True, True)] * len(kinds) and len(kinds) >= 1
    assert entered == [1]


def test_rewards_judge_the_text_of_the_token_ids(tmp_path):
    """Where a tokenizer's parser takes the reasoning out of the content, too."""
    trainer = build(MathGRPOTrainer, tmp_path, "none", max_steps=1)
    texts = ["<think>2 plus 2</think><answer>4</answer>", "<answer>5</answer>"] * 2
    ids = [[*trainer._tokenizer(text)["input_ids"], trainer.eos_token_ids[0]] for text in texts]
    type(trainer)._generate_single_turn = lambda *_, **__: ([list(each) for each in ids], None)
    templates = Path(chat_template_utils.__file__).with_name("chat_templates")
    trainer._tokenizer.chat_template = (templates / "qwen3.jinja").read_text()
    chat_template_utils.add_response_schema(trainer._tokenizer)
    seen = []
    trainer.reward_funcs = [lambda completions, **_: seen.extend(completions) or [0.0] * len(completions)]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer._generate_and_score_completions([{"prompt": [{"role": "user", "content": "2 + 2?"}]}] * 4)
    expected = trainer._tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert [message["content"] for (message,) in seen] == expected and "think" in expected[0]


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
