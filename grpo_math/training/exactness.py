"""Say where leaving out completions without an advantage would not be exact."""

from __future__ import annotations

from trl import GRPOTrainer

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")


def why_not_exact(trainer: GRPOTrainer) -> str | None:
    """Give the reason why a completion without an advantage has a gradient, or None."""
    if trainer.beta != 0:
        return f"with --beta {trainer.beta:g} the KL term acts on every completion"
    if trainer._entropy_bonus_enabled:
        return "the entropy bonus acts on every completion"
    if trainer.top_entropy_quantile < 1:
        quantile = f"--top_entropy_quantile {trainer.top_entropy_quantile:g}"
        return f"{quantile} compares the tokens of a micro-batch"
    if trainer.aux_loss_enabled:
        return "the experts' auxiliary loss acts on every completion"
    if trainer._is_vlm:
        return "images are not handled"
    if trainer.loss_type not in LOSS_TYPES:
        return f"--loss_type {trainer.loss_type} is not handled"
    return None


def note(done: str, why_not: str | None) -> str:
    """Say what is done, or why nothing is."""
    return f"nothing: {why_not}" if why_not else f"{done}; the gradient is the same"
