"""A run with `loss_type=dr_grpo` as this project sets it has Dr. GRPO's gradient, written out from the paper.

Liu et al. 2025 (arXiv 2503.20783), eq. 3: with R_i the reward of completion i of a group, and a budget of L tokens,

    A_i  = R_i - mean(R)                                    no division by the group's standard deviation
    loss = -1/(N L) sum_i A_i sum_t log pi(o_it | q, o_i<t)  no division by a completion's own length

where on-policy the ratio pi/pi_old is 1 and has the gradient of log pi.
"""

import pytest
import torch
from datasets import Dataset
from grpo_math.data.prompts import build_prompt
from grpo_math.data.styles import get_style
from grpo_math.launch.arguments import parse_options, parse_trl_arguments
from grpo_math.launch.settle import Facts, settle_arguments
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import STARTER

GROUP, CAP = 4, 10
REWARDS = [1.0, 0.0, 0.2, 0.0, 1.0, 1.0, 0.0, 1.2]


def written_out(model, batch, rewards):
    """The gradient of the formula above, completion by completion, without padding."""
    model.zero_grad()
    for row in range(len(rewards)):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        group = rewards[row // GROUP * GROUP : row // GROUP * GROUP + GROUP]
        advantage = rewards[row] - sum(group) / GROUP
        logits = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        log_probs = torch.log_softmax(logits, -1)[torch.arange(len(completion)), completion]
        (-advantage * log_probs.sum() / (len(rewards) * CAP)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trls(folder, accumulation, *more):
    """The gradient of one optimizer step as TRL makes it with this project's arguments, and its batch."""
    from trl import GRPOTrainer

    arguments = (
        f"--output_dir {folder} --per_device_train_batch_size {8 // accumulation} --max_grad_norm 0 --bf16 false "
    )
    arguments += f"--gradient_accumulation_steps {accumulation} --num_generations {GROUP} --report_to none "
    arguments += f"--max_completion_length {CAP} --gradient_checkpointing false --dataloader_pin_memory false "
    arguments += "--reward_funcs accuracy"
    options = parse_options(["m", *arguments.split(), *more], "")
    args, _ = settle_arguments(options, parse_trl_arguments(options, {}), Facts())
    kept = []

    class Recorder(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            kept.append(super()._generate_and_score_completions(inputs))
            return kept[-1]

    questions = ["What is 4 plus 5?", "Subtract 3 from 12."]
    rows = [{"prompt": build_prompt(get_style("answer_tag"), question, chat=True)} for question in questions]
    trainer = Recorder(
        starter(),
        lambda completions, **_: REWARDS,
        args,
        Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(STARTER),
    )
    trainer.create_optimizer_and_scheduler(1)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.current_gradient_accumulation_steps = accumulation
    for micro in range(accumulation):
        trainer.accelerator.gradient_state._set_sync_gradients(micro == accumulation - 1)
        trainer.training_step(trainer.model, batch, None)
    return {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}, kept[0]


def starter():
    return AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32)


def relative_errors(gradients, expected):
    assert gradients.keys() == expected.keys()
    return [float(torch.norm(gradients[name] - g) / torch.norm(g)) for name, g in expected.items()]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradient_is_dr_grpos(tmp_path, accumulation):
    gradients, batch = trls(tmp_path, accumulation)
    assert max(relative_errors(gradients, written_out(starter(), batch, REWARDS))) < 1e-4


@pytest.mark.parametrize("change", [("--scale_rewards", "group"), ("--loss_type", "grpo")])
def test_gradient_of_other_settings_is_not(tmp_path, change):
    """That the comparison above can fail: what TRL takes for granted beside `loss_type=dr_grpo` is another gradient."""
    gradients, batch = trls(tmp_path, 1, *change)
    assert min(relative_errors(gradients, written_out(starter(), batch, REWARDS))) > 0.05
