"""Reads and writes safetensors: weights as data, which cannot hold code."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from makemoe.errors import CheckpointError, MissingPackageError, WriteError
from makemoe.exchange.config import read_json
from makemoe.files import open_regular

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")

TYPES = ("F32", "BF16", "F16", "F64")
"""The types of weights that are read, by their names in safetensors."""


def library() -> Any:
    """The library `safetensors`, with its part for torch.

    Raises:
        MissingPackageError: if it is not installed.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingPackageError(
            "safetensors is not installed: pip install 'makemoe[hf]'"
        ) from error
    return safetensors


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors, each with memory of its own, to a new file.

    Raises:
        WriteError: if it cannot be written.
    """
    safetensors = library()
    own = {name: alone(tensor) for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(own, path, {"format": "pt"})
    except (OSError, safetensors.SafetensorError) as error:
        raise WriteError(f"the weights {path}", error) from error


def alone(tensor: Tensor) -> Tensor:
    """The tensor, in memory that no other tensor shares."""
    is_alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if is_alone else tensor.clone(memory_format=torch.contiguous_format)


class Header(NamedTuple):
    """Where a tensor is, and what it is without its numbers."""

    file: Path
    shape: tuple[int, ...]
    kind: str


class TensorFiles(AbstractContextManager["TensorFiles"]):
    """The tensors of a folder: in one file, or in several with an index.

    Args:
        folder: the folder.

    Attributes:
        headers: all tensors, by name.

    Raises:
        CheckpointError: for a folder without weights, with pickled ones, or with damaged files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.safetensors = folder, library()
        self._open = ExitStack()
        self._files: dict[Path, Any] = {}
        self.headers: dict[str, Header] = {}
        with ExitStack() as unless_complete:
            unless_complete.callback(self._open.close)
            for file, names in self._files_of().items():
                self._add(file, names)
            unless_complete.pop_all()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files."""
        self._open.close()

    def read(self, name: str) -> Tensor:
        """A tensor, in memory of its own."""
        file = self.headers[name].file
        try:
            tensor: Tensor = self._files[file].get_tensor(name)
        except self.safetensors.SafetensorError as error:
            raise damaged(file, error) from error
        return tensor

    def _files_of(self) -> dict[Path, set[str] | None]:
        """The files, and which tensors each must have; None: any."""
        if (whole := self.folder / FILE).exists():
            return {whole: None}
        if (index := self.folder / INDEX).exists():
            return self._listed(index)
        if any((self.folder / name).exists() for name in PICKLED):
            raise CheckpointError(
                f"{self.folder} has pickled weights, which may run code: only {FILE} is read; "
                "save the model with safetensors"
            )
        raise CheckpointError(f"{self.folder} has no weights: it has neither {FILE} nor {INDEX}")

    def _listed(self, index: Path) -> dict[Path, set[str] | None]:
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise CheckpointError(f"{index} has no weight_map")
        found: dict[Path, set[str] | None] = {}
        for name, file in places.items():
            # A path could lead out of the folder.
            if not isinstance(file, str) or Path(file).name != file:
                raise CheckpointError(f"{index}: {file!r:.60} is not the name of a file")
            names = found.setdefault(self.folder / file, set())
            assert names is not None
            names.add(name)
        return found

    def _add(self, file: Path, names: set[str] | None) -> None:
        """Open a file, and add the tensors that it must have."""
        try:
            open_regular(file).close()
            opened = self._open.enter_context(self.safetensors.safe_open(file, "pt"))
            held = set(opened.keys())
            for name in sorted(held if names is None else names & held):
                part = opened.get_slice(name)
                self.headers[name] = Header(file, tuple(part.get_shape()), part.get_dtype())
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.folder} is incomplete: it has no {file.name}") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL or a surrogate in the name
            why = getattr(error, "strerror", None) or error
            raise CheckpointError(f"{file}: {why}") from error
        except self.safetensors.SafetensorError as error:
            raise damaged(file, error) from error
        self._files[file] = opened
        if names is not None and (missing := names - held):
            raise CheckpointError(
                f"{file} lacks {len(missing)} tensors of {INDEX}, for example {min(missing)}"
            )


def damaged(file: Path, error: Exception) -> CheckpointError:
    """The error for a file that is no complete safetensors file."""
    return CheckpointError(f"{file} is truncated or damaged: {error}")


def check_types(headers: Iterable[Header], folder: Path) -> None:
    """Raise CheckpointError for tensors of several types, or of one that is not read."""
    kinds = sorted({header.kind for header in headers})
    odd = [kind for kind in kinds if kind not in TYPES]
    if odd:
        raise CheckpointError(
            f"{folder} has weights of the type {odd[0]}: only {', '.join(TYPES)} are read, no "
            "quantised ones"
        )
    if len(kinds) != 1:
        raise CheckpointError(
            f"{folder} has weights of several types ({', '.join(kinds)}): save it in one"
        )
