r"""Define a router, train it beside the usual one, and compare their losses.

    python examples/own_router.py --steps 300 --seeds 3

The router of this file scores experts by a random projection that never learns: what is learning to
route worth? Both train on the bundled play, from the same seeds, on the same batches. `makemoe
compare` does this for any number of variants, in one table:

    PYTHONPATH=examples makemoe compare --config configs/quickstart.yaml \
        --vary model.router=TopKRouter,own_router.FrozenRouter --seeds 3
"""

import logging
import sys
import warnings
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from statistics import mean, stdev

import torch
from lightning.pytorch import Trainer

from makemoe.cli.parser import OneLineErrors
from makemoe.data.datamodule import TextDataModule
from makemoe.errors import MakeMoEError
from makemoe.model.router import RouterFactory, TopKRouter
from makemoe.sizes import check_sizes
from makemoe.training.module import LanguageModel


class FrozenRouter(TopKRouter):
    """Top-k of a random linear layer that is never trained."""

    def __init__(self, n_embd: int, num_experts: int, top_k: int) -> None:
        super().__init__(n_embd, num_experts, top_k)
        self.gate.requires_grad_(False)


def val_loss(router: RouterFactory, steps: int, seed: int) -> float:
    """Train a small model, and return its exact validation loss in nats per token."""
    torch.manual_seed(seed)
    data = TextDataModule("sample", block_size=64, batch_size=16, seed=seed)
    model = LanguageModel(
        vocab_size=data.vocab_size,
        block_size=64,
        n_layer=2,
        n_head=2,
        n_embd=64,
        num_experts=8,
        router=router,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-3),
        seed=seed,
    )
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, data)
    return trainer.validate(model, data, verbose=False)[0]["val_loss"]


def main() -> None:
    """Train with both routers from each seed, and print losses and their difference."""
    parser = OneLineErrors(
        "own_router", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs per router (%(default)s)")
    options = parser.parse_args()
    check_sizes({"--steps": options.steps, "--seeds": options.seeds})
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")

    routers: tuple[RouterFactory, ...] = TopKRouter, FrozenRouter
    usual, own = ([val_loss(r, options.steps, n) for n in range(options.seeds)] for r in routers)
    print(f"TopKRouter    {in_words(usual)}")
    print(f"FrozenRouter  {in_words(own)}")
    print(f"difference    {in_words([b - a for a, b in zip(usual, own, strict=True)])}")


def in_words(losses: Sequence[float]) -> str:
    """Mean and spread."""
    spread = f" ± {stdev(losses):.4f} over {len(losses)} seeds" if len(losses) > 1 else ""
    return f"{mean(losses):.4f}{spread} nats per token"


if __name__ == "__main__":
    try:
        main()
    except MakeMoEError as error:
        print(f"own_router: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
