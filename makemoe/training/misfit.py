"""Whether a checkpoint's model is the one asked for, said in the user's words."""

from collections.abc import Iterator, Mapping
from typing import Any

from makemoe.errors import CheckpointError

SIZES = ("n_layer", "n_head", "n_embd", "num_experts", "block_size", "vocab_size")
"""What a model's weights have as their shapes or cannot do without; top_k is free to change."""

PARTS = ("router", "experts")


def check_sizes_held(asked: Mapping[str, Any], held: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming them, for sizes that are not those of the checkpoint.

    Args:
        asked: settings of the model.
        held: those the checkpoint's weights were trained with.
    """
    refuse(
        f"{name} {asked[name]}, checkpoint has {held[name]}"
        for name in SIZES
        if name in asked and name in held and asked[name] != held[name]
    )


def explain_misfit(
    asked: Mapping[str, Any], held: Mapping[str, Any] | None, error: RuntimeError
) -> CheckpointError:
    """What to raise for weights that torch does not load into the model.

    Args:
        asked: settings of the model.
        held: those of the checkpoint, if they are known; the sizes agree.
        error: torch's.
    """
    first = " ".join(str(error).splitlines()[1].split())
    if held is None:
        return CheckpointError(f"the checkpoint's weights are not of the model asked for: {first}")
    try:
        refuse(difference for name in PARTS for difference in differences(name, asked, held))
    except CheckpointError as other:
        return other
    return CheckpointError(
        f"the checkpoint is damaged: its weights do not fit the sizes it holds: {first}"
    )


def refuse(found: Iterator[str]) -> None:
    """Raise CheckpointError if there are differences."""
    if named := "; ".join(found):
        raise CheckpointError(
            f"the checkpoint's model is another: {named}: leave these out to go on with it, "
            "or start a new run"
        )


def differences(name: str, asked: Mapping[str, Any], held: Mapping[str, Any]) -> Iterator[str]:
    """In what two settings of a part differ: its class, or else its arguments."""
    (one, given), (other, kept) = class_and_arguments(asked, name), class_and_arguments(held, name)
    if one != other:
        yield f"{name} {one}, checkpoint has {other}"
        return
    for key in sorted(given.keys() | kept.keys()):
        if given.get(key) != kept.get(key):
            yield f"{name}.{key} {given.get(key)}, checkpoint has {kept.get(key)}"


def class_and_arguments(settings: Mapping[str, Any], name: str) -> tuple[Any, dict[str, Any]]:
    """What a part is made of."""
    spec = settings.get(name)
    if not isinstance(spec, Mapping):
        return spec, {}
    arguments = spec.get("init_args")
    return spec.get("class_path"), dict(arguments) if isinstance(arguments, Mapping) else {}
