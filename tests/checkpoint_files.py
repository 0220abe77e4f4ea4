"""What checkpoints hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from makemoe.checkpoint import pieces
from makemoe.checkpoint.format import stamp, write_index
from makemoe.checkpoint.in_pieces import Part
from makemoe.data.tokenizer import CharTokenizer
from makemoe.model.router import NoisyTopKRouter, Router
from makemoe.model.transformer import MoETransformer

SAVE, LATER = "0123456789abcdef", "fedcba9876543210"
VOCABULARY = "\n abcdefghi"
Build = Callable[..., MoETransformer]


def small(build: Build, router: type[Router] = NoisyTopKRouter, **changes: Any) -> dict[str, Any]:
    """What a checkpoint of a small model holds."""
    net = {"block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 16, "num_experts": 4}
    model = build(**net | {"vocab_size": len(VOCABULARY), "router": router})
    path = f"makemoe.model.router.{router.__name__}"
    content: dict[str, Any] = {
        "state_dict": {f"net.{k}": v for k, v in model.state_dict().items()},
        "hyper_parameters": net
        | {"vocab_size": len(VOCABULARY), "router": path, "optimizer": "torch.optim.AdamW"},
    }
    stamp(content, CharTokenizer(VOCABULARY).spec())
    return content | changes


def cut_in_two(content: dict[str, Any], path: Path, save: str = SAVE) -> dict[str, Any]:
    """Write a checkpoint as two processes do, with all weights and moments in halves."""
    rest, entries = {**content}, []
    halves: tuple[dict[int, Part], dict[int, Part]] = {}, {}
    for key in content.keys() & {"state_dict", "moments"}:
        rest[key] = dict.fromkeys(content[key])
        for name, tensor in content[key].items():
            number, half = len(entries), (len(tensor) + 1) // 2
            entries.append(pieces.entry([[key, name]], tensor.shape, tensor.dtype))
            halves[0][number] = Part((0,) * tensor.ndim, tensor[:half].clone())
            if half < len(tensor):
                begins = (half, *(0,) * (tensor.ndim - 1))
                halves[1][number] = Part(begins, tensor[half:].clone())
    names = [pieces.name_of(save, rank) for rank in range(2)]
    seals = {n: pieces.write_piece(h, path, n) for n, h in zip(names, halves, strict=True)}
    write_index(rest, entries, seals, path)
    return rest


def piece(path: Path, rank: int, save: str = SAVE) -> Path:
    return pieces.folder_of(path) / pieces.name_of(save, rank)
