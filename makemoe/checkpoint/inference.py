"""The model and the tokenizer that a checkpoint alone rebuilds."""

import inspect
import os
from collections.abc import Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

from makemoe.checkpoint.format import KEY, read
from makemoe.checkpoint.parts import factory
from makemoe.data.tokenizer import Tokenizer
from makemoe.errors import CheckpointError
from makemoe.model.experts import Experts
from makemoe.model.router import Router
from makemoe.model.transformer import MoETransformer


def load_for_inference(
    path: str | os.PathLike[str], trusted: Sequence[str] = ()
) -> tuple[MoETransformer, Tokenizer]:
    """The model, in evaluation mode, and the tokenizer a checkpoint alone rebuilds.

    Args:
        path: the checkpoint.
        trusted: modules, besides makemoe, whose classes the checkpoint may name.
    """
    checkpoint = read(path)
    spec = checkpoint[KEY].get("tokenizer")
    if not isinstance(spec, dict):
        raise CheckpointError(f"{path} holds no tokenizer: it was trained without a TextDataModule")
    accepted = inspect.signature(MoETransformer).parameters
    try:
        hyper = checkpoint["hyper_parameters"]
        net = {name: value for name, value in hyper.items() if name in accepted and name != "init"}
        for name, base in {"router": Router, "experts": Experts}.items():
            if net.get(name) is not None:
                net[name] = factory(net[name], base, trusted)
        weights = {
            name.removeprefix("net."): tensor
            for name, tensor in checkpoint["state_dict"].items()
            if name.startswith("net.")
        }
        tokenizer = factory(spec, Tokenizer, trusted)()
        with Unfilled():
            model = MoETransformer(**net)
        odd = model.load_state_dict(weights, strict=False, assign=True)
        for what, names in (("missing", odd.missing_keys), ("unknown", odd.unexpected_keys)):
            if names:
                raise ValueError(f"{len(names)} weights are {what}, {min(names)} the first")
        if tokenizer.vocab_size != model.vocab_size:
            raise ValueError(f"{tokenizer.vocab_size} symbols for {model.vocab_size} embeddings")
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not hold the model it describes: {reason}") from error
    return model.eval(), tokenizer


class Unfilled(TorchFunctionMode):
    """Leaves new weights as they come from memory: others are about to take their place.

    The meta device would do, but to fill a tensor there torch imports its compiler, for a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_", "zeros_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
