"""Checks that a checkpoint's model is the requested one, and names what differs."""

from collections.abc import Iterator, Mapping
from typing import Any

from makemoe.errors import CheckpointError

SIZES: dict[str, Any] = {
    **dict.fromkeys(("n_layer", "n_head", "n_embd", "num_experts", "block_size", "vocab_size")),
    **{"shared_experts": 0, "dense_layers": [], "dense_width": 1, "tied_embeddings": False},
    "head_bias": True,
}
"""Settings that must be the checkpoint's, because the weights depend on them; top_k may change.

Their values are those of checkpoints that do not name them yet; None: every checkpoint does.
"""

PARTS = ("router", "experts", "norm", "positions", "attention", "feed_forward")


def check_sizes_held(asked: Mapping[str, Any], held: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming them, for sizes that differ from the checkpoint's.

    Args:
        asked: the requested settings of the model.
        held: the settings in the checkpoint.
    """
    refuse(
        f"{name} {asked[name]}, checkpoint has {held.get(name, older)}"
        for name, older in SIZES.items()
        if name in asked and (name in held or (held and older is not None))
        if as_list(asked[name]) != as_list(held.get(name, older))
    )


def as_list(value: Any) -> Any:
    """The value; a tuple becomes a list, as in a checkpoint."""
    return list(value) if isinstance(value, tuple) else value


def explain_misfit(
    asked: Mapping[str, Any], held: Mapping[str, Any] | None, error: RuntimeError
) -> CheckpointError:
    """Return the error to raise when torch cannot load the weights into the model.

    Args:
        asked: the requested settings of the model.
        held: the settings in the checkpoint, with the same sizes; None: unknown.
        error: torch's error.
    """
    first = " ".join(str(error).splitlines()[1].split())
    if held is None:
        return CheckpointError(f"the checkpoint's weights do not fit the requested model: {first}")
    try:
        refuse(difference for name in PARTS for difference in differences(name, asked, held))
    except CheckpointError as other:
        return other
    return CheckpointError(
        f"the checkpoint is damaged: its weights do not fit its own sizes: {first}"
    )


def refuse(found: Iterator[str]) -> None:
    """Raise CheckpointError if there are differences."""
    if named := "; ".join(found):
        raise CheckpointError(
            f"the checkpoint has a different model: {named}: omit these options to resume, or "
            "start a new run"
        )


def differences(name: str, asked: Mapping[str, Any], held: Mapping[str, Any]) -> Iterator[str]:
    """How two settings of a part differ: in its class, or else in its arguments."""
    (one, given), (other, kept) = class_and_arguments(asked, name), class_and_arguments(held, name)
    if one != other:
        yield f"{name} {one}, checkpoint has {other}"
        return
    for key in sorted(given.keys() | kept.keys()):
        if given.get(key) != kept.get(key):
            yield f"{name}.{key} {given.get(key)}, checkpoint has {kept.get(key)}"


def class_and_arguments(settings: Mapping[str, Any], name: str) -> tuple[Any, dict[str, Any]]:
    """The class path and the arguments of a part."""
    spec = settings.get(name)
    if not isinstance(spec, Mapping):
        return spec, {}
    arguments = spec.get("init_args")
    return spec.get("class_path"), dict(arguments) if isinstance(arguments, Mapping) else {}


def has_changed(name: str, asked: Mapping[str, Any], held: Mapping[str, Any]) -> bool:
    """Whether a setting is another one, however it is written."""
    return bool(normal(asked.get(name)) != normal(held.get(name)))


def normal(spec: Any) -> Any:
    """A setting with lists for tuples, and without arguments where there are none."""
    if isinstance(spec, Mapping):
        return {key: normal(value) for key, value in spec.items() if value or key != "init_args"}
    return [normal(item) for item in spec] if isinstance(spec, list | tuple) else spec
