"""What a checkpoint tells of the run that wrote it."""

from typing import Any

from torch import Tensor

from makemoe.checkpoint.format import Checkpoint


def best_loss(checkpoint: Checkpoint) -> float | None:
    """The lowest validation loss of the run up to this checkpoint, in nats per token."""
    states = [
        state for state in checkpoint.get("callbacks", {}).values() if isinstance(state, dict)
    ]
    scores = [state["best_model_score"] for state in states if "best_model_score" in state]
    return next((float(score) for score in scores if is_number(score)), None)


def is_number(score: Any) -> bool:
    """Whether a value is a float, or a tensor of one."""
    if isinstance(score, Tensor):
        return score.ndim == 0 and score.is_floating_point()
    return isinstance(score, float)
