"""How a model routes tokens of its training text, for balancers that calibrate with them."""

from collections.abc import Iterator

from lightning.pytorch import Trainer

from makemoe.data.datamodule import text_data
from makemoe.errors import UsageError
from makemoe.model.router import Routing
from makemoe.model.transformer import MoETransformer


def sampled_routings(net: MoETransformer, trainer: Trainer, tokens: int) -> Iterator[list[Routing]]:
    """Routings of the given number of tokens of the training text, batch by batch.

    Raises:
        UsageError: if a model is trained on something else than a TextDataModule.
    """
    if (data := text_data(trainer)) is None:
        raise UsageError(
            "--model.balancers: calibration_tokens needs windows of the training text, which "
            "only a TextDataModule provides: train with one, or set it to 0"
        )
    for x_BT in data.sampled_windows(tokens):
        with trainer.precision_plugin.val_step_context():
            _, routings = net(x_BT.to(trainer.strategy.root_device))
        yield routings
