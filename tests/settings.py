"""The model that settings describe, built without its weights."""

from collections.abc import Mapping
from typing import Any

import torch

from makemoe.checkpoint.held import Reader, made, signature_of
from makemoe.model.transformer import MoETransformer


def net_of(settings: Mapping[str, Any], vocab_size: int) -> MoETransformer:
    """A model on the meta device, from what `makemoe fit --print_config` has under `model`."""
    reader = Reader("the settings")
    arguments = {
        name: made(reader.value(settings[name], parameter.annotation, name))
        for name, parameter in signature_of(MoETransformer)[0].items()
        if name in settings and name != "init"
    }
    with torch.device("meta"):
        return MoETransformer(vocab_size, **arguments)
