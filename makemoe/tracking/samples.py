"""A text sampled at each validation."""

import re
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_only

from makemoe.data.datamodule import data_of
from makemoe.files import replacing
from makemoe.model.generate import Sampler, generate
from makemoe.shards import has_shards
from makemoe.training.module import LanguageModel

HEAD = re.compile(rb"^==== step (\d{1,18})$", re.MULTILINE)


class TextSample(Callback):
    """Samples a text at each validation and writes it to TensorBoard and `samples.txt`.

    Each text follows a line `==== step N`. If a line of the text itself looks like that, a space is
    put in front of it. A resumed run removes the texts of the steps that it runs again.

    Args:
        folder: folder of the run.
        prompt: the start of the text; empty: a new text, see `Tokenizer.prompt`.
        tokens: number of tokens to add.
        seed: random seed; the same at each validation, so that only the model changes.
    """

    def __init__(self, folder: Path, prompt: str, tokens: int, seed: int) -> None:
        self.path, self.prompt = folder / "samples.txt", prompt
        self.tokens, self.seed = tokens, seed

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.path.exists():
            self.rewrite(before=trainer.global_step + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, LanguageModel)
        # With weights in parts, all processes must compute; the first one writes.
        is_first = getattr(rank_zero_only, "rank", 0) == 0
        if not is_first and not has_shards(pl_module.net):
            return
        text = self.sample(trainer, pl_module)
        if not is_first:
            return
        step = trainer.global_step
        body = HEAD.sub(rb" \g<0>", text.encode())
        self.rewrite(before=step, entry=b"==== step %d\n%b\n\n" % (step, body))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                indented = "".join(f"    {line}\n" for line in text.splitlines())
                logger.experiment.add_text("sample", indented, step)

    def rewrite(self, before: int, entry: bytes = b"") -> None:
        """Rewrite the file: keep the texts of the steps before `before`, and add a new entry."""
        text = self.path.read_bytes() if self.path.exists() else b""
        heads = [*HEAD.finditer(text)]
        begins = [head.start() for head in heads] + [len(text)]
        kept = [
            text[begins[i] : begins[i + 1]]
            for i, head in enumerate(heads)
            if int(head.group(1)) < before
        ]
        if (content := b"".join([*kept, entry])) != text:
            with replacing(self.path) as file:
                file.write(content)

    def sample(self, trainer: Trainer, module: LanguageModel) -> str:
        """The prompt and the model's continuation."""
        tokenizer = data_of(trainer).tokenizer
        net, was_training = module.net.eval(), module.training
        prompt = tokenizer.prompt(self.prompt)
        end = tokenizer.end_of_text
        new = generate(
            net, [prompt], self.tokens, Sampler([self.seed]), lambda _, token: token == end
        )[0]
        net.train(was_training)
        text: str = tokenizer.decode(prompt + new)
        return text
