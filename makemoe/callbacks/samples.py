"""A text sampled at each validation."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_only

from makemoe.data.datamodule import data_of
from makemoe.model.generate import Sampler, generate
from makemoe.training.module import LanguageModel


class TextSample(Callback):
    """Samples a text at each validation, for TensorBoard and `samples.txt`.

    Args:
        folder: of the run.
        prompt: what the text begins with.
        tokens: how many to add.
        seed: of the draws; the same at each validation, so that only the model changes.
    """

    def __init__(self, folder: Path, prompt: str, tokens: int, seed: int) -> None:
        self.path, self.prompt = folder / "samples.txt", prompt
        self.tokens, self.seed = tokens, seed

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, LanguageModel)
        text = self.sample(trainer, pl_module)
        step = trainer.global_step
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"==== step {step}\n{text}\n\n")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                indented = "".join(f"    {line}\n" for line in text.splitlines())
                logger.experiment.add_text("sample", indented, step)

    def sample(self, trainer: Trainer, module: LanguageModel) -> str:
        """The prompt and what the model makes of it."""
        tokenizer = data_of(trainer).tokenizer
        net, was_training = module.net.eval(), module.training
        prompt = tokenizer.encode(self.prompt).tolist()
        new = generate(net, [prompt], self.tokens, Sampler([self.seed]))[0]
        net.train(was_training)
        text: str = tokenizer.decode(prompt + new)
        return text
