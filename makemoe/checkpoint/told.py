"""What a checkpoint tells of the run that wrote it."""

from torch import Tensor

from makemoe.checkpoint.format import Checkpoint


def best_loss(checkpoint: Checkpoint) -> float | None:
    """The lowest validation loss of the run up to this checkpoint, in nats per token."""
    states = [
        state for state in checkpoint.get("callbacks", {}).values() if isinstance(state, dict)
    ]
    scores = [state["best_model_score"] for state in states if "best_model_score" in state]
    numbers = [s for s in scores if isinstance(s, float) or (isinstance(s, Tensor) and s.ndim == 0)]
    return next(map(float, numbers), None)
