"""A weight that two modules use is one weight, before and after a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from makemoe.checkpoint.format import read, stamp, write
from makemoe.checkpoint.inference import load_for_inference
from makemoe.checkpoint.lightning_io import SafeCheckpointIO
from makemoe.data.tokenizer import CharTokenizer
from makemoe.errors import CheckpointError
from makemoe.model.footprint import footprint
from makemoe.model.transformer import MoETransformer
from makemoe.training.module import LanguageModel

V = 5
SIZES: dict[str, Any] = {
    **{"vocab_size": V, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "num_experts": 2},
    "tied_embeddings": True,
}


def saved(path: Path) -> MoETransformer:
    model = MoETransformer(**SIZES)
    content = {
        "state_dict": {f"net.{k}": v for k, v in model.state_dict().items()},
        "hyper_parameters": dict(SIZES),
    }
    stamp(content, CharTokenizer("\nabcd").spec())
    write(content, path)
    return model


def test_sampling_loads_it_as_one(tmp_path: Path) -> None:
    before = saved(tmp_path / "a.ckpt")
    model, _ = load_for_inference(tmp_path / "a.ckpt")
    assert model.head.weight is model.token_embedding.weight
    assert model.count_parameters() == before.count_parameters()
    for name, weight in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)


def test_it_is_one_from_the_start_and_is_counted_once() -> None:
    tied, untied = MoETransformer(**SIZES), MoETransformer(**SIZES | {"tied_embeddings": False})
    assert tied.head.weight is tied.token_embedding.weight
    counts = untied.count_parameters(), tied.count_parameters()
    assert [one - other for one, other in zip(*counts, strict=True)] == [V * 8, V * 8]
    sizes = footprint(untied.architecture), footprint(tied.architecture)
    assert sizes[0].parameters - sizes[1].parameters == V * 8
    # Both uses add to its gradient: of the row of a token that is read, and of all that are not.
    tied(torch.tensor([[2]]))[0].logsumexp(-1).sum().backward()
    assert (tied.head.weight.grad != 0).any(1).all()


def test_two_values_of_one_weight_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a.ckpt")
    content = dict(read(tmp_path / "a.ckpt"))
    content["state_dict"]["net.head.weight"] = torch.zeros(V, 8)
    write(content, tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match=r"token_embedding\.weight and head\.weight differ"):
        load_for_inference(tmp_path / "b.ckpt")


def trainer(folder: Path, steps: int) -> Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    own = {"max_steps": steps, "num_sanity_val_steps": 0, "limit_val_batches": 0}
    return Trainer(default_root_dir=folder, plugins=[SafeCheckpointIO()], **own, **quiet)


def batches() -> DataLoader[Any]:
    ids_BT = torch.randint(V, (2, 9), generator=torch.Generator().manual_seed(1))
    return DataLoader([(ids_BT[:, :-1], ids_BT[:, 1:])] * 20, batch_size=None)


@pytest.mark.filterwarnings("ignore")  # Lightning advises on loaders, and calls torch in old ways
def test_a_resumed_run_trains_it_as_one(tmp_path: Path) -> None:
    straight, first, resumed = (LanguageModel(**SIZES) for _ in range(3))
    first.load_state_dict(straight.state_dict())
    trainer(tmp_path, 6).fit(straight, batches())
    begun = trainer(tmp_path, 3)
    begun.fit(first, batches())
    begun.save_checkpoint(tmp_path / "a.ckpt")
    trainer(tmp_path, 6).fit(resumed, batches(), ckpt_path=tmp_path / "a.ckpt")
    assert resumed.net.head.weight is resumed.net.token_embedding.weight
    (optimizer,) = [resumed.optimizers(use_pl_optimizer=False)]
    assert isinstance(optimizer, torch.optim.Optimizer)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(trained) == len({id(p) for p in trained}) == len(list(straight.parameters()))
    for name, weight in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name
